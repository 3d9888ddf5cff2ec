"""Wrong input: every reason a row ends in errors/ for, and every reason a job is refused or fails for.

Rows are tested with the stages in this process (`inline.py`); what the preflight refuses needs no Ray either.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import transformers

from tests.support import models, warm
from tests.support.inline import Inline, read_rows, score_inline, write_jsonl
from tokloss_ray import ScoreConfig, score
from tokloss_ray.config import make_config, read_yaml
from tokloss_ray.errors import JobFailed, Refused, TokLossError, TooManyBadRows
from tokloss_ray.scoring.stages.scorer import MAX_STREAMS

Row = dict[str, Any]

SENTENCES = [["Anton", "wohnt", "in", "Berlin"], ["Die", "Stadt", "am", "See"], ["Anna", "und", "Otto", "Köln"]]
VOCABULARY = [word for words in SENTENCES for word in words]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
MAX_LENGTH = 32


def row(*words: Any, tags: Any = None, **more: Any) -> Row:
    return {"tokens": list(words), "ner_tags": [0] * len(words) if tags is None else tags, **more}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build("bert", tmp_path_factory.mktemp("model"), SENTENCES, TAGS, max_length=MAX_LENGTH)


@pytest.fixture
def model_copy(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Input with nothing wrong."""
    return write_jsonl(tmp_path / "good.jsonl", [row("Anna", "wohnt", tags=["B-PER", "O"], lang="de")] * 3)


def vocabulary(model: Path) -> dict[str, int]:
    return json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


# Rows.


GOOD_WORDS = [row("Anna", "und", tags=[1, 0]), row("Otto", tags=[1]), row("See", tags=[0])]
GOOD_STRINGS = [row("Anna", "und", tags=["B-PER", "O"]), row("Otto", tags=["B-PER"]), row("See", tags=["O"])]
GOOD_ENCODED = [{"input_ids": [2, 7, 3], "labels": [-100, 1, -100]}] * 3
GOOD_MASKED = [sentence | {"attention_mask": [1, 1, 0]} for sentence in GOOD_ENCODED]

BAD_ROWS: dict[str, tuple[str, list[Row], Row, str]] = {
    # name: reason, good rows around it, the bad row, what its detail must say
    "no-words": ("empty", GOOD_WORDS, row(), "tokens has no words"),
    "no-tokens": ("empty", GOOD_ENCODED, {"input_ids": [], "labels": []}, "input_ids has no tokens"),
    "null-words": ("null_field", GOOD_WORDS, {"tokens": None, "ner_tags": [0]}, "tokens is null"),
    "null-labels": ("null_field", GOOD_WORDS, {"tokens": ["a"], "ner_tags": None}, "ner_tags is null"),
    "null-word": ("null_field", GOOD_WORDS, row("a", None, "b"), "tokens[1] is null"),
    "null-id": ("null_field", GOOD_ENCODED, {"input_ids": [1, None], "labels": [0, 0]}, "input_ids[1] is null"),
    "more-tags": ("length_mismatch", GOOD_WORDS, row("a", tags=[0, 1]), "1 tokens, 2 ner_tags"),
    "fewer-tags": ("length_mismatch", GOOD_WORDS, row("a", "b", "c", tags=[0]), "3 tokens, 1 ner_tags"),
    "no-tags": ("length_mismatch", GOOD_WORDS, row("a", tags=[]), "1 tokens, 0 ner_tags"),
    "short-mask": (
        "length_mismatch",
        GOOD_MASKED,
        {"input_ids": [2, 3], "labels": [0, 0], "attention_mask": [1]},
        "2 input_ids, 2 labels, 1 attention_mask",
    ),
    "unknown-tag": ("unknown_tag", GOOD_STRINGS, row("a", "b", tags=["O", "B-MISC"]), "B-MISC"),
    "tag-too-large": ("label_out_of_range", GOOD_WORDS, row("a", "b", tags=[0, 4]), "4 is not among the 4 labels"),
    "tag-negative": ("label_out_of_range", GOOD_WORDS, row("a", tags=[-1]), "-1 is not among the 4 labels"),
    "label-too-large": ("label_out_of_range", GOOD_ENCODED, {"input_ids": [2], "labels": [99]}, "99 is not among"),
    "id-too-large": ("token_out_of_range", GOOD_ENCODED, {"input_ids": [2, 10**6], "labels": [0, 0]}, "1000000 is not"),
    "id-beyond-32-bits": ("token_out_of_range", GOOD_ENCODED, {"input_ids": [2**32], "labels": [0]}, "4294967296"),
    "id-negative": ("token_out_of_range", GOOD_ENCODED, {"input_ids": [-5], "labels": [0]}, "-5 is not among"),
}


def check_one_error(result: Inline, good_rows: list[Row], reason: str, stage: str, detail: str) -> Row:
    """The good rows are scored, one error is written and counted; return it."""
    first = "tokens" if "tokens" in good_rows[0] else "input_ids"
    wanted = [sentence[first] for sentence in good_rows]
    assert [found["words" if first == "tokens" else "input_ids"] for found in result.rows] == wanted
    (error,) = result.errors
    assert (error["reason"], error["stage"]) == (reason, stage)
    assert detail in error["detail"]
    assert error["example_id"] == f"{error['source']}:{error['source_row']}"
    totals = result.totals
    assert (totals.rows, totals.scored_rows, totals.error_rows) == (len(good_rows) + 1, len(good_rows), 1)
    assert totals.errors == {reason: 1}
    return error


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row(model: Path, tmp_path: Path, name: str, file_format: str) -> None:
    reason, good_rows, bad_row, detail = BAD_ROWS[name]
    rows = [*good_rows[:2], bad_row, *good_rows[2:]]
    if file_format == "jsonl":
        source = write_jsonl(tmp_path / "in.jsonl", rows)
        number = sum(len(line) + 1 for line in source.read_bytes().splitlines()[:2])
    else:
        source, number = tmp_path / "in.parquet", 2
        pq.write_table(pa.Table.from_pylist(rows), source)
    result = score_inline(
        ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), max_error_rate=0.25)
    )
    error = check_one_error(result, good_rows, reason, "read", detail)
    assert error["source_row"] == number
    assert json.loads(error["payload"]) == bad_row


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ('{"tokens": ["a", 3], "ner_tags": [0, 0]}', "not_a_string", "tokens holds 3"),
        ('{"tokens": [["a"]], "ner_tags": [0]}', "not_a_string", 'tokens holds ["a"]'),
        ('{"tokens": ["a"], "ner_tags": [true]}', "not_a_string", "ner_tags holds true"),
        ('{"tokens": ["a", "b"], "ner_tags": [0, "O"]}', "not_a_string", 'ner_tags holds "O"'),
        ('{"tokens": ["a"], "ner_tags": [0]', "malformed", "Expecting ',' delimiter"),
        ("tokens,ner_tags", "malformed", "Expecting value"),
        ('["a", "b"]', "malformed", "not a JSON object"),
        ('{"tokens": "a b", "ner_tags": [0, 0]}', "malformed", "tokens is not a list"),
        ('{"tokens": ["a"], "ner_tags": "O"}', "malformed", "ner_tags is not a list"),
        ('{"tokens": ["a"], "ner_tags": [1180591620717411303424]}', "malformed", "too"),
        ('{"tokens": ["\\ud800"], "ner_tags": [0]}', "malformed", "surrogates not allowed"),
        ("[" * 100_000, "malformed", "recursion"),
    ],
    ids=["number", "list", "boolean-tag", "two-kinds-of-tags", "cut-off", "csv", "array", "string", "string-tags",
         "70-bits", "surrogate", "nesting"],
)  # fmt: skip
def test_bad_line(model: Path, tmp_path: Path, line: str, reason: str, detail: str) -> None:
    """Lines that JSON lines alone can hold; the payload is the line as it stands."""
    source = write_jsonl(tmp_path / "in.jsonl", GOOD_WORDS[:2])
    with source.open("a", encoding="utf-8") as file:
        file.write(line + "\n" + json.dumps(GOOD_WORDS[2]) + "\n")
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), max_error_rate=0.25)
    error = check_one_error(score_inline(config), GOOD_WORDS, reason, "read", detail)
    assert error["payload"] == line


def test_line_that_is_not_utf8(model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", GOOD_WORDS)
    source.write_bytes(source.read_bytes() + '{"tokens": ["Köln"], "ner_tags": [0]}\n'.encode("latin-1"))
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), max_error_rate=0.25)
    error = check_one_error(score_inline(config), GOOD_WORDS, "malformed", "read", "utf-8")
    assert error["payload"].startswith('{"tokens": ["K')


def test_null_id(model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", key="a"), row("Otto", key=None)])
    config = ScoreConfig(
        model=str(model), input=str(source), output=str(tmp_path / "out"), id_column="key", max_error_rate=0.5
    )
    result = score_inline(config)
    assert [found["example_id"] for found in result.rows] == ["a"]
    (error,) = result.errors
    assert (error["reason"], error["detail"]) == ("null_field", "key is null")
    assert error["example_id"] == f"in.jsonl:{error['source_row']}"


def test_parquet_strings_that_are_not_utf8(model: Path, tmp_path: Path) -> None:
    """A broken row is no reason to lose the others."""
    words = pa.ListArray.from_arrays([0, 1, 2], pa.array([b"Anna", b"K\xf6ln"]).view(pa.string()))
    pq.write_table(pa.table({"tokens": words, "ner_tags": [[0], [0]]}), tmp_path / "in.parquet")
    config = ScoreConfig(
        model=str(model), input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), max_error_rate=0.5
    )
    result = score_inline(config)
    assert [found["words"] for found in result.rows] == [["Anna"]]
    assert [(e["reason"], e["source_row"]) for e in result.errors] == [("malformed", 1)]


def test_too_long(model: Path, tmp_path: Path) -> None:
    long_row = row(*VOCABULARY * 3)  # 36 words and two special tokens
    source = write_jsonl(tmp_path / "in.jsonl", [*GOOD_WORDS, long_row])
    config = ScoreConfig(
        model=str(model), input=str(source), output=str(tmp_path / "out"), overflow="reject", max_error_rate=0.25
    )
    error = check_one_error(score_inline(config), GOOD_WORDS, "too_long", "encode", "38 tokens, at most 32")
    assert long_row["tokens"] in json.loads(error["payload"]).values()


def test_payload_of_a_late_error_is_the_row(model: Path, tmp_path: Path) -> None:
    """A row refused by a later stage is given back as it came, with its own columns and tags."""
    long_row = row(*VOCABULARY * 3, tags=["B-LOC"] * 36)
    source = write_jsonl(tmp_path / "in.jsonl", [long_row])
    config = ScoreConfig(
        model=str(model), input=str(source), output=str(tmp_path / "out"), overflow="reject", max_error_rate=1
    )
    assert json.loads(score_inline(config).errors[0]["payload"]) == long_row


def allocate_too_much() -> None:
    """What torch's allocator says itself: more than any address space has."""
    torch.empty(1 << 50, dtype=torch.uint8)


def run_out_of_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


class Failing(torch.nn.Module):
    """A model that runs out of memory above `room` padded tokens and answers NaN for the token `poison`."""

    def __init__(
        self,
        inner: torch.nn.Module,
        room: int = 10**9,
        poison: int = -1,
        run_out: Callable[[], None] = run_out_of_device_memory,
    ) -> None:
        super().__init__()
        self.inner, self.room, self.poison, self.run_out = inner, room, poison, run_out
        self.sizes: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.sizes.append(input_ids.numel())
        if input_ids.numel() > self.room:
            self.run_out()
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return SimpleNamespace(logits=logits.masked_fill((input_ids == self.poison)[..., None], float("nan")))


@pytest.mark.parametrize("run_out", [allocate_too_much, run_out_of_device_memory])
def test_out_of_memory(model: Path, tmp_path: Path, run_out: Callable[[], None]) -> None:
    """Batches are halved until they fit; a row that does not fit alone is an error, and the rest is as without."""
    rows = [row(*VOCABULARY[: 1 + i % 6], tags=[i % 4] * (1 + i % 6)) for i in range(60)]
    source = write_jsonl(tmp_path / "in.jsonl", [*rows, row(*VOCABULARY * 2)])  # 26 tokens with the special ones
    settings = {"model": str(model), "input": str(source), "tags": TAGS, "max_error_rate": 0.1}
    config = ScoreConfig(**settings, output=str(tmp_path / "out"))
    result = score_inline(config, lambda inner: Failing(inner, room=24, run_out=run_out))
    error = check_one_error(result, rows, "out_of_memory", "score", "memory")
    assert VOCABULARY * 2 in json.loads(error["payload"]).values()
    assert result.totals.batch_tokens <= 24 * 2, "a smaller budget is kept"
    whole = score_inline(ScoreConfig(**settings, output=str(tmp_path / "whole")))
    for found, wanted in zip(result.rows, whole.rows, strict=False):
        assert found["example_id"] == wanted["example_id"]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4, abs=1e-4)


def test_no_batch_is_larger_than_one_that_did_not_fit(model: Path, tmp_path: Path) -> None:
    """What did not fit once will not fit later, in batches that were planned before, too: each try costs a wait.

    40 batches of 200 tokens are planned; those that the streams have begun when the first fails may fail, too.
    """
    source = write_jsonl(tmp_path / "in.jsonl", [row(*VOCABULARY[:6])] * 1000)
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), batch_tokens=200)
    made: list[Failing] = []

    def wrap(inner: Any) -> Failing:
        made.append(Failing(inner, room=100))
        return made[-1]

    assert score_inline(config, wrap).totals.scored_rows == 1000
    too_large = [size for size in made[0].sizes if size > 100]
    assert 0 < len(too_large) <= min(torch.get_num_threads(), MAX_STREAMS)


def test_other_failures_do_not_pass_for_memory(model: Path, good: Path, tmp_path: Path) -> None:
    """torch has a plain RuntimeError for memory on a CPU; any other RuntimeError ends the job."""

    class Broken(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            raise RuntimeError("could not execute a primitive")

    config = ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out"), max_error_rate=1)
    with pytest.raises(RuntimeError, match="primitive"):
        score_inline(config, lambda _: Broken())


def test_non_finite(model: Path, tmp_path: Path) -> None:
    """NaN for one row's token touches that row alone, though others share its batch."""
    source = write_jsonl(tmp_path / "in.jsonl", [*GOOD_WORDS, row("wohnt", "Berlin", "in")])
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), max_error_rate=0.25)
    poison = vocabulary(model)["Berlin"]
    result = score_inline(config, lambda inner: Failing(inner, poison=poison))
    error = check_one_error(result, GOOD_WORDS, "non_finite", "score", "NaN")
    assert ["wohnt", "Berlin", "in"] in json.loads(error["payload"]).values()
    assert all(value == value for found in result.rows for value in found["loss"])


@pytest.mark.parametrize("at", [0, 30, 69], ids=["first", "middle", "last"])
@pytest.mark.parametrize("shard_tokens", [None, 32], ids=["one-shard", "a-shard-a-window"])
def test_long_row_with_one_bad_window(model: Path, tmp_path: Path, at: int, shard_tokens: int | None) -> None:
    """A row of which a window cannot be scored is a bad row: it is counted, and --max-error-rate holds for it.

    Rows in = rows scored + rows in errors: no row may be in both, wherever its windows end up.
    """
    words = ["Berlin"] * 70
    words[at] = "Otto"
    source = write_jsonl(tmp_path / "in.jsonl", [row(*words), row("Anna")])
    settings = {"model": str(model), "input": str(source), "shard_tokens": shard_tokens}

    def wrap(inner: Any) -> Failing:
        return Failing(inner, poison=vocabulary(model)["Otto"])

    result = score_inline(ScoreConfig(**settings, output=str(tmp_path / "out"), max_error_rate=1), wrap)
    bad = {error["example_id"] for error in result.errors}
    assert bad == {"in.jsonl:0"}
    assert (result.totals.rows, result.totals.scored_rows, result.totals.error_rows) == (2, 1, 1)
    assert bad.isdisjoint(found["example_id"] for found in result.rows)
    with pytest.raises(TooManyBadRows):
        score_inline(ScoreConfig(**settings, output=str(tmp_path / "strict")), wrap)


# Jobs that are refused. `refused` runs `score`, which stops before it needs Ray.


@pytest.fixture
def refused(model: Path, good: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a job that must be refused before any work, and return the sentence."""

    def run(**settings: Any) -> str:
        defaults: dict[str, Any] = {"model": str(model), "input": str(good), "output": str(tmp_path / "out")}
        there = sorted(tmp_path.rglob("*"))
        with pytest.raises(Refused) as caught:
            score(make_config(defaults | {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}))
        assert caught.value.exit_code == 2
        assert sorted(tmp_path.rglob("*")) == there, "something was written"
        message = str(caught.value)
        assert "\n" not in message
        return message

    return run


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_no_such_file(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(input=tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl does not exist" in message


def test_one_of_several_inputs_is_missing(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    assert "gone.jsonl does not exist" in refused(input=[str(good), str(tmp_path / "gone.jsonl")])


def test_no_match_for_a_pattern(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(input=tmp_path / "*.parquet")
    assert "nothing matches" in message
    assert "*.parquet" in message


def test_folder_without_input(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.csv").write_text("a,b\n", encoding="utf-8")
    assert "holds no Parquet (.parquet, .pq) or JSON lines (.jsonl, " in refused(input=tmp_path / "folder")


def test_format_that_is_not_known(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n", encoding="utf-8")
    assert "data.csv is neither Parquet (.parquet, .pq) nor JSON lines (.jsonl" in refused(input=tmp_path / "data.csv")


@pytest.mark.parametrize("content", [b"", b"not Parquet at all, whatever the name says"])
def test_file_that_is_not_parquet(refused: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.parquet").write_bytes(content)
    assert "cannot read in.parquet as Parquet" in refused(input=tmp_path / "in.parquet")


LINES = "".join(json.dumps(row(*VOCABULARY, number=i**5)) + "\n" for i in range(2000)).encode()
PACKED = gzip.compress(LINES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.jsonl.gz", b"not gzip"),
        ("in.jsonl.gz", PACKED[: len(PACKED) // 20]),
        ("in.jsonl.gz", PACKED[:100] + bytes(byte ^ 255 for byte in PACKED[100:])),
        ("in.jsonl.bz2", b"not bzip2"),
        ("in.jsonl.xz", b"not xz"),
    ],
    ids=["not-gzip", "cut-off", "corrupt", "not-bzip2", "not-xz"],
)
def test_packed_file_that_does_not_unpack(
    refused: Callable[..., str], tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"cannot read {name}" in refused(input=tmp_path / name)


def test_packed_file_that_breaks_off_late(model: Path, tmp_path: Path) -> None:
    """Beyond the preflight's sample: whatever stage meets it says which file it is, in one sentence."""
    (tmp_path / "in.jsonl.gz").write_bytes(PACKED[: len(PACKED) - 100])
    config = ScoreConfig(model=str(model), input=str(tmp_path / "in.jsonl.gz"), output=str(tmp_path / "out"))
    with pytest.raises(TokLossError, match=r"cannot read in\.jsonl\.gz"):
        score_inline(config)


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "settings", "wanted"),
    [
        (("text", "ner_tags"), {}, ["no column with words", "--tokens-column", "text, ner_tags"]),
        (("tokens", "gold"), {}, ["no column with tags", "--labels-column", "tokens, gold"]),
        (("tokens", "tags"), {"tokens_column": "words"}, ["no column words", "--tokens-column", "tokens, tags"]),
        (("tokens", "tags"), {"labels_column": "ner"}, ["no column ner", "--labels-column", "tokens, tags"]),
        (("tokens", "tags"), {"id_column": "key"}, ["no column key", "--id-column", "tokens, tags"]),
        (("tokens", "tags"), {"keep": ["year"]}, ["no column year", "--keep", "tokens, tags"]),
        (("tokens", "tags"), {"partition_by": ["lang"]}, ["no column lang", "--partition-by", "tokens, tags"]),
    ],
    ids=["words", "labels", "tokens-column", "labels-column", "id-column", "keep", "partition-by"],
)
def test_missing_column(
    refused: Callable[..., str],
    tmp_path: Path,
    file_format: str,
    columns: tuple[str, str],
    settings: Row,
    wanted: list[str],
) -> None:
    """The sentence names the option and lists the columns there are."""
    sentence = {columns[0]: ["Anna"], columns[1]: ["B-PER"]}
    if file_format == "jsonl":
        source = write_jsonl(tmp_path / "in.jsonl", [sentence])
    else:
        source = parquet(tmp_path / "in.parquet", **{name: [value] for name, value in sentence.items()})
    message = refused(input=source, **settings)
    assert "in." + file_format in message
    for words in wanted:
        assert words in message


def test_column_missing_in_a_later_file(refused: Callable[..., str], tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", tokens=[["Anna"]], ner_tags=[["O"]])
    parquet(tmp_path / "b.parquet", tokens=[["Anna"]], tags=[["O"]])
    message = refused(input=tmp_path / "*.parquet")
    assert "no column ner_tags" in message
    assert "b.parquet has the columns tokens, tags" in message


@pytest.mark.parametrize(
    ("columns", "settings", "wanted"),
    [
        ({"tokens": ["Anna wohnt"], "ner_tags": [[0]]}, {}, ["tokens", "is string", "a list of strings"]),
        ({"tokens": [[1, 2]], "ner_tags": [[0, 0]]}, {}, ["tokens", "int64", "a list of strings"]),
        ({"tokens": [["a"]], "ner_tags": [[0.5]]}, {}, ["ner_tags", "double", "a list of tags"]),
        ({"tokens": [["a"]], "ner_tags": ["O"]}, {}, ["ner_tags", "is string", "a list of tags"]),
        ({"input_ids": [["a"]], "labels": [[0]]}, {}, ["input_ids", "string", "a list of integers"]),
        ({"tokens": [["a"]], "tags": [["O"]], "k": [["x"]]}, {"id_column": "k"}, ["column k", "text or an integer"]),
        (
            {"tokens": [["a"]], "tags": [["O"]], "k": [["x"]]},
            {"partition_by": ["k"]},
            ["column k", "one value per row"],
        ),
    ],
    ids=["words-string", "words-numbers", "tags-floats", "tags-string", "ids-strings", "id-list", "partition-list"],
)
def test_column_of_the_wrong_type(
    refused: Callable[..., str], tmp_path: Path, columns: Row, settings: Row, wanted: list[str]
) -> None:
    message = refused(input=parquet(tmp_path / "in.parquet", **columns), **settings)
    for words in wanted:
        assert words in message


def test_kept_column_of_two_types(refused: Callable[..., str], tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", tokens=[["Anna"]], tags=[["O"]], year=[1999])
    parquet(tmp_path / "b.parquet", tokens=[["Anna"]], tags=[["O"]], year=["1999"])
    message = refused(input=tmp_path / "*.parquet", keep=["year"])
    assert "column year is int64 in a.parquet and string in b.parquet" in message


@pytest.mark.parametrize("option", ["keep", "partition_by", "add_column"])
@pytest.mark.parametrize("name", ["loss", "example_id", "probs"])
def test_column_name_that_the_output_has(refused: Callable[..., str], option: str, name: str) -> None:
    message = refused(**{option: {name: "x"} if option == "add_column" else [name]})
    assert name in message
    assert "reserved column name" in message


def test_kept_column_that_is_the_words(refused: Callable[..., str]) -> None:
    assert "column tokens is in the output already, as words" in refused(keep=["tokens"])


def test_column_kept_and_added(refused: Callable[..., str]) -> None:
    message = refused(keep=["lang"], add_column={"lang": "de"})
    assert "lang: both kept from the input and added as a constant" in message


# Models and tokenizers.


def test_no_model(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no model at" in refused(model=tmp_path / "nowhere")
    assert "no config.json" in refused(model=tmp_path)


def test_model_of_the_hub_that_cannot_be_had(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("Repository Not Found for url\nRequest ID: 1")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = refused(model="nobody/nothing")
    assert "nobody/nothing is neither a folder here nor to be had from the hub" in message
    assert "Repository Not Found" in message


def test_model_that_is_not_for_token_classification(refused: Callable[..., str], model_copy: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(model_copy)
    transformers.BertForMaskedLM(config).save_pretrained(model_copy)
    message = refused(model=model_copy)
    assert "is a BertForMaskedLM, not a token-classification model" in message


@pytest.mark.usefixtures("ray_session")
def test_weights_without_the_head(model_copy: Path, good: Path, tmp_path: Path) -> None:
    """Only loading shows it, in the actor: exit 1, with its one sentence and no stack of frameworks."""
    file = model_copy / "model.safetensors"
    weights = {k: v for k, v in safetensors.torch.load_file(file).items() if not k.startswith("classifier")}
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(JobFailed) as caught:
        score(ScoreConfig(model=str(model_copy), input=str(good), output=str(tmp_path / "out")))
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert "\n" not in message
    assert "lack classifier" in message
    assert "fine-tuned for token classification" in message
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert read_rows(tmp_path / "out") == []


def test_no_weights(refused: Callable[..., str], model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    assert "holds no weights (*.safetensors)" in refused(model=model_copy)


def test_pickled_weights_only(refused: Callable[..., str], model_copy: Path, good: Path, tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(model_copy / "model.safetensors")
    (model_copy / "model.safetensors").unlink()
    torch.save(weights, model_copy / "pytorch_model.bin")
    message = refused(model=model_copy)
    assert "no safetensors weights" in message
    assert "--allow-pickle" in message
    config = ScoreConfig(model=str(model_copy), input=str(good), output=str(tmp_path / "out"), allow_pickle=True)
    assert score_inline(config).totals.scored_rows == 3


def test_tokenizer_of_another_model(refused: Callable[..., str], tmp_path: Path) -> None:
    """Its ids go beyond the embeddings."""
    words = [[f"wort{i}"] for i in range(400)]
    other = models.build("bert", tmp_path / "other", words, TAGS)
    message = refused(tokenizer=other)
    assert "the tokenizer has ids up to" in message
    assert "do not belong together" in message
    assert "--tokenizer" in message


def test_no_tokenizer(refused: Callable[..., str], model_copy: Path) -> None:
    """A folder with the model alone: nothing may be made up in the place of its vocabulary."""
    for file in model_copy.glob("*token*"):
        file.unlink()
    assert sorted(file.name for file in model_copy.iterdir()) == ["config.json", "model.safetensors"]
    message = refused(model=model_copy)
    assert "tokenizer" in message
    assert "--tokenizer" in message


def test_broken_tokenizer(refused: Callable[..., str], model_copy: Path) -> None:
    (model_copy / "tokenizer.json").write_text("{", encoding="utf-8")
    message = refused(model=model_copy)
    assert "no usable tokenizer" in message


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"max_length": 33}, ["--max-length 33", "32 positions"]),
        ({"max_length": 2}, ["--max-length 2", "no room", "2 special tokens"]),
        ({"overlap": 30}, ["--overlap 30", "less than the 30 tokens"]),
        ({"max_length": 10, "overlap": 8}, ["--overlap 8", "less than the 8 tokens"]),
    ],
)
def test_lengths_that_do_not_fit(refused: Callable[..., str], settings: Row, wanted: list[str]) -> None:
    message = refused(**settings)
    for words in wanted:
        assert words in message


# Tags.


def test_declared_tags_that_the_model_lacks(refused: Callable[..., str]) -> None:
    message = refused(tags=["O", "B-PER", "B-MISC"])
    assert "--tags names tags that the model does not have: B-MISC" in message
    assert "data: O, B-PER, B-MISC" in message
    assert "model: O, B-PER, I-PER, B-LOC" in message


def test_tag_declared_twice(refused: Callable[..., str]) -> None:
    assert "duplicate name" in refused(tags=["O", "B-PER", "O"])


def class_labels(names: list[str]) -> datasets.Dataset:
    labels = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": labels})
    return datasets.Dataset.from_dict({"tokens": [["Anna"]], "ner_tags": [[0]]}, features=features)


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_class_labels_that_the_model_lacks(refused: Callable[..., str], tmp_path: Path, kind: str) -> None:
    data = class_labels(["O", "B-MISC", "I-MISC"])
    if kind == "saved":
        data.save_to_disk(tmp_path / "in")
    else:
        data.to_parquet(tmp_path / "in")
        (tmp_path / "in").rename(tmp_path / "in.parquet")
    message = refused(input=tmp_path / ("in" if kind == "saved" else "in.parquet"))
    assert "tags that the model does not have: B-MISC, I-MISC" in message
    assert "model: O, B-PER, I-PER, B-LOC" in message


def test_files_that_declare_different_tags(refused: Callable[..., str], tmp_path: Path) -> None:
    class_labels(["O", "B-PER"]).to_parquet(tmp_path / "a.parquet")
    class_labels(["B-PER", "O"]).to_parquet(tmp_path / "b.parquet")
    message = refused(input=tmp_path / "*.parquet")
    assert "a.parquet and b.parquet declare different tag names" in message


def test_string_tags_of_another_scheme(refused: Callable[..., str], tmp_path: Path) -> None:
    """More than half of the sample has tags that the model lacks: both lists of names are shown."""
    rows = [row("Anna", tags=["PERSON"]), row("Otto", tags=["PERSON"]), row("See", tags=["O"])]
    message = refused(input=write_jsonl(tmp_path / "in.jsonl", rows))
    assert "tags that the model does not know" in message
    assert "O, B-PER, I-PER, B-LOC" in message
    assert "PERSON" in message


def test_string_tags_half_unknown_are_bad_rows(model: Path, tmp_path: Path) -> None:
    """Exactly half is not more than half."""
    rows = [row("Anna", tags=["PERSON"]), row("See", tags=["O"])]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), max_error_rate=0.5)
    assert score_inline(config).totals.errors == {"unknown_tag": 1}


# Partitions.


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_partition_value_that_no_folder_can_be_named_by(model: Path, tmp_path: Path, file_format: str) -> None:
    """Names of folders hold 255 bytes, and a Chinese character is nine of them: `topic=` and 27 fit, 28 do not."""
    fits, too_long = "\u65b0" * 27 + "abcdef", "\u65b0" * 28
    rows = [row("Anna", topic=topic) for topic in (fits, too_long, None, "x" * 249, "x" * 250, "a b")]
    if file_format == "jsonl":
        source = write_jsonl(tmp_path / "in.jsonl", rows)
    else:
        source = tmp_path / "in.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source)
    config = ScoreConfig(
        model=str(model), input=str(source), output=str(tmp_path / "out"), partition_by=["topic"], max_error_rate=0.4
    )
    result = score_inline(config)
    assert len(result.rows) == 4
    folders = {folder.name for folder in (tmp_path / "out" / "scores").iterdir()}
    null, space = "topic=__HIVE_DEFAULT_PARTITION__", "topic=a%20b"
    assert folders == {f"topic={'%E6%96%B0' * 27}abcdef", null, f"topic={'x' * 249}", space}
    assert [json.loads(error["payload"])["topic"] for error in result.errors] == [too_long, "x" * 250]
    assert [error["reason"] for error in result.errors] == ["malformed"] * 2
    sentence = "topic makes a folder's name of {} bytes (--partition-by), of which 255 may be"
    assert [error["detail"] for error in result.errors] == [sentence.format(258), sentence.format(256)]


def test_constant_that_no_folder_can_be_named_by(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(add_column={"topic": "\u65b0" * 28}, partition_by=["topic"])
    assert message.startswith("--add-column topic=")
    assert "258 bytes, of which 255 may be" in message
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", **{"\u65b0" * 28: "a"})])
    assert "--partition-by" in refused(input=source, partition_by=["\u65b0" * 28])


# Splits.


def test_splits(refused: Callable[..., str], tmp_path: Path) -> None:
    one = class_labels(["O", "B-PER"])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "dict")
    one.save_to_disk(tmp_path / "single")
    message = refused(input=tmp_path / "dict")
    assert "holds the splits train, test: choose one with --split" in message
    message = refused(input=tmp_path / "dict", split="dev")
    assert "has no split dev; it has train, test" in message
    message = refused(input=tmp_path / "single", split="train")
    assert "a single dataset without splits: leave out --split" in message


@pytest.mark.parametrize("pattern", ["good.jsonl", "", "*.jsonl"], ids=["file", "folder", "glob"])
def test_split_of_input_that_has_none(refused: Callable[..., str], good: Path, tmp_path: Path, pattern: str) -> None:
    """A split that is asked for and cannot be chosen must not be passed over in silence."""
    (tmp_path / "data").mkdir()
    shutil.copy(good, tmp_path / "data")
    assert "--split" in refused(input=tmp_path / "data" / pattern, split="train")


# Outputs.


def test_output_of_another_run(
    refused: Callable[..., str], model: Path, good: Path, model_copy: Path, tmp_path: Path
) -> None:
    """What differs is named, and nothing is touched."""
    first = ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out"))
    score_inline(first)
    differences: list[tuple[Row, list[str]]] = [
        ({"max_length": 16}, ["max-length (32 there, 16 now)"]),
        ({"overflow": "truncate"}, ["overflow", '"window" there, "truncate" now']),
        ({"label_all_subtokens": True}, ["label-all-subtokens"]),
        ({"keep": ["lang"]}, ["keep"]),
        ({"dtype": "bfloat16"}, ["dtype", '"float32" there, "bfloat16" now']),
        ({"shard_tokens": 77}, ["shard-tokens"]),
        ({"limit": 2}, ["limit (null there, 2 now)"]),
        ({"tags": TAGS[::-1]}, ["tags"]),
    ]
    weights = safetensors.torch.load_file(model_copy / "model.safetensors")
    weights["classifier.bias"] += 1
    safetensors.torch.save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    differences.append(({"model": model_copy}, ["model (other files)"]))
    more = write_jsonl(tmp_path / "more.jsonl", [row("Anna", tags=["O"], lang="de")])
    differences.append(({"input": [str(good), str(more)]}, ["input (more.jsonl)"]))
    for settings, wanted in differences:
        message = refused(**settings)
        assert "belongs to another run; it differs in" in message
        assert "--overwrite" in message
        for words in wanted:
            assert words in message
        if settings.keys() != {"max_length"}:  # the overlap follows from it
            assert message.count(" there, ") <= 1, "no more than what differs"


def test_input_that_changed(refused: Callable[..., str], model: Path, good: Path, tmp_path: Path) -> None:
    score_inline(ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out")))
    good.write_text(good.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert "it differs in input (good.jsonl)" in refused()


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_folder_with_other_files(refused: Callable[..., str], tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    message = refused(overwrite=overwrite)
    assert "not empty and not an output of tokloss (thesis.txt)" in message


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["{", "{}", '{"hello": 1}', "[]"])
def test_run_record_of_another_program(
    refused: Callable[..., str], tmp_path: Path, content: str, overwrite: bool
) -> None:
    """`--overwrite` empties only folders that this program made."""
    (tmp_path / "out" / "scores").mkdir(parents=True)
    (tmp_path / "out" / "scores" / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "out" / "_run.json").write_text(content, encoding="utf-8")
    assert "out" in refused(overwrite=overwrite)
    assert (tmp_path / "out" / "scores" / "mine.txt").exists()


def test_output_that_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "is a file" in refused(output=tmp_path / "file")


def test_output_and_input_inside_each_other(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    source = shutil.copy(good, tmp_path / "data" / "deep" / "in.jsonl")
    message = refused(input=tmp_path / "data", output=tmp_path / "data" / "out")
    assert "lies inside the input folder" in message
    message = refused(input=source, output=tmp_path / "data")
    assert "--output" in message


# Settings.


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("model: [a, b", ["config.yaml is not valid YAML"]),
        ("- model\n- input\n", ["config.yaml must contain a mapping"]),
        ("modell: x\nmodel: m\ninput: i\noutput: o\n", ["--modell is not a setting", "--help"]),
        ("model: m\noutput: o\n", ["--input is required"]),
        ("model: m\ninput: i\noutput: o\nactors: 0\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nactors: 4,2\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nactors: many\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nactors: 1,2,3\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nmax-error-rate: 2\n", ["--max-error-rate", "less than or equal to 1"]),
        ("model: m\ninput: i\noutput: o\ndtype: float8\n", ["--dtype", "'float32'"]),
        ("model: m\ninput: i\noutput: o\nshard-tokens: lots\n", ["--shard-tokens", "integer"]),
        ("model: m\ninput: []\noutput: o\n", ["--input: give at least one input"]),
        ("model: m\ninput: i\noutput: o\nadd-column: lang\n", ["--add-column"]),
    ],
)
def test_wrong_settings_in_a_file(tmp_path: Path, content: str, wanted: list[str]) -> None:
    (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(Refused) as caught:
        make_config(read_yaml(str(tmp_path / "config.yaml")))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    for words in wanted:
        assert words in str(caught.value)


def test_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot read the configuration file .*nowhere\.yaml: No such file"):
        read_yaml(str(tmp_path / "nowhere.yaml"))


# Too many bad rows.


@pytest.mark.usefixtures("ray_session")
def test_more_bad_rows_than_allowed(model: Path, tmp_path: Path) -> None:
    """Exit 3 and no _SUCCESS, the good rows there; a higher rate then only writes _SUCCESS."""
    source = write_jsonl(tmp_path / "in.jsonl", [*GOOD_WORDS, row("a", tags=[0, 0])])
    settings = {"model": str(model), "input": str(source), "output": str(tmp_path / "out")}
    with pytest.raises(TooManyBadRows) as caught:
        score(ScoreConfig(**settings, max_error_rate=0.2))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "1 of 4 rows cannot be scored (length_mismatch 1), more than --max-error-rate 0.2" in message
    assert str(tmp_path / "out" / "errors") in message
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert len(read_rows(tmp_path / "out")) == 3
    assert len(read_rows(tmp_path / "out", "errors")) == 1
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*") if file.is_file()}

    rate = float(message.split("run again with --max-error-rate ")[1].split()[0])
    assert 0.25 <= rate < 0.5, "the rate that the sentence suggests is enough, and no free pass"
    summary = score(ScoreConfig(**settings, max_error_rate=rate))
    assert (summary.new_shards, summary.totals.error_rows, summary.finished_before) == (0, 1, False)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    now = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*") if file.is_file()}
    assert now == files, "nothing but _SUCCESS is written"


@pytest.mark.usefixtures("ray_session")
def test_mostly_bad_rows_stop_the_job_early(model: Path, tmp_path: Path) -> None:
    """More than half of the first thousand rows: a wrong column, which need not be read to the end."""
    count = 12_000
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", tags=[0] * (1 + (i % 10 > 0))) for i in range(count)])
    settings = {"model": str(model), "input": str(source), "output": str(tmp_path / "out"), "shard_tokens": 250}
    with pytest.raises(TooManyBadRows) as caught:
        score(ScoreConfig(**settings, max_error_rate=0.4))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith("stopped: ")
    assert "wrong column" in message
    rows = int(message.split("of the first ")[1].split(" rows")[0].replace(",", ""))
    assert 1000 <= rows < 2000
    assert not (tmp_path / "out" / "_SUCCESS").exists()


# The command line: the exit code, one sentence on standard error, nothing on standard output.


def one_sentence(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    assert done.returncode == exit_code, done.stderr[-2000:]
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("checking input")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("command", ["score", "check"])
def test_command_line_no_such_file(model: Path, tmp_path: Path, command: str) -> None:
    done = warm.tokloss(command, "-m", model, "-i", tmp_path / "nowhere.jsonl", "-o", tmp_path / "out")
    assert "nowhere.jsonl does not exist" in one_sentence(done, 2)


def test_command_line_missing_setting(good: Path) -> None:
    assert "--model is required" in one_sentence(warm.tokloss("score", "-i", good, "-o", "out"), 2)


def test_command_line_bad_actors(model: Path, good: Path, tmp_path: Path) -> None:
    done = warm.tokloss("score", "-m", model, "-i", good, "-o", tmp_path / "out", "--actors", "3,1")
    assert "--actors: expected N or MIN,MAX" in one_sentence(done, 2)


def test_command_line_bad_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: [", encoding="utf-8")
    assert "not valid YAML" in one_sentence(warm.tokloss("score", "--config", tmp_path / "c.yaml"), 2)


def test_command_line_unknown_option() -> None:
    done = warm.tokloss("score", "--modell", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--modell" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_line_not_a_token_classifier(model_copy: Path, good: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(model_copy)
    transformers.BertForMaskedLM(config).save_pretrained(model_copy)
    done = warm.tokloss("check", "-m", model_copy, "-i", good, "-o", tmp_path / "out")
    assert "BertForMaskedLM, not a token-classification model" in one_sentence(done, 2)


def test_command_line_unreachable_cluster(model: Path, good: Path, tmp_path: Path) -> None:
    """Nobody listens there: that is said within a minute, and not waited for."""
    done = warm.tokloss(
        "score", "-m", model, "-i", good, "-o", tmp_path / "out", "--address", "127.0.0.1:1", timeout=60
    )
    assert "no Ray cluster at 127.0.0.1:1" in one_sentence(done, 2)
    assert not (tmp_path / "out").exists()
