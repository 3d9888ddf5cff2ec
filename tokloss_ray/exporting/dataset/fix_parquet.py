"""A Parquet file with some tags replaced, written with the settings of whoever wrote it, as far as they are visible."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.dataset.fix_rows import ColumnOf, replaced

_CODECS = {"UNCOMPRESSED": "NONE", "LZ4_RAW": "LZ4"}
_ENCODINGS = ("BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
_NANOSECONDS_REACH = (1 << 63) // 1000  # microseconds from 1970: to the years 1677 and 2262
_AS_OTHERS_WRITE: dict[str, tuple[Any, ...]] = {
    "version": ("2.6", "2.4", "1.0"),
    "use_compliant_nested_type": (True, False),
    "use_deprecated_int96_timestamps": (False, True),
    "store_decimal_as_integer": (False, True),
    "write_time_adjusted_to_utc": (False, True),
}
"""Settings that show in names and types of the columns of a file; pyarrow's defaults first."""


def fix_parquet(data: bytes, columns: list[str], name: str, column_of: ColumnOf) -> bytes | None:
    """A Parquet file: row groups, schema and its metadata are kept, and the settings of `writer_settings`.

    columns: that `column_of` needs, to make the column `name` new.

    Raises:
        Refused: it has times that cannot be copied as they are.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    groups: dict[int, pa.Array] = {}
    start = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=columns)
        if (column := column_of(table, start)) is not None:
            groups[group] = column
        start += table.num_rows
    if not groups:
        return None
    file = pq.ParquetFile(pa.BufferReader(data), coerce_int96_timestamp_unit=_int96_unit(data))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, file.schema_arrow, **writer_settings(file)) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            if group in groups:
                table = replaced(table, name, groups[group])
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def writer_settings(file: pq.ParquetFile) -> dict[str, Any]:
    """What a `ParquetWriter` has to be told, so that another file is written like this one, which has a row group.

    That is the codec, dictionary or other encoding and statistics of each column, and indexes of pages; the version of
    the format, and how lists are named and times and decimals stored. Page sizes, compression levels and Bloom filters
    do not show.
    """
    settings: dict[str, Any] = {"store_schema": b"ARROW:schema" in (file.metadata.metadata or {})}
    # Files of an old version may have types that pyarrow writes in newer ones alone: names and types come first.
    tried = _AS_OTHERS_WRITE | {"version": (file.metadata.format_version, *_AS_OTHERS_WRITE["version"])}
    for name, values in tried.items():
        settings[name] = max(values, key=lambda value, name=name: _same_columns(file, settings | {name: value}))  # type: ignore[misc]
    paths = [column.path for column in _columns(_empty(file.schema_arrow, settings))]
    metadata = file.metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = {path: [group.column(i) for group in groups] for i, path in enumerate(paths)}
    encodings = {path: {name for chunk in of for name in chunk.encodings} for path, of in chunks.items()}
    dictionaries = [path for path, found in encodings.items() if any("DICTIONARY" in name for name in found)]
    others = {
        path: name for path, found in encodings.items() for name in _ENCODINGS if name in found
        if path not in dictionaries
    }  # fmt: skip
    return settings | {
        "compression": {path: _CODECS.get(of[0].compression, of[0].compression) for path, of in chunks.items()},
        "use_dictionary": dictionaries,
        "column_encoding": others or None,
        "write_statistics": [path for path, of in chunks.items() if any(chunk.is_stats_set for chunk in of)],
        "write_page_index": any(chunk.has_offset_index for of in chunks.values() for chunk in of),
        "sorting_columns": groups[0].sorting_columns or None,
    }


def _empty(schema: pa.Schema, settings: dict[str, Any]) -> pq.ParquetSchema:
    """The schema of a file without rows, as a writer with these settings makes it."""
    sink = io.BytesIO()
    pq.ParquetWriter(sink, schema, **settings).close()
    return pq.ParquetFile(sink).schema


def _columns(schema: pq.ParquetSchema) -> list[Any]:
    return [schema.column(i) for i in range(len(schema))]


def _same_columns(file: pq.ParquetFile, settings: dict[str, Any]) -> int:
    """How many columns have the same name and type in a file written with these settings."""
    pairs = zip(_columns(file.schema), _columns(_empty(file.schema_arrow, settings)), strict=True)
    return sum((a.path == b.path) + _same_type(a, b) for a, b in pairs)


def _same_type(a: Any, b: Any) -> bool:
    return (a.physical_type, str(a.logical_type)) == (b.physical_type, str(b.logical_type))


def _int96_unit(data: bytes) -> str | None:
    """The unit in which the INT96 times of a file can be read, so that none of them overflows or is cut short.

    In nanoseconds, 64 bits hold the years 1678 to 2261; Spark, for one, writes 9999 for "for ever".

    Raises:
        Refused: some have nanoseconds, others are of other years.
    """
    schema = pq.ParquetFile(pa.BufferReader(data)).schema
    times = [column.path for column in _columns(schema) if column.physical_type == "INT96"]
    if not times:
        return None
    exact, safe = (
        _integers(pq.ParquetFile(pa.BufferReader(data), coerce_int96_timestamp_unit=unit).read(times))
        for unit in ("ns", "us")
    )
    if not len(safe) or abs(safe).max() < _NANOSECONDS_REACH:
        return "ns"
    if (exact != safe * 1000).any():  # both overflow alike
        raise Refused("it has INT96 times beyond the year 2261 and others with nanoseconds: save it with INT64 times")
    return "us"


def _integers(table: pa.Table) -> np.ndarray:
    """All times in some columns, however deep, as int64."""
    found: list[np.ndarray] = []

    def visit(array: pa.Array) -> None:
        if pa.types.is_struct(array.type):
            for field in array.flatten():
                visit(field)
        elif pa.types.is_nested(array.type):
            for values in (array.keys, array.items) if pa.types.is_map(array.type) else (array.flatten(),):
                visit(values)
        elif pa.types.is_timestamp(array.type):
            found.append(array.drop_null().cast(pa.int64()).to_numpy(zero_copy_only=False))

    for column in table.columns:
        for chunk in column.chunks:
            visit(chunk)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
