"""Rows of one read unit, as its files have them, validated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed
from tokloss_ray.inputs.columns import schema_problem
from tokloss_ray.inputs.format import CHUNK_ROWS, UNREADABLE, RawChunk
from tokloss_ray.inputs.formats import format_named
from tokloss_ray.inputs.jsonl import json_table
from tokloss_ray.inputs.spans import to_words
from tokloss_ray.inputs.unit import FilePart, ReadUnit, RowRules
from tokloss_ray.inputs.units import CUT_WITH_CONTEXT
from tokloss_ray.inputs.validate import Chunk, PartRows, validate
from tokloss_ray.storage.files import is_local, is_pinned, listed, open_location
from tokloss_ray.threads import map_in_threads

READERS = 16
"""Small objects of a unit that are read at a time."""


def read_unit(rules: RowRules, unit: ReadUnit) -> Iterator[Chunk]:
    """Read and validate one unit, some rows at a time; at least one chunk, if an empty one.

    Raises:
        JobFailed: a file cannot be read (it is gone, or is not what its name says).
    """
    rows, sources = None, unit.sources
    documents = 0
    for rows in _joined(_read_parts(rules, unit)):
        if schema.BEGINS_DOCUMENT in rows.table.column_names:
            begins = rows.table.column(schema.BEGINS_DOCUMENT).to_numpy()
            numbers = documents + np.cumsum(begins)
            documents = int(numbers[-1]) if len(numbers) else documents
            column = pa.array(numbers, pa.int64()).cast(pa.string())
            rows = rows._replace(table=rows.table.append_column(schema.DOCUMENT, column))
        try:
            yield validate(rules, sources, rows)
        except pa.ArrowInvalid as error:
            raise _unreadable(sources[int(rows.parts[0]) if len(rows.parts) else 0], error) from error
    if rows is None:
        none = np.zeros(0, dtype=np.int64)
        empty = RawChunk(json_table(rules.columns, [], pa.int64()), none, [])
        yield validate(rules, sources, _together([(0, to_words(rules, empty) if rules.columns.spans else empty)]))


def _read_parts(rules: RowRules, unit: ReadUnit) -> Iterator[tuple[int, RawChunk]]:
    fs, _ = open_location(unit.parts[0].path)
    if is_local(fs) or len(unit.parts) == 1:
        chunks: Iterable[Iterable[RawChunk]] = (read_part(rules, part) for part in unit.parts)
    else:  # small objects take longer to ask for than to read
        chunks = map_in_threads(lambda part: list(read_part(rules, part)), unit.parts, READERS)
    for number, of_part in enumerate(chunks):
        for raw in of_part:
            yield number, raw


def read_part(rules: RowRules, part: FilePart) -> Iterator[RawChunk]:
    """Read what a unit has of one file.

    Raises:
        JobFailed: it cannot be read.
    """
    fs, path = open_location(part.path)
    if not is_pinned(part.path) and listed(fs, path).version != part.version:
        raise JobFailed(f"{part.source} has changed since the run began")
    unseen = part.rows is None
    try:
        for chunk in format_named(part.format).read(rules.columns, part):
            if unseen and chunk.schema is not None and (problem := schema_problem(rules.columns, chunk.schema)):
                raise JobFailed(f"cannot read {part.source}: {problem}")
            unseen = False
            yield chunk if rules.columns.spans is None else to_words(rules, chunk)
    except (*UNREADABLE, pa.ArrowInvalid) as error:
        raise _unreadable(part.source, error) from error


def _unreadable(source: str, error: Exception) -> JobFailed:
    reason = str(error).split("\n")[0]
    return JobFailed(f"cannot read {source}: {reason}")


def _joined(chunks: Iterable[tuple[int, RawChunk]]) -> Iterator[PartRows]:
    """Chunks of small files put together: what follows costs as much for four rows as for hundreds."""
    waiting: list[tuple[int, RawChunk]] = []
    rows = 0
    for number, chunk in chunks:
        count = chunk.table.num_rows
        fits = rows + count <= CHUNK_ROWS and len(waiting) < CHUNK_ROWS
        if waiting and not (fits and (not count or not rows or _same_columns(waiting, chunk))):
            yield _together(waiting)
            waiting, rows = [], 0
        waiting.append((number, chunk))
        rows += count
    if waiting:
        yield _together(waiting)


def _same_columns(waiting: list[tuple[int, RawChunk]], chunk: RawChunk) -> bool:
    first = next(other for _, other in waiting if other.table.num_rows)
    return first.table.schema.equals(chunk.table.schema)


def _together(chunks: list[tuple[int, RawChunk]]) -> PartRows:
    tables = [chunk.table for _, chunk in chunks if chunk.table.num_rows] or [chunks[0][1].table]
    numbers = np.array([number for number, _ in chunks], dtype=np.int32)
    return PartRows(
        tables[0] if len(tables) == 1 else pa.concat_tables(tables),
        np.repeat(numbers, [chunk.table.num_rows for _, chunk in chunks]),
        np.concatenate([chunk.source_rows for _, chunk in chunks]),
        [(number, record) for number, chunk in chunks for record in chunk.broken],
    )


def rows_before(rules: RowRules, unit: ReadUnit, count: int) -> pa.Table | None:
    """The last `count` good rows of the file before a unit's own; None where a unit has all of its files.

    Raises:
        JobFailed: the file cannot be read.
    """
    part = unit.parts[0]
    if len(unit.parts) > 1 or part.start == 0:
        return None
    size = count
    while True:
        first = max(0, part.start - size)
        beside = ReadUnit(unit.number, (replace(part, start=first, stop=part.start),))
        rows = pa.concat_tables(chunk.rows for chunk in read_unit(rules, beside))
        if rows.num_rows >= count or first == 0:
            return rows.slice(max(0, rows.num_rows - count))
        size *= 4


def rows_behind(rules: RowRules, unit: ReadUnit, count: int) -> pa.Table | None:
    """The first `count` good rows of the file behind a unit's own; None where a unit has all of its files.

    Raises:
        JobFailed: the file cannot be read.
    """
    part = unit.parts[-1]
    if len(unit.parts) > 1 or part.format not in CUT_WITH_CONTEXT or part.stop < 0:
        return None
    beside = ReadUnit(unit.number, (replace(part, start=part.stop, stop=-1),))
    found: list[pa.Table] = []
    for chunk in read_unit(rules, beside):
        found.append(chunk.rows)
        if sum(rows.num_rows for rows in found) >= count:
            break
    return pa.concat_tables(found).slice(0, count)
