"""Words and tags in every type that Arrow and Parquet have for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline
from tests.support.tiny import (
    SENTENCES,
)

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
    type_ = WORD_TYPES[words_type]
    tags = {"fixed_size_list": pa.list_(integer, 4), "large_list": pa.large_list(integer)}
    columns = {
        "tokens": as_type([SENTENCES[0], None, SENTENCES[1]], type_),
        "ner_tags": as_type([[1, 0, 3, None]] * 3, tags.get(words_type, pa.list_(integer))),
    }
    try:
        pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow does not write it: {error}")
    result = run(tmp_path / "in.parquet", max_error_rate=0.5)
    check_types(result, ["B-PER", "O", "B-LOC", "IGN"])


@pytest.mark.parametrize("list_class", [pa.ListArray, pa.LargeListArray])
def test_dictionary_strings(run: Callable[..., Inline], tmp_path: Path, list_class: Any) -> None:
    columns = {
        "tokens": dictionaries([SENTENCES[0], None, SENTENCES[1]], list_class),
        "ner_tags": dictionaries([["B-PER", "O", "O", "B-LOC"]] * 3, list_class),
        "lang": pa.array(["de", "en", "de"]).dictionary_encode(),
    }
    try:
        pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow does not write it: {error}")
    result = run(tmp_path / "in.parquet", max_error_rate=0.5, keep=["lang"])
    check_types(result, ["B-PER", "O", "O", "B-LOC"])
    assert [r["lang"] for r in result.rows] == ["de", "de"]
