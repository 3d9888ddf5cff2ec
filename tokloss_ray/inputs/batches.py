"""Record batches of Parquet and Arrow files as rows of a part, those apart whose strings are not UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tokloss_ray.inputs.arrow_types import is_text
from tokloss_ray.inputs.format import RawChunk
from tokloss_ray.inputs.unit import FilePart


def is_valid(batch: pa.RecordBatch | pa.Table) -> bool:
    """Whether all strings are UTF-8. Of a slice Arrow looks at all strings of what it is a slice of."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def row_range(batch: pa.RecordBatch, row: int, part: FilePart, valid: bool = False) -> Iterator[RawChunk]:
    """The part of a batch, whose first row has number `row`, that belongs to the part. valid: its strings are."""
    stop = row + batch.num_rows if part.stop < 0 else min(part.stop, row + batch.num_rows)
    start = max(part.start, row)
    if start < stop:
        table = pa.Table.from_batches([batch.slice(start - row, stop - start)])
        rows = np.arange(start, stop)
        yield RawChunk(table, rows, []) if valid else _valid_text(table, rows)


def _valid_text(table: pa.Table, source_rows: np.ndarray) -> RawChunk:
    """Set rows apart whose strings are not UTF-8: files do not promise it, and Arrow fails on them late."""
    if is_valid(table):
        return RawChunk(table, source_rows, [])
    good = np.ones(table.num_rows, dtype=bool)
    broken = []
    for i in range(table.num_rows):
        try:
            table.take([i]).validate(full=True)
        except pa.ArrowInvalid as error:
            good[i] = False
            detail = f"not UTF-8: {error}"
            broken.append(
                {
                    "source_row": int(source_rows[i]),
                    "reason": "malformed",
                    "detail": detail,
                    "payload": _bytes_of(table, i),
                }
            )
    return RawChunk(table.filter(pa.array(good)), source_rows[good], broken)


def _bytes_of(table: pa.Table, i: int) -> str:
    """A row as JSON, with replacement characters where a string is not UTF-8."""

    def plain(value: pa.Scalar) -> Any:
        if isinstance(value, pa.ListScalar) and value.is_valid:
            return [plain(item) for item in value.values]
        if value.is_valid and is_text(value.type):
            return value.as_buffer().to_pybytes().decode("utf-8", "replace")
        return value.as_py()

    return json.dumps(
        {name: plain(table.column(name)[i]) for name in table.column_names}, ensure_ascii=False, default=str
    )
