"""The units a corpus is read in: runs of row groups and byte ranges of large files, several small files together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from tokloss_ray.errors import Refused
from tokloss_ray.inputs import formats
from tokloss_ray.inputs.format import PACKED, UNREADABLE
from tokloss_ray.inputs.formats import format_named
from tokloss_ray.inputs.lines import MAX_RECORD
from tokloss_ray.inputs.listing import InputFile, Inspected, inspect_file
from tokloss_ray.inputs.unit import FilePart, ReadUnit

SHARDS_PER_UNIT = 4
MAX_FILES = 4096
"""Files that one unit may have: they are opened one after the other."""
_SAMPLE_ROWS = 200


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


def make_units(
    files: list[InputFile], inspected: list[Inspected], shard_tokens: int, limit: int | None, first: int = 0
) -> list[ReadUnit]:
    """The plan: units of about SHARDS_PER_UNIT shards, in the order of the files; small files share one.

    A pure function of the files and the settings. Units are numbered from `first`. `limit` counts rows (for JSON lines,
    lines that are not blank).
    """
    units: list[ReadUnit] = []
    bytes_per_token = {item.name: item.bytes_per_token for item in formats.FORMATS}
    waiting: list[FilePart] = []
    tokens = 0.0

    def close() -> None:
        nonlocal tokens
        if waiting:
            units.append(ReadUnit(first + len(units), tuple(waiting)))
        waiting.clear()
        tokens = 0.0

    for part in _file_parts(files, inspected, shard_tokens, limit):
        more = part.size / bytes_per_token[part.format]
        if tokens + more > shard_tokens * SHARDS_PER_UNIT or len(waiting) == MAX_FILES:
            close()
        waiting.append(part)
        tokens += more
    close()
    return units


def _file_parts(
    files: list[InputFile], inspected: list[Inspected], shard_tokens: int, limit: int | None
) -> Iterator[FilePart]:
    """The files, the large ones in parts of about a unit."""
    left = limit
    groups = {item.file.source: item.groups for item in inspected}
    for file in files:
        format_ = format_named(file.format)
        target = shard_tokens * SHARDS_PER_UNIT * format_.bytes_per_token
        parts: Iterable[tuple[int, int, int | None, int, int]]
        if format_.records is not None:
            parts = _text_parts(file, target, left)
        elif file.source not in groups and left is None:
            parts = [(0, -1, None, file.listed.size, 0)]
        else:  # a limit counts rows
            of_file = groups[file.source] if file.source in groups else inspect_file(file).groups
            parts = _row_parts(of_file, target, left)
        for start, stop, rows, size, offset in parts:
            where = file.source, file.listed.path, file.listed.version, file.format
            yield FilePart(*where, start, stop, rows, size, offset, file.listed.size)
            if left is not None:
                left -= rows or 0
        if left is not None and left <= 0:
            return


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


def _text_parts(file: InputFile, target: int, left: int | None) -> Iterator[tuple[int, int, int | None, int, int]]:
    """Byte ranges as (start, stop, rows or None, bytes, 0). A file that cannot be entered midway is one."""
    size = file.listed.size
    if not size:
        return
    if left is not None:
        # A limit counts records, so they must be counted here; no more are read than it asks for.
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
    elif os.path.splitext(file.source.lower())[1] in PACKED:
        yield 0, -1, None, size, 0
    else:
        target = size if format_named(file.format).whole else target
        for start in range(0, size, target):
            stop = min(start + target, size)
            yield start, stop, None, stop - start, 0
