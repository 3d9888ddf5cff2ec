"""Lines of text files, none of which takes more memory than a record may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

MAX_RECORD = 32 << 20
"""Bytes of one record: a sentence of a million words has about half of it."""
KEPT = 1 << 16
"""Bytes that are kept of a longer one, for a person to recognise it by."""
_STEP = 1 << 20


def lines_of(file: BinaryIO, offset: int = 0, stop: int = -1) -> Iterator[tuple[int, bytes, int, bool]]:
    """The lines that begin before `stop` (-1: the end of the file), from where the file stands, at `offset`.

    Of each the offset, the bytes, their number, and whether there is only white space. Of a line longer than MAX_RECORD
    the bytes are but the beginning. At the end of the file an empty line comes last.
    """
    while stop < 0 or offset < stop:
        data = file.readline(MAX_RECORD + 1)
        length, blank = len(data), not data or data.isspace()
        if length > MAX_RECORD:
            line, data = data, data[:KEPT]
            while line and not line.endswith(b"\n"):
                line = file.readline(_STEP)
                length += len(line)
                blank = blank and (not line or line.isspace())
        yield offset, data, length, blank
        if not length:
            return
        offset += length


def next_line(file: BinaryIO, start: int, stop: int) -> int:
    """Move a file to the first line that begins at `start` or behind it; returns its offset, or one behind `stop`."""
    file.seek(start - 1)
    offset = start - 1
    while stop < 0 or offset < stop:
        part = file.readline(_STEP)
        offset += len(part)
        if not part or part.endswith(b"\n"):
            break
    return offset


def too_long(length: int) -> str:
    """What is wrong with a record of so many bytes."""
    return f"{length:,} bytes, but a record may have at most {MAX_RECORD:,}; the payload is its beginning"
