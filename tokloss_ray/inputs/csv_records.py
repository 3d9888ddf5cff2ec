"""The records of CSV as Python's reader tells them apart, each with its place in the file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import BinaryIO, NamedTuple

from tokloss_ray.inputs.conll_layout import BOM
from tokloss_ray.inputs.lines import KEPT, MAX_RECORD, lines_of, too_long

csv.field_size_limit(1 << 30)  # records are limited, cells need not be


class Record(NamedTuple):
    """A row of a table: where it begins, its bytes (of one that is too long the beginning), its cells, and what is
    wrong with it, or an empty string. Of cells that are not UTF-8 the bytes are surrogates."""

    offset: int
    data: bytes
    cells: list[str]
    problem: str


class _TooLong(Exception):
    pass


def records_in(file: BinaryIO, stop: int = -1) -> Iterator[Record]:
    """All records of an open file that begin before `stop`, the header first; blank lines are none."""
    stream = lines_of(file)
    first = next(stream)
    separator = separator_of(first[1])
    seen: list[tuple[int, bytes]] = []
    size = 0

    def text(lines: Iterable[tuple[int, bytes, int, bool]]) -> Iterator[str]:
        """The lines that the reader of a record asks for."""
        nonlocal size
        for offset, line, length, _ in lines:
            if not length:
                return
            size += length
            seen.append((offset, line[:KEPT] if size > MAX_RECORD else line))
            if size > MAX_RECORD:
                raise _TooLong
            yield (line if offset else line.removeprefix(BOM)).decode("utf-8", "surrogateescape")

    reader = csv.reader(text(chain([first], stream)), delimiter=separator, strict=True)
    while True:
        cells: list[str] = []
        problem = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not a row of CSV: {error}"
        except _TooLong:
            problem = too_long(size)
            reader = csv.reader(text(stream), delimiter=separator, strict=True)
        offset, data = seen[0][0], b"".join(line for _, line in seen)
        seen.clear()
        size = 0
        if 0 <= stop <= offset:
            return
        if problem or data.strip():
            yield Record(offset, data[:KEPT] if problem else data, cells, problem)


def separator_of(header: bytes) -> str:
    """Tab, comma or semicolon: the one there is most of in the first line."""
    return max("\t,;", key=header.decode("utf-8", "replace").count)
