"""CSV and TSV tables with a sentence a row: cells of words and of tags that are lists.

A file is one part: a quoted cell may hold line breaks, so whether a line break ends a row is only known from the start
of the file. Rows are numbered by their first byte, like those of all text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import eq
from typing import Any

import pyarrow as pa

from tokloss_ray.inputs.csv_cells import is_list, listed, spaced
from tokloss_ray.inputs.csv_records import Record, records_in
from tokloss_ray.inputs.format import Format, Groups, RawChunk
from tokloss_ray.inputs.jsonl import batches, broken_row, checked, row_chunks
from tokloss_ray.inputs.lines import MAX_RECORD
from tokloss_ray.inputs.unit import LABELS_COLUMNS, WORDS_COLUMNS, Columns, FilePart
from tokloss_ray.storage.files import Listed, open_file, open_location

_SAMPLE_ROWS = 100
_LOOKED_AT = 20
_INTEGER = re.compile(r"-?\d+")
_ONE_WORD_ROWS = 10
"""Rows of one word each from which a table is taken for one with a word a line."""


@dataclass(frozen=True)
class Table:
    """How to read a file.

    Attributes:
        names: of the columns, from the first line.
        types: of the columns: lists of strings or integers, or strings.
        printed: of each column whether its lists have brackets.
    """

    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    printed: tuple[bool, ...]


def table_rows(part: FilePart) -> Iterator[Record]:
    """The rows of a file that begin before `part.stop`, without its header."""
    fs, path = open_location(part.path)
    with open_file(fs, path, unpack=True) as file:
        yield from islice(records_in(file, part.stop), 1, None)


@lru_cache(maxsize=64)
def table_of(path: str, version: str) -> Table | None:
    """What a file is, from its first rows; None if it has none. `version` keeps changed files apart.

    Raises:
        ArrowInvalid: it is no such table.
    """
    with open_file(*open_location(path), unpack=True) as file:
        found = records_in(file)
        header = next(found, None)
        sample = []
        size = 0
        for record in islice(found, _SAMPLE_ROWS):
            sample.append(record)
            size += len(record.data)
            if size > MAX_RECORD:
                break
    if header is None or not sample:
        return None
    if header.problem or any(map(is_list, header.cells)):
        raise pa.ArrowInvalid("its first line must name the columns, but does not")
    names = tuple(header.cells)
    rows = [record.cells for record in sample if len(record.cells) == len(names)]
    columns = [[row[i] for row in rows] for i in range(len(names))]
    printed = tuple(_mostly(is_list(cell) for cell in column if cell) for column in columns)
    counts = [None if printed[i] else [cell.count(" ") for cell in column] for i, column in enumerate(columns)]
    usual = (*WORDS_COLUMNS, *LABELS_COLUMNS)
    lists = [
        printed[i] or name in usual or any(_parallel(counts, i, j) for j in range(len(names)))
        for i, name in enumerate(names)
    ]
    spread = [count for count in (c for i, c in enumerate(counts) if lists[i]) if count is not None]
    if len(rows) >= _ONE_WORD_ROWS and not any(printed) and not any(map(any, spread)):
        raise pa.ArrowInvalid(
            "a row must be a sentence, with lists of words and of tags, but none of its columns holds lists; files of "
            "one word per line are read as CoNLL columns: end lines of tab-separated cells with .conll (docs/data.md)"
        )
    types = tuple(
        _list_type(column, name, printed[i]) if lists[i] else pa.string()
        for i, (name, column) in enumerate(zip(names, columns, strict=True))
    )
    return Table(names, types, printed)


def is_table(path: str) -> bool:
    """Whether a file that may as well be CoNLL columns is a table: below a header, some columns hold lists that are
    equally long in each of the first rows, in brackets or, under the usual names, with more than one word."""
    with open_file(*open_location(path), unpack=True) as file:
        found = records_in(file)
        header = next(found, None)
        rows = [record.cells for record in islice(found, _LOOKED_AT)]
    if header is None or not rows or len(header.cells) < 2 or any(len(row) != len(header.cells) for row in rows):
        return False
    bracketed = [i for i in range(len(header.cells)) if all(is_list(row[i]) for row in rows)]
    if len(bracketed) > 1 and not any(map(is_list, header.cells)):
        return True
    words, tags = (
        next((header.cells.index(name) for name in usual if name in header.cells), None)
        for usual in (WORDS_COLUMNS, LABELS_COLUMNS)
    )
    if words is None or tags is None:
        return False
    pairs = [(row[words].count(" "), row[tags].count(" ")) for row in rows]
    return all(a == b for a, b in pairs) and any(a for a, _ in pairs)


def _mostly(flags: Iterable[bool]) -> bool:
    known = list(flags)
    return sum(known) * 2 > len(known)


def _parallel(counts: list[list[int] | None], i: int, j: int) -> bool:
    """Whether two columns without brackets have as many words as each other in most rows, and more than one in some."""
    a, b = counts[i], counts[j]
    return i != j and a is not None and b is not None and any(a) and _mostly(map(eq, a, b))


def _list_type(column: list[str], name: str, printed: bool) -> pa.DataType:
    """Lists of integers, if all of them are, or of strings."""
    kinds = set()
    for cell in column:
        with suppress(ValueError):
            kinds |= {type(item) for item in (listed(cell) if printed else _tags(cell)) if item is not None}
    numbers = kinds == {int} and (printed or name not in WORDS_COLUMNS)
    return pa.list_(pa.int64() if numbers else pa.string())


def _tags(cell: str) -> list[str] | list[int]:
    """Words with spaces between them, as integers if all of them are."""
    words = spaced(cell) if cell else []
    return [int(word) for word in words] if all(map(_INTEGER.fullmatch, words)) else words


def read_table(columns: Columns, part: FilePart) -> Iterator[RawChunk]:
    """The rows of a file, numbered by their first byte."""
    table = table_of(part.path, part.version)
    for records in batches(table_rows(part)):
        assert table is not None
        lacking = [name for name in columns.names if name not in table.names]
        if lacking:
            raise pa.ArrowInvalid(f"it has no column {lacking[0]}, but the columns {', '.join(table.names)}")
        rows, broken = [], []
        for record in records:
            row: dict[str, Any] = {}
            try:
                row, problem = checked(columns, _row(columns, table, record))
            except ValueError as error:
                detail = f"not UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
                problem = ("malformed", detail)
            if problem[0]:
                broken.append(broken_row(columns, record.offset, record.data, row, problem))
            else:
                rows.append((record.offset, row, record.data))
        yield from row_chunks(columns, rows, broken)


def _row(columns: Columns, table: Table, record: Record) -> dict[str, Any]:
    """The wanted columns of a record; an empty cell is null.

    Raises:
        ValueError: it is not as it should be.
    """
    if record.problem:
        raise ValueError(record.problem)
    if len(record.cells) != len(table.names):
        raise ValueError(f"{len(record.cells)} cells, but the first line names {len(table.names)} columns")
    record.data.decode()
    row: dict[str, Any] = {}
    for name in columns.names:
        i = table.names.index(name)
        cell, type_ = record.cells[i], table.types[i]
        try:
            if not cell or not pa.types.is_list(type_):
                row[name] = cell or None
            elif table.printed[i]:
                row[name] = listed(cell)
            else:
                row[name] = _tags(cell) if pa.types.is_integer(type_.value_type) else spaced(cell)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return row


def _inspect(file: Listed) -> tuple[pa.Schema | None, Groups]:
    table = table_of(file.path, file.version)
    return None if table is None else pa.schema(zip(table.names, table.types, strict=True)), ()


CSV = Format(
    name="csv",
    title="CSV",
    suffixes=(),
    named_suffixes=(".csv",),
    packed=True,
    bytes_per_token=10,
    inspect=_inspect,
    read=read_table,
    records=table_rows,
    whole=True,
)
