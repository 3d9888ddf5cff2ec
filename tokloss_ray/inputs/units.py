"""The units a corpus is read in: runs of row groups and byte ranges of large files, several small files together."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.errors import Refused
from tokloss_ray.inputs import formats
from tokloss_ray.inputs.format import PACKED, UNREADABLE
from tokloss_ray.inputs.formats import format_named
from tokloss_ray.inputs.input_files import InputFile, InputFiles
from tokloss_ray.inputs.lines import MAX_RECORD
from tokloss_ray.inputs.listing import Inspected, inspect_file
from tokloss_ray.inputs.unit import PART_SCHEMA, FilePart, ReadUnit, units_of

SHARDS_PER_UNIT = 4
CUT_WITH_CONTEXT = ("parquet",)
"""Formats whose files are read in parts where rows have context: those of which rows beside a part can be read by their
number, at no great cost. All others are read whole then."""
MAX_FILES = 4096
"""Files that one unit may have: they are opened one after the other."""
_SAMPLE_ROWS = 200
_ENDLESS = 1 << 60


def text_records(file: InputFile) -> Iterator[tuple[Any, ...]]:
    """The records of a text file, JSON lines or sentences: of each the offset, then the bytes, then what there is."""
    part = FilePart(file.source, file.listed.path, file.listed.version, file.format, 0, -1, None, 0)
    records = format_named(file.format).records
    assert records is not None  # only of text is it asked
    return records(part)


def sample_json(file: InputFile) -> list[dict]:
    """The first records of a JSON lines file that parse to objects, and not more of them than fit into memory."""
    rows: list[dict] = []
    size = 0
    try:
        for number, (_, line, length) in enumerate(text_records(file)):
            size += len(line)
            if number == _SAMPLE_ROWS or (rows and size > MAX_RECORD):
                break
            try:
                row = json.loads(line) if length == len(line) else None
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                rows.append(row)
    except UNREADABLE as error:
        raise Refused(f"cannot read {file.source}: {error}") from None
    return rows


class _Cut(NamedTuple):
    """A part of a file: the file's place in the list, and what `FilePart` has; `rows` is -1 where it is not known."""

    file: int
    start: int
    stop: int
    rows: int
    size: int
    offset: int


def make_units(
    files: Sequence[InputFile],
    inspected: list[Inspected],
    shard_tokens: int,
    limit: int | None,
    first: int = 0,
    context: bool = False,
) -> list[ReadUnit]:
    """The plan: units of about SHARDS_PER_UNIT shards, in the order of the files; small files share one.

    A pure function of the files and the settings. Units are numbered from `first`. `limit` counts rows (for JSON lines,
    lines that are not blank). context: rows have context, so that of most formats files stay whole.
    """
    files = InputFiles.of(files)
    bytes_per_token = {item.name: item.bytes_per_token for item in formats.FORMATS}
    cuts = [array("q") for _ in _Cut._fields]
    numbers = array("q")
    unit, waiting, tokens = first, 0, 0.0
    for cut, format_ in _cuts(files, inspected, shard_tokens, limit, context):
        more = cut.size / bytes_per_token[format_]
        if waiting and (tokens + more > shard_tokens * SHARDS_PER_UNIT or waiting == MAX_FILES):
            unit, waiting, tokens = unit + 1, 0, 0.0
        numbers.append(unit)
        waiting += 1
        tokens += more
        for column, value in zip(cuts, cut, strict=True):
            column.append(value)
    columns = [np.array(column, dtype=np.int64) for column in cuts]
    return units_of(_parts(files.table, *columns), np.array(numbers, dtype=np.int64))


def _parts(
    files: pa.Table,
    file: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    rows: np.ndarray,
    size: np.ndarray,
    offset: np.ndarray,
) -> pa.Table:
    """Rows of PART_SCHEMA from the columns of cuts."""
    if not np.array_equal(file, np.arange(files.num_rows)):  # where all files are whole, their columns are shared
        files = files.take(pa.array(file))
    columns = {name: files.column(name) for name in ("source", "path", "version", "format")}
    columns |= {"start": start, "stop": stop, "size": size, "offset": offset, "file_size": files.column("size")}
    columns["rows"] = pa.array(rows, mask=rows < 0)
    return pa.table([columns[name] for name in PART_SCHEMA.names], PART_SCHEMA)


def _cuts(
    files: InputFiles, inspected: list[Inspected], shard_tokens: int, limit: int | None, context: bool
) -> Iterator[tuple[_Cut, str]]:
    """The files, the large ones in parts of about a unit, each with the name of its format."""
    left = limit
    groups = {item.file.source: item.groups for item in inspected}
    named = {item.name: item for item in formats.FORMATS}
    for number, source, size, form in _each(files.table):
        format_ = named[form]
        target = shard_tokens * SHARDS_PER_UNIT * format_.bytes_per_token
        if context and form not in CUT_WITH_CONTEXT:
            target = _ENDLESS
        parts: Iterable[tuple[int, int, int | None, int, int]]
        if format_.records is not None:
            if left is None and size and os.path.splitext(source.lower())[1] in PACKED:
                parts = [(0, -1, None, size, 0)]
            elif left is None:
                parts = _text_parts(size, size if format_.whole else target)
            else:
                parts = _first_records(files[number], left) if size else []
        elif source not in groups and left is None:
            parts = [(0, -1, None, size, 0)]
        else:  # a limit counts rows
            of_file = groups[source] if source in groups else inspect_file(files[number]).groups
            parts = _row_parts(of_file, target, left)
        for start, stop, rows, nbytes, offset in parts:
            yield _Cut(number, start, stop, -1 if rows is None else rows, nbytes, offset), form
            if left is not None:
                left -= rows or 0
        if left is not None and left <= 0:
            return


def _each(files: pa.Table) -> Iterator[tuple[int, str, int, str]]:
    """Place, source, size and format of each file."""
    first = 0
    for batch in files.select(["source", "size", "format"]).to_batches(max_chunksize=1 << 14):
        places = range(first, first + batch.num_rows)
        yield from zip(places, *(column.to_pylist() for column in batch.columns), strict=True)
        first += batch.num_rows


def _row_parts(
    groups: tuple[tuple[int, int, int], ...], target: int, left: int | None
) -> Iterator[tuple[int, int, int, int, int]]:
    """Runs of row groups as (first row, end row, rows, bytes, offset of the first)."""
    start = end = size = first = 0
    for number, (rows, nbytes, offset) in enumerate(groups):
        first = first if size else offset
        end += rows
        size += nbytes
        cut = end - start if left is None else min(end - start, left)
        if cut and (size >= target or number == len(groups) - 1 or cut == left):
            yield start, start + cut, cut, size, first
            if left is not None:
                left -= cut
                if not left:
                    return
            start, size = end, 0


def _text_parts(size: int, target: int) -> Iterator[tuple[int, int, int | None, int, int]]:
    """Byte ranges as (start, stop, None for the rows, bytes, 0)."""
    for start in range(0, size, max(1, target)):
        stop = min(start + target, size)
        yield start, stop, None, stop - start, 0


def _first_records(file: InputFile, left: int) -> Iterator[tuple[int, int, int | None, int, int]]:
    """As many records as a limit asks for, counted, as (0, stop, rows, bytes, 0): no more are read."""
    end = rows = 0
    try:
        for offset, data, *_ in text_records(file):
            end, rows = offset + len(data), rows + 1
            if rows == left:
                break
    except UNREADABLE as error:
        raise Refused(f"cannot read {file.source}: {error}") from None
    if rows:
        yield 0, end, rows, end, 0
