"""A tiny model and rows for it; `fixtures.py` has the fixtures that go with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.inline import Inline

Row = dict[str, Any]
SENTENCES = [["Anton", "wohnt", "in", "Berlin"], ["Die", "Stadt", "am", "See"], ["Anna", "und", "Otto", "Köln"]]
VOCABULARY = [word for words in SENTENCES for word in words]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
MAX_LENGTH = 32


def row(*words: Any, tags: Any = None, **more: Any) -> Row:
    return {"tokens": list(words), "ner_tags": [0] * len(words) if tags is None else tags, **more}


GOOD_WORDS = [row("Anna", "und", tags=[1, 0]), row("Otto", tags=[1]), row("See", tags=[0])]


def ids(result: Inline) -> list[str]:
    return [f"{r['source']}:{r['source_row']}" for r in result.rows]


def vocabulary(model: Path) -> dict[str, int]:
    return json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


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


def zero_bytes(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content)
    return path


def empty_parquet(path: Path) -> Path:
    schema = pa.schema([("tokens", pa.list_(pa.string())), ("ner_tags", pa.list_(pa.int64())), ("lang", pa.string())])
    pq.write_table(schema.empty_table(), path)
    return path


EMPTY: dict[str, Callable[[Path], Path]] = {
    "jsonl": lambda folder: zero_bytes(folder / "empty.jsonl"),
    "blank-jsonl": lambda folder: zero_bytes(folder / "blank.jsonl", b"\n  \r\n\n"),
    "gz": lambda folder: zero_bytes(folder / "empty.jsonl.gz", gzip.compress(b"")),
    "parquet": lambda folder: empty_parquet(folder / "empty.parquet"),
}
TAG_LIST = datasets.List(datasets.ClassLabel(names=["B-LOC", "O", "B-PER", "I-PER"]))  # not the model's order


def saved(number: int) -> datasets.Dataset:
    """`number` rows whose words tell them apart, tagged O, B-LOC, B-PER, O by the names of `TAG_LIST`."""
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": TAG_LIST})
    words = [[f"w{i}", *SENTENCES[0][:3]] for i in range(number)]
    return datasets.Dataset.from_dict({"tokens": words, "ner_tags": [[1, 0, 2, 1]] * number}, features=features)


def labels_by_first_word(result: Inline) -> dict[str, list[str]]:
    return {r["words"][0]: [label for label in r["labels"] if label != "IGN"] for r in result.rows}


def class_labels(names: list[str]) -> datasets.Dataset:
    labels = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": labels})
    return datasets.Dataset.from_dict({"tokens": [["Anna"]], "ner_tags": [[0]]}, features=features)
