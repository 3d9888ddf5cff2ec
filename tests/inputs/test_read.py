"""Rows that are read and rows that are refused: every reason to end in errors/ that reading finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, score_inline, write_jsonl
from tests.support.tiny import (
    EMPTY,
    GOOD_WORDS,
    SENTENCES,
    TAGS,
    VOCABULARY,
    Row,
    check_one_error,
    row,
)
from tokloss_ray import ScoreConfig

GOOD_STRINGS = [row("Anna", "und", tags=["B-PER", "O"]), row("Otto", tags=["B-PER"]), row("See", tags=["O"])]
GOOD_ENCODED = [{"input_ids": [2, 7, 3], "labels": [-100, 1, -100]}] * 3
GOOD_MASKED = [sentence | {"attention_mask": [1, 1, 0]} for sentence in GOOD_ENCODED]
BAD_ROWS: dict[str, tuple[str, list[Row], Row, str]] = {
    # name: reason, good rows around it, the bad row, what its detail must say
    "no-words": ("empty", GOOD_WORDS, row(), "tokens has no words"),
    "no-tokens": ("empty", GOOD_ENCODED, {"input_ids": [], "labels": []}, "input_ids has no tokens"),
    "null-words": ("null_field", GOOD_WORDS, {"tokens": None, "ner_tags": [0]}, "tokens is null"),
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
    error = check_one_error(score_inline(config), GOOD_WORDS, "too_long", "encode", "38 tokens, but at most 32")
    assert long_row["tokens"] in json.loads(error["payload"]).values()


def test_payload_of_a_late_error_is_the_row(model: Path, tmp_path: Path) -> None:
    """A row refused by a later stage is given back as it came, with its own columns and tags."""
    long_row = row(*VOCABULARY * 3, tags=["B-LOC"] * 36)
    source = write_jsonl(tmp_path / "in.jsonl", [long_row])
    config = ScoreConfig(
        model=str(model), input=str(source), output=str(tmp_path / "out"), overflow="reject", max_error_rate=1
    )
    assert json.loads(score_inline(config).errors[0]["payload"]) == long_row


def test_empty_sentence(run: Callable[..., Inline], tmp_path: Path) -> None:
    """An error row, and no reason to touch its neighbours."""
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna"), row(), row("Otto")])
    result = run(source, max_error_rate=0.5)
    assert [r["words"] for r in result.rows] == [["Anna"], ["Otto"]]
    (error,) = result.errors
    assert (error["stage"], error["reason"], json.loads(error["payload"])) == ("read", "empty", row())
    assert error["example_id"] == f"in.jsonl:{error['source_row']}"


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


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("limit", [None, 5])
def test_input_of_no_rows(run: Callable[..., Inline], tmp_path: Path, kind: str, limit: int | None) -> None:
    result = run(EMPTY[kind](tmp_path), partition_by=["lang"], limit=limit)
    assert (result.totals.rows, result.totals.sequences, result.rows, result.errors) == (0, 0, [], [])
    output = Path(result.plan.job.output)
    assert (output / "_SUCCESS").exists()
    assert not list(output.rglob("scores/**/*.parquet"))
