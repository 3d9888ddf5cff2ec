"""Odd but right input: strange sentences, empty files, every format and Arrow type, windows, limits, byte ranges.

Each test runs the stages in this process (`inline.py`) with a tiny model.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import math
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import models, reference
from tests.support.inline import Inline, read_rows, score_inline, write_jsonl
from tokloss_ray import ScoreConfig, score
from tokloss_ray.inputs import conll, lines, units
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.scoring import sample

Row = dict[str, Any]

SENTENCES = [["Anton", "wohnt", "in", "Berlin"], ["Die", "Stadt", "am", "See"], ["Anna", "und", "Otto", "Köln"]]
VOCABULARY = [word for words in SENTENCES for word in words]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
NO_TOKENS = "\u200b"  # a word of which the tokenizers here make nothing
CLOSE = {"rel": 1e-4, "abs": 1e-4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build("bert", tmp_path_factory.mktemp("model"), SENTENCES, TAGS, max_length=32)


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer adds no special tokens."""
    folder = tmp_path_factory.mktemp("bare")
    return models.build("bert", folder, SENTENCES, TAGS, max_length=32, special_tokens=False)


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., Inline]:
    """Score some input, into a new folder each time."""
    count = iter(range(100))

    def run_one(source: Path | str | list[str], *, using: Path = model, wrap: Any = None, **options: Any) -> Inline:
        source = [str(s) for s in source] if isinstance(source, list) else str(source)
        output = tmp_path / f"out{next(count)}"
        return score_inline(ScoreConfig(model=str(using), input=source, output=str(output), **options), wrap)

    return run_one


def row(*words: str, tags: list[Any] | None = None, **more: Any) -> Row:
    return {"tokens": list(words), "ner_tags": [0] * len(words) if tags is None else tags, **more}


def ids(result: Inline) -> list[str]:
    return [f"{r['source']}:{r['source_row']}" for r in result.rows]


# Sentences.


def test_tokenizer_without_special_tokens(run: Callable[..., Inline], bare_model: Path, tmp_path: Path) -> None:
    sentences = [row("Anton", "wohnt", tags=[1, 0]), row("Berlin", tags=[3]), row(*VOCABULARY * 5, tags=[0, 1] * 30)]
    result = run(write_jsonl(tmp_path / "in.jsonl", sentences), using=bare_model, overlap=6)
    first, second, *windows = result.rows
    assert first["input_tokens"] == ["Anton", "wohnt"]
    assert first["labels"] == ["B-PER", "O"]
    assert first["word_ids"] == [0, 1]
    model, tokenizer = reference.load(bare_model)
    for found, words, tags in ((first, ["Anton", "wohnt"], [1, 0]), (second, ["Berlin"], [3])):
        wanted = reference.reference_words(model, tokenizer, words, tags)
        assert found["loss"] == pytest.approx(wanted["loss"], **CLOSE)
        assert found["total_loss"] == pytest.approx(wanted["total_loss"], **CLOSE)
    # Windows have no room to keep for special tokens: 32 tokens each, 26 new ones in all but the first.
    assert [w["num_tokens"] for w in windows] == [32, 32, 8]
    assert [w["word_ids"][0] for w in windows] == [0, 26, 52]
    scored = [w["word_ids"][i] for w in windows for i, label in enumerate(w["labels"]) if label != "IGN"]
    assert sorted(scored) == list(range(60))


def test_row_of_which_no_token_remains(run: Callable[..., Inline], bare_model: Path, tmp_path: Path) -> None:
    """Without special tokens there is nothing to run the model on: the row goes to errors/."""
    source = write_jsonl(tmp_path / "in.jsonl", [row(NO_TOKENS), row("Anna"), row("", NO_TOKENS)])
    result = run(source, using=bare_model, max_error_rate=1)
    assert [r["words"] for r in result.rows] == [["Anna"]]
    assert [(e["stage"], e["reason"]) for e in result.errors] == [("encode", "empty")] * 2
    assert {e["detail"] for e in result.errors} == {"the tokenizer makes no token of it"}
    assert (result.totals.rows, result.totals.scored_rows, result.totals.error_rows) == (3, 1, 2)


def test_words_that_yield_no_tokens(run: Callable[..., Inline], tmp_path: Path) -> None:
    sentences = [row("Anna", NO_TOKENS, "Otto", "", tags=[1, 2, 3, 0]), row(NO_TOKENS, "", tags=[1, 1])]
    result = run(write_jsonl(tmp_path / "in.jsonl", sentences))
    some, none = result.rows
    assert some["words"] == ["Anna", NO_TOKENS, "Otto", ""]
    assert some["word_ids"] == [None, 0, 2, None]
    assert some["labels"] == ["IGN", "B-PER", "B-LOC", "IGN"]
    assert (some["num_labels"], some["num_dropped_words"]) == (2, 2)
    assert none["word_ids"] == [None, None]
    assert (none["num_tokens"], none["num_labels"], none["num_dropped_words"]) == (2, 0, 2)
    assert (none["total_loss"], none["mean_loss"], none["max_loss"]) == (0.0, None, None)
    assert result.totals.dropped_words == 4


def test_dropped_words_of_windows_are_counted_once(run: Callable[..., Inline], tmp_path: Path) -> None:
    words = [w for word in VOCABULARY * 10 for w in (word, NO_TOKENS)]
    result = run(write_jsonl(tmp_path / "in.jsonl", [row(NO_TOKENS, *words)]), overlap=7)
    assert len(result.rows) > 3
    assert sum(r["num_dropped_words"] for r in result.rows) == result.totals.dropped_words == 121
    assert result.totals.labels == 120


def test_empty_sentence(run: Callable[..., Inline], tmp_path: Path) -> None:
    """An error row, and no reason to touch its neighbours."""
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna"), row(), row("Otto")])
    result = run(source, max_error_rate=0.5)
    assert [r["words"] for r in result.rows] == [["Anna"], ["Otto"]]
    (error,) = result.errors
    assert (error["stage"], error["reason"], json.loads(error["payload"])) == ("read", "empty", row())
    assert error["example_id"] == f"in.jsonl:{error['source_row']}"


@pytest.mark.parametrize("special_tokens", [True, False])
def test_sentence_of_one_token(
    run: Callable[..., Inline], model: Path, bare_model: Path, tmp_path: Path, special_tokens: bool
) -> None:
    using = model if special_tokens else bare_model
    (found,) = run(write_jsonl(tmp_path / "in.jsonl", [row("Berlin", tags=[3])]), using=using).rows
    assert (found["num_tokens"], found["num_labels"]) == (3 if special_tokens else 1, 1)
    loaded, tokenizer = reference.load(using)
    wanted = reference.reference_words(loaded, tokenizer, ["Berlin"], [3])
    assert found["loss"] == pytest.approx(wanted["loss"], **CLOSE)
    assert found["total_loss"] == pytest.approx(found["mean_loss"]) == pytest.approx(found["max_loss"])


def test_pre_encoded_sentence_of_one_token(run: Callable[..., Inline], model: Path, tmp_path: Path) -> None:
    (found,) = run(write_jsonl(tmp_path / "in.jsonl", [{"input_ids": [9], "labels": [2]}])).rows
    loaded, tokenizer = reference.load(model)
    wanted = reference.reference_encoded(loaded, [9], [2], tokenizer=tokenizer)
    assert found["input_tokens"] == wanted["input_tokens"]
    assert found["loss"] == pytest.approx(wanted["loss"], **CLOSE)


class KnownLogits(torch.nn.Module):
    """In place of a model: 3 for the class `token id mod classes`, 0 for the others; costs next to nothing."""

    high = 3 - math.log(math.exp(3) + len(TAGS) - 1)  # log-probabilities of that class and of any other
    low = -math.log(math.exp(3) + len(TAGS) - 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        logits = torch.nn.functional.one_hot(input_ids % len(TAGS), len(TAGS)).float() * 3
        return SimpleNamespace(logits=logits)

    @classmethod
    def loss(cls, token_ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.where(token_ids % len(TAGS) == labels, -cls.high, -cls.low)


def test_sentence_of_a_million_tokens(run: Callable[..., Inline], model: Path, tmp_path: Path) -> None:
    """Each word is scored once, in windows whose words stand in the order of the sentence; memory stays in bounds."""
    count = 1_000_000
    rng = np.random.default_rng(0)
    words = [VOCABULARY[i] for i in rng.integers(0, len(VOCABULARY), count)]
    tags = rng.integers(0, len(TAGS), count)
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna"), row(*words, tags=tags.tolist()), row("Otto")])
    long_model = models.build("bert", tmp_path / "model", SENTENCES, TAGS, max_length=512)
    vocabulary = json.loads((long_model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    token_ids = np.array([vocabulary[word] for word in words])  # each word is one token
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run(source, using=long_model, wrap=lambda _: KnownLogits())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    windows = [r for r in result.rows if r["source_row"] not in (0, result.rows[-1]["source_row"])]
    assert [w["window"] for w in windows] == list(range(len(windows)))
    assert len(windows) == math.ceil((count - 64) / (510 - 64))  # 510 words a window, of which neighbours share 64
    assert windows[0]["words"] == words
    assert all(w["words"] is None for w in windows[1:]), "a million words in each window would be billions"
    scored = np.zeros(count, dtype=np.int64)
    for window in windows:
        here = np.array(window["word_ids"][1:-1])
        assert (np.diff(here) == 1).all()
        assert np.array_equal(window["input_ids"][1:-1], token_ids[here])
        labelled = np.array(window["labels"][1:-1]) != "IGN"
        scored[here[labelled]] += 1
        assert np.array(window["labels"])[1:-1][labelled].tolist() == [TAGS[t] for t in tags[here[labelled]]]
    assert (scored == 1).all()
    wanted = KnownLogits.loss(token_ids, tags).sum()
    assert sum(w["total_loss"] for w in windows) == pytest.approx(wanted, rel=1e-4)
    assert (result.totals.rows, result.totals.labels, result.totals.dropped_words) == (3, count + 2, 0)
    assert result.totals.sequences == len(windows) + 2
    whole = [record for record in result.records if record.tokens > 1 << 16]
    assert [record.scored_rows for record in whole] == [1], "the windows of a row stay together, and alone"
    assert grown < 1500, f"{grown:.0f} MB"


@pytest.mark.parametrize(
    "tags",
    [[None] * 4, [-100] * 4, ["IGN"] * 4],
    ids=["null", "ignore-index", "ign"],
)
@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_every_label_null(run: Callable[..., Inline], tmp_path: Path, tags: list[Any], file_format: str) -> None:
    sentences = [row(*SENTENCES[0], tags=tags), row(*SENTENCES[1], tags=tags)]
    if file_format == "jsonl":
        source = write_jsonl(tmp_path / "in.jsonl", sentences)
    else:
        source = tmp_path / "in.parquet"
        pq.write_table(pa.Table.from_pylist(sentences), source)  # list<null>, list<int64>, list<string>
    result = run(source)
    for found in result.rows:
        assert found["labels"] == ["IGN"] * 6
        assert found["loss"] == [0.0] * 6
        assert set(found["predicted_label"]) <= set(TAGS)
        assert (found["num_labels"], found["total_loss"], found["mean_loss"], found["max_loss"]) == (0, 0.0, None, None)
    assert (result.totals.rows, result.totals.labels, result.totals.mean_loss) == (2, 0, None)
    assert result.totals.loss_by_tag == {}


# Nothing to do.


def empty_parquet(path: Path) -> Path:
    schema = pa.schema([("tokens", pa.list_(pa.string())), ("ner_tags", pa.list_(pa.int64())), ("lang", pa.string())])
    pq.write_table(schema.empty_table(), path)
    return path


def zero_bytes(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content)
    return path


EMPTY: dict[str, Callable[[Path], Path]] = {
    "jsonl": lambda folder: zero_bytes(folder / "empty.jsonl"),
    "blank-jsonl": lambda folder: zero_bytes(folder / "blank.jsonl", b"\n  \r\n\n"),
    "gz": lambda folder: zero_bytes(folder / "empty.jsonl.gz", gzip.compress(b"")),
    "parquet": lambda folder: empty_parquet(folder / "empty.parquet"),
}


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("limit", [None, 5])
def test_input_of_no_rows(run: Callable[..., Inline], tmp_path: Path, kind: str, limit: int | None) -> None:
    result = run(EMPTY[kind](tmp_path), partition_by=["lang"], limit=limit)
    assert (result.totals.rows, result.totals.sequences, result.rows, result.errors) == (0, 0, [], [])
    output = Path(result.plan.job.output)
    assert (output / "_SUCCESS").exists()
    assert not list(output.rglob("scores/**/*.parquet"))


def test_empty_files_among_others(run: Callable[..., Inline], tmp_path: Path) -> None:
    """First in the list, so that columns and preflight must be taken from a later file."""
    empty = [make(tmp_path) for make in EMPTY.values()]
    full = write_jsonl(tmp_path / "full.jsonl", [row("Anna", lang="de"), row("Otto", lang=None)])
    result = run([*map(str, empty), str(full)], partition_by=["lang"])
    assert ids(result) == ["full.jsonl:0", f"full.jsonl:{len(full.read_bytes().splitlines()[0]) + 1}"]
    folders = {file.parent.name for file in Path(result.plan.job.output, "scores").rglob("*.parquet")}
    assert folders == {"lang=de", "lang=__HIVE_DEFAULT_PARTITION__"}


def test_saved_dataset_of_no_rows(run: Callable[..., Inline], tmp_path: Path) -> None:
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": TAG_LIST})
    datasets.Dataset.from_dict({"tokens": [], "ner_tags": []}, features=features).save_to_disk(tmp_path / "saved")
    assert run(tmp_path / "saved").totals.rows == 0


@pytest.mark.usefixtures("ray_session")
def test_job_without_rows_succeeds(model: Path, tmp_path: Path) -> None:
    """The whole job, Ray and actors included; and again, when it is finished."""
    files = [make(tmp_path) for make in EMPTY.values()]
    config = ScoreConfig(model=str(model), input=[str(file) for file in files], output=str(tmp_path / "out"))
    summary = score(config)
    assert (summary.totals.rows, summary.totals.error_rows, summary.finished_before) == (0, 0, False)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert read_rows(tmp_path / "out") == []
    assert score(config).finished_before


# JSON lines.


JSON_ROWS = [row("Köln", "日本"), row("Anna"), row(*SENTENCES[0]), row("Otto", "\U0001f600", "am", "See")] * 2


def encode_lines(separator: str = "\n", end: str = "\n", between: str = "") -> tuple[bytes, list[int]]:
    """JSON lines, and the offset of the first byte of each."""
    data, offsets = b"", []
    for number, sentence in enumerate(JSON_ROWS):
        offsets.append(len(data))
        data += json.dumps(sentence, ensure_ascii=False).encode()
        data += (end if number == len(JSON_ROWS) - 1 else separator + between).encode()
    return data, offsets


LINES = {
    "plain": encode_lines(),
    "crlf": encode_lines("\r\n", "\r\n"),
    "no-newline-at-the-end": encode_lines(end=""),
    "blank-lines": encode_lines(between="\n   \n\r\n", end="\n\n"),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("shard_tokens", [1, 3, None])
def test_lines(run: Callable[..., Inline], tmp_path: Path, name: str, shard_tokens: int | None) -> None:
    """Small shards make small byte ranges: each row comes once, numbered by its first byte."""
    data, offsets = LINES[name]
    result = run(zero_bytes(tmp_path / "in.jsonl", data), shard_tokens=shard_tokens)
    assert len(result.plan.units) == (1 if shard_tokens is None else math.ceil(len(data) / (48 * shard_tokens)))
    assert [r["source_row"] for r in result.rows] == offsets
    assert [r["example_id"] for r in result.rows] == [f"in.jsonl:{offset}" for offset in offsets]
    assert [r["words"] for r in result.rows] == [sentence["tokens"] for sentence in JSON_ROWS]


@pytest.mark.parametrize("name", LINES)
def test_every_boundary_between_byte_ranges(run: Callable[..., Inline], tmp_path: Path, name: str) -> None:
    data, offsets = LINES[name]
    path = zero_bytes(tmp_path / "in.jsonl", data)
    job = run(path).plan.job

    def source_rows(cuts: list[int]) -> list[int]:
        bounds = [0, *cuts, len(data)]
        version = str(path.stat().st_mtime)
        units = [
            ReadUnit(i, "in.jsonl", str(path), version, "jsonl", start, stop, None, stop - start)
            for i, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
        chunks = [chunk for unit in units for chunk in read_unit(job, unit)]
        assert not sum(chunk.errors.num_rows for chunk in chunks)
        return [number for chunk in chunks for number in chunk.rows.column("source_row").to_pylist()]

    for cut in range(1, len(data)):
        assert source_rows([cut]) == offsets
    rng = random.Random(0)
    for _ in range(10):
        assert source_rows(sorted(rng.sample(range(1, len(data)), 20))) == offsets


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_lines(run: Callable[..., Inline], tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    """A packed file cannot be entered midway: one unit, and offsets count the bytes of the text."""
    data, offsets = LINES["plain"]
    result = run(zero_bytes(tmp_path / f"in.jsonl{suffix}", pack(data)), shard_tokens=4)
    assert len(result.plan.units) == 1
    assert len(result.records) > 3
    assert [r["source_row"] for r in result.rows] == offsets
    assert [r["words"] for r in result.rows] == [sentence["tokens"] for sentence in JSON_ROWS]


def test_tags_of_two_kinds_in_one_file(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Integers in one row and strings in the next; the order of the rows stays."""
    sentences = [row("Anna", tags=[1]), row("Otto", tags=["B-PER"]), row("Otto", tags=[None]), row("See", tags=[3])]
    result = run(write_jsonl(tmp_path / "in.jsonl", sentences))
    assert [r["labels"][1] for r in result.rows] == ["B-PER", "B-PER", "IGN", "B-LOC"]
    assert [r["source_row"] for r in result.rows] == sorted(r["source_row"] for r in result.rows)


def test_ign_among_declared_tags(run: Callable[..., Inline], tmp_path: Path) -> None:
    """The preflight lets `IGN` pass as a name of the data: its positions are ignored."""
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", "am", "See", tags=[2, 1, 0])])
    (found,) = run(source, tags=["B-LOC", "IGN", "B-PER"]).rows
    assert found["labels"] == ["IGN", "B-PER", "IGN", "B-LOC", "IGN"]


# Parquet and Arrow.


def test_many_row_groups(run: Callable[..., Inline], tmp_path: Path) -> None:
    sentences = [row(*SENTENCES[i % 3][: 1 + i % 4], tags=[i % 4] * (1 + i % 4)) for i in range(40)]
    pq.write_table(pa.Table.from_pylist(sentences), tmp_path / "in.parquet", row_group_size=3)
    result = run(tmp_path / "in.parquet", tags=TAGS, shard_tokens=14)
    assert len(result.plan.units) > 3
    assert sum(unit.rows for unit in result.plan.units) == 40
    assert [r["source_row"] for r in result.rows] == list(range(40))
    assert [r["words"] for r in result.rows] == [sentence["tokens"] for sentence in sentences]
    assert [r["labels"][1] for r in result.rows] == [TAGS[i % 4] for i in range(40)]
    assert all(record.tokens <= 14 for record in result.records)


WORD_TYPES = {
    "list": pa.list_(pa.string()),
    "large_list": pa.large_list(pa.large_string()),
    "fixed_size_list": pa.list_(pa.string(), 4),
    "string_view": pa.list_(pa.string_view()),
}
INTEGERS = [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64()]


def as_type(rows: list[list[Any] | None], type_: pa.DataType) -> pa.Array:
    return pa.array(rows, type_)


def dictionaries(rows: list[list[str] | None], list_class: Any = pa.ListArray) -> pa.Array:
    """A list of dictionary-encoded strings."""
    values = pa.array([word for words in rows for word in words or []]).dictionary_encode()
    offsets = np.cumsum([0, *(len(words or []) for words in rows)])
    width = pa.int64() if list_class is pa.LargeListArray else pa.int32()
    return list_class.from_arrays(pa.array(offsets, width), values, mask=pa.array([words is None for words in rows]))


def check_types(result: Inline, tags: list[str]) -> None:
    """Rows 0 and 2 are scored, row 1 has no words."""
    assert [r["source_row"] for r in result.rows] == [0, 2]
    assert [r["words"] for r in result.rows] == [SENTENCES[0], SENTENCES[1]]
    assert [r["labels"] for r in result.rows] == [["IGN", *tags, "IGN"]] * 2
    assert [(e["source_row"], e["reason"]) for e in result.errors] == [(1, "null_field")]


@pytest.mark.parametrize(
    ("words_type", "integer"),
    [*(("list", integer) for integer in INTEGERS), *((words_type, pa.int16()) for words_type in WORD_TYPES)],
    ids=str,
)
def test_arrow_types(run: Callable[..., Inline], tmp_path: Path, words_type: str, integer: pa.DataType) -> None:
    if words_type == "fixed_size_list" and int(pa.__version__.split(".")[0]) < 22:
        pytest.skip("pyarrow before 22 cannot write a missing list of fixed size")
    type_ = WORD_TYPES[words_type]
    tags = {"fixed_size_list": pa.list_(integer, 4), "large_list": pa.large_list(integer)}
    columns = {
        "tokens": as_type([SENTENCES[0], None, SENTENCES[1]], type_),
        "ner_tags": as_type([[1, 0, 3, None]] * 3, tags.get(words_type, pa.list_(integer))),
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    result = run(tmp_path / "in.parquet", max_error_rate=0.5)
    check_types(result, ["B-PER", "O", "B-LOC", "IGN"])


@pytest.mark.parametrize("list_class", [pa.ListArray, pa.LargeListArray])
def test_dictionary_strings(run: Callable[..., Inline], tmp_path: Path, list_class: Any) -> None:
    columns = {
        "tokens": dictionaries([SENTENCES[0], None, SENTENCES[1]], list_class),
        "ner_tags": dictionaries([["B-PER", "O", "O", "B-LOC"]] * 3, list_class),
        "lang": pa.array(["de", "en", "de"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    result = run(tmp_path / "in.parquet", max_error_rate=0.5, keep=["lang"])
    check_types(result, ["B-PER", "O", "O", "B-LOC"])
    assert [r["lang"] for r in result.rows] == ["de", "de"]


TAG_LIST = datasets.List(datasets.ClassLabel(names=["B-LOC", "O", "B-PER", "I-PER"]))  # not the model's order


def saved(number: int) -> datasets.Dataset:
    """`number` rows whose words tell them apart, tagged O, B-LOC, B-PER, O by the names of `TAG_LIST`."""
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": TAG_LIST})
    words = [[f"w{i}", *SENTENCES[0][:3]] for i in range(number)]
    return datasets.Dataset.from_dict({"tokens": words, "ner_tags": [[1, 0, 2, 1]] * number}, features=features)


def labels_by_first_word(result: Inline) -> dict[str, list[str]]:
    return {r["words"][0]: [label for label in r["labels"] if label != "IGN"] for r in result.rows}


def test_saved_dataset(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Three Arrow files, tag names from the ClassLabel feature, mapped by name."""
    saved(11).save_to_disk(tmp_path / "saved", num_shards=3)
    result = run(tmp_path / "saved")
    assert labels_by_first_word(result) == {f"w{i}": ["O", "B-LOC", "B-PER", "O"] for i in range(11)}
    assert len({r["source"] for r in result.rows}) == 3
    assert len({r["example_id"] for r in result.rows}) == 11
    assert not result.plan.warnings


def test_saved_dataset_that_was_filtered(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Rows that were filtered away before saving do not come back."""
    kept = saved(20).shuffle(seed=0).filter(lambda row: int(row["tokens"][0][1:]) % 3 == 0)
    kept.save_to_disk(tmp_path / "saved")
    assert set(labels_by_first_word(run(tmp_path / "saved"))) == {f"w{i}" for i in range(0, 20, 3)}


def test_saved_dataset_dict(run: Callable[..., Inline], tmp_path: Path) -> None:
    data = datasets.DatasetDict({"train": saved(7), "validation": saved(3)})
    data.save_to_disk(tmp_path / "saved")
    result = run(tmp_path / "saved", split="validation")
    assert len(result.rows) == 3
    assert all(r["source"].startswith("validation/") for r in result.rows)
    assert len(run(tmp_path / "saved" / "train").rows) == 7


def test_saved_dataset_dict_of_one_split_needs_no_choice(run: Callable[..., Inline], tmp_path: Path) -> None:
    datasets.DatasetDict({"validation": saved(3)}).save_to_disk(tmp_path / "saved")
    assert len(run(tmp_path / "saved").rows) == 3


def test_class_labels_in_parquet(run: Callable[..., Inline], tmp_path: Path) -> None:
    saved(3).to_parquet(tmp_path / "in.parquet")
    assert set(map(tuple, labels_by_first_word(run(tmp_path / "in.parquet")).values())) == {
        ("O", "B-LOC", "B-PER", "O")
    }


# Which files.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five files of two rows each, in folders, and some that are not input."""
    root = tmp_path / "data"
    for name in ("b.parquet", "a.jsonl", "sub/c.parquet", "sub/deep/d.ndjson", "sub/e.jsonl.gz"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sentences = [row(name, "eins"), row(name, "zwei")]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(sentences), path)
        else:
            write_jsonl(path, sentences)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    for name in ("README.md", ".hidden.jsonl", "_old/x.jsonl", "_SUCCESS"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no input\n", encoding="utf-8")
    return root


def names_and_sources(result: Inline) -> list[tuple[str, str]]:
    """(the file's name as its rows say, source) in the order of the output, each once."""
    return list(dict.fromkeys((r["words"][0], r["source"]) for r in result.rows))


def test_folder(run: Callable[..., Inline], tree: Path) -> None:
    result = run(tree)
    assert len(result.rows) == 10
    wanted = ["a.jsonl", "b.parquet", "sub/c.parquet", "sub/deep/d.ndjson", "sub/e.jsonl.gz"]
    assert names_and_sources(result) == [(name, name) for name in wanted]


def test_files_of_a_folder_that_are_no_input_are_named(run: Callable[..., Inline], tree: Path) -> None:
    """Not those that nobody expects to be read, and not those that are named themselves."""
    assert not run(tree, tags=TAGS).plan.warnings
    for name in ("notes.txt", "sub/f.csv", "sub/deep/g.TSV.gz", "z.bin", "zz.bin"):
        (tree / name).write_text("Anna O\n")
    (warning,) = run(tree, tags=TAGS).plan.warnings
    assert warning == (
        f"5 files in {tree} are no input, going by the name, and left out: notes.txt, sub/deep/g.TSV.gz, sub/f.csv "
        "and 2 more; files of CoNLL columns called .txt or .tsv are read where --input names them"
    )
    named = run([str(tree / "sub"), str(tree / "notes.txt")], limit=3, tags=TAGS)
    (warning,) = named.plan.warnings
    assert warning.startswith(f"2 files in {tree / 'sub'} are no input")
    assert not run([str(tree / "*.parquet"), str(tree / "a.jsonl")], tags=TAGS).plan.warnings


def test_files_beside_a_saved_dataset_are_named(run: Callable[..., Inline], tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": saved(1), "test": saved(2)})
    both.save_to_disk(tmp_path / "both")
    (tmp_path / "both" / "README.md").write_text("no input")
    (tmp_path / "both" / "train" / "cache-123.arrow").write_bytes(b"")
    (tmp_path / "both" / "test" / "more.jsonl").write_text("")
    assert not run(tmp_path / "both", split="train").plan.warnings
    (warning,) = run(tmp_path / "both", split="test").plan.warnings
    assert warning == f"1 file in {tmp_path / 'both'} is no input, going by the name, and left out: test/more.jsonl"


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.parquet", {"b.parquet": "b.parquet"}),
        ("sub/*.*", {"sub/c.parquet": "c.parquet", "sub/e.jsonl.gz": "e.jsonl.gz"}),
        ("**/*.parquet", {"b.parquet": "b.parquet", "sub/c.parquet": "sub/c.parquet"}),
        ("s*/deep/?.ndjson", {"sub/deep/d.ndjson": "sub/deep/d.ndjson"}),
    ],
)
def test_glob(run: Callable[..., Inline], tree: Path, pattern: str, wanted: dict[str, str]) -> None:
    """`source` is relative to the folder before the first wildcard."""
    assert dict(names_and_sources(run(tree / pattern))) == wanted


def test_several_inputs(run: Callable[..., Inline], tree: Path) -> None:
    """In the order given, a file that is named twice only once, names relative to what they have in common."""
    result = run([str(tree / "sub" / "*.parquet"), str(tree / "a.jsonl"), str(tree / "sub"), str(tree / "a.jsonl")])
    assert [source for _, source in names_and_sources(result)] == [
        "sub/c.parquet",
        "a.jsonl",
        "sub/deep/d.ndjson",
        "sub/e.jsonl.gz",
    ]
    assert len(result.rows) == 8


def test_default_example_id(run: Callable[..., Inline], tree: Path) -> None:
    result = run(tree)
    assert [r["example_id"] for r in result.rows if r["source"] == "sub/c.parquet"] == [
        "sub/c.parquet:0",
        "sub/c.parquet:1",
    ]
    second = len((tree / "a.jsonl").read_bytes().splitlines()[0]) + 1
    assert [r["example_id"] for r in result.rows if r["source"] == "a.jsonl"] == ["a.jsonl:0", f"a.jsonl:{second}"]


def test_file_whose_name_looks_like_a_pattern(run: Callable[..., Inline], tmp_path: Path) -> None:
    (tmp_path / "x[1]").mkdir()
    source = write_jsonl(tmp_path / "x[1]" / "what?.jsonl", [row("Anna")])
    assert ids(run(source)) == ["what?.jsonl:0"]


# Limits.


@pytest.mark.parametrize(("limit", "shard_tokens"), [(1, 4), (3, 1000), (4, 4), (9, 4), (10, 1000), (11, 4), (30, 4)])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
def test_limit_across_files(
    run: Callable[..., Inline], tmp_path: Path, limit: int, suffix: str, shard_tokens: int
) -> None:
    """The first rows in the order of the files, wherever the limit falls: in a row group, at its end, in no file."""
    names = []
    for file in range(3):
        sentences = [row(f"{file}-{i}", tags=["O"]) for i in range(5)]
        names += [sentence["tokens"][0] for sentence in sentences]
        path = tmp_path / f"{file}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(sentences), path, row_group_size=2)
        else:
            lines = "\n".join(json.dumps(sentence) for sentence in sentences).replace("\n", "\n\n").encode()
            path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    result = run(tmp_path / f"*.{suffix}", limit=limit, shard_tokens=shard_tokens)
    assert [r["words"][0] for r in result.rows] == names[:limit]
    assert result.totals.rows == result.plan.rows == min(limit, 15)


def test_limit_counts_bad_rows(run: Callable[..., Inline], tmp_path: Path) -> None:
    """`--limit` is about rows read: 3 rows in, whatever becomes of them."""
    source = zero_bytes(tmp_path / "in.jsonl", b'{"tokens": ["a"], "ner_tags": [0]}\nnot json\n\n[]\n{"tokens": []}\n')
    result = run(source, limit=3, max_error_rate=1)
    assert (result.totals.rows, result.totals.scored_rows, result.totals.error_rows) == (3, 1, 2)


# Records that are too long to be held in memory.


@pytest.fixture
def short_records(monkeypatch: pytest.MonkeyPatch) -> int:
    """Records of 1,000 bytes are the longest, of which 100 are kept."""
    for module in (lines, conll, units, sample):
        monkeypatch.setattr(module, "MAX_RECORD", 1000)
    monkeypatch.setattr(lines, "KEPT", 100)
    monkeypatch.setattr(conll, "KEPT", 100)
    monkeypatch.setattr(lines, "_STEP", 64)
    return 1000


LONG_JSON = {
    "one": lambda n: [f'{{"tokens": ["{"x" * n}"], "ner_tags": ["O"]}}'],
    "three": lambda n: [f'{{"tokens": ["{"x" * m}"]}}' for m in (n, 2 * n, 10 * n)],
    "spaces-before": lambda n: [" " * n + '{"tokens": ["a"], "ner_tags": ["O"]}'],
    "spaces-behind": lambda n: ['{"tokens": ["a"], "ner_tags": ["O"]}' + " " * n],
}


@pytest.mark.parametrize(("where", "suffix"), [("first", ""), ("between", ".gz"), ("last", ".bz2"), ("last", ".xz")])
@pytest.mark.parametrize("name", LONG_JSON)
def test_lines_that_are_too_long(
    run: Callable[..., Inline], tmp_path: Path, short_records: int, name: str, where: str, suffix: str
) -> None:
    """They are in errors/ with their beginning; blank lines, of whatever length, are no rows."""
    good = [json.dumps(row("a", tags=["O"])), json.dumps(row("b", tags=["O"])), " " * 2 * short_records]
    long = LONG_JSON[name](short_records)
    texts = {"first": [*long, *good], "between": [*good[:1], *long, *good[1:]], "last": [*good, *long]}[where]
    data = "\n".join(texts).encode()
    packed = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](data)
    (tmp_path / f"in.jsonl{suffix}").write_bytes(packed)
    result = run(tmp_path / f"in.jsonl{suffix}", max_error_rate=0.9)
    assert [r["words"] for r in result.rows] == [["a"], ["b"]]
    assert [(e["source_row"], e["reason"]) for e in result.errors] == [
        (data.index(text.encode()), "malformed") for text in long
    ]
    assert [e["payload"] for e in result.errors] == [text[:100].strip() for text in long]
    ends = [data.index(text.encode()) + len(text) < len(data) for text in long]
    for error, text, line_break in zip(result.errors, long, ends, strict=True):
        assert error["detail"].startswith(f"{len(text) + line_break:,} bytes, of which a record may have 1,000")


@pytest.mark.parametrize("shard_tokens", [1, 5, None])
def test_long_lines_and_byte_ranges(
    run: Callable[..., Inline], tmp_path: Path, short_records: int, shard_tokens: int | None
) -> None:
    """A line that covers whole byte ranges is one row."""
    texts = [json.dumps(row(f"w{i}", tags=["O"])) for i in range(6)]
    texts.insert(3, LONG_JSON["one"](2500)[0])
    (tmp_path / "in.jsonl").write_text("\n".join(texts))
    result = run(tmp_path / "in.jsonl", max_error_rate=0.9, shard_tokens=shard_tokens)
    assert sorted(r["words"][0] for r in result.rows) == [f"w{i}" for i in range(6)]
    assert len(result.errors) == 1


LONG_CONLL = {
    "word": lambda n: "x" * n + " O\nb O\n",
    "words": lambda n: "".join(f"w{i} O\n" for i in range(n // 4)),
    "comments": lambda n: "# a = b\n" * (n // 7) + "a O\n",
    "comment": lambda n: "# " + "x" * n + "\nb O\n",
    "spaces": lambda n: "a" + " " * n + "O\n",
}


@pytest.mark.parametrize("shard_tokens", [1, None])
@pytest.mark.parametrize("name", LONG_CONLL)
def test_sentences_that_are_too_long(
    run: Callable[..., Inline], tmp_path: Path, short_records: int, name: str, shard_tokens: int | None
) -> None:
    good = [f"Anna{i} O\nund O\n" for i in range(8)]
    long = [LONG_CONLL[name](short_records), LONG_CONLL[name](3 * short_records)]
    text = "\n".join([*good[:3], long[0], *good[3:5], " " * 3000 + "\n", *good[5:], long[1]])
    (tmp_path / "in.conll").write_text(text)
    result = run(tmp_path / "in.conll", max_error_rate=0.9, shard_tokens=shard_tokens)
    assert sorted(r["words"][0] for r in result.rows) == [f"Anna{i}" for i in range(8)]
    first_word = {"comments": "\na O\n", "comment": "\nb O\n"}.get(name)
    at = [text.index(part) + (part.index(first_word) + 1 if first_word else 0) for part in long]
    assert [e["source_row"] for e in sorted(result.errors, key=lambda e: e["source_row"])] == at
    assert all(len(e["payload"]) <= 100 and "record may have 1,000" in e["detail"] for e in result.errors)


MEASURE = """
import resource, sys
from tokloss_ray import ScoreConfig
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.inputs.read import read_unit

def read(source):
    config = ScoreConfig(model=sys.argv[1], input=source, output=sys.argv[4])
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    chunks = [chunk for unit in plan.units for chunk in read_unit(plan.job, unit)]
    return sum(c.rows.num_rows for c in chunks), sum(c.errors.num_rows for c in chunks)

read(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*read(sys.argv[3]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_for_a_line_of_400_megabytes(model: Path, tmp_path: Path) -> None:
    """In a packed file of 2 MB; it took 2.9 GB."""
    good = (json.dumps(row("Anna", tags=["O"])) + "\n").encode()
    (tmp_path / "small.jsonl").write_bytes(good * 20)
    with gzip.open(tmp_path / "big.jsonl.gz", "wb", 1) as file:
        file.write(good * 10 + b'{"tokens": ["')
        for _ in range(400):
            file.write(b"ab c" * (1 << 18))
        file.write(b'"]}\n' + good * 10)
    names = [str(model), str(tmp_path / "small.jsonl"), str(tmp_path / "big.jsonl.gz"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows, errors, grown = map(int, done.stdout.split())
    assert (rows, errors) == (20, 1)
    assert grown < 200, "MB"
