"""What the messages of Arrow IPC files and streams say of themselves in their headers.

A header is a flatbuffer, of which just the few fields are read that pyarrow does not give without the message's body:
https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format, Message.fbs and File.fbs there, and
https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

import pyarrow as pa

FIRST_STEP = 8 << 10
SHORT_MESSAGES, LARGE_STEP = 32 << 10, 1 << 20
"""Where messages are shorter than this on average, to fetch all of them is cheaper than a request for each header."""
NEW_FORMAT = 0xFFFFFFFF
RECORDS = 3


class Batch(NamedTuple):
    """A record batch: its rows, its bytes in the file, and where it begins.

    offset is 0 in streams with dictionaries, which `datasets` does not write: they must be read from the start.
    """

    rows: int
    size: int
    offset: int


class Steps:
    """Bytes of a file, fetched in steps of `step`."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.step = file, FIRST_STEP
        self.start, self.data = 0, b""

    def get(self, offset: int, count: int) -> bytes:
        """The bytes at an offset.

        Raises:
            ArrowInvalid: there are not so many.
        """
        if not self.start <= offset <= offset + count <= self.start + len(self.data):
            self.file.seek(offset)
            self.start, self.data = offset, self.file.read(max(count, self.step))
        found = self.data[offset - self.start : offset - self.start + count]
        if len(found) < count:
            raise pa.ArrowInvalid("it is truncated")
        return found


def header(message: bytes) -> tuple[int, int, int]:
    """Of a message (a flatbuffer) its kind, the bytes of its body, and the rows of a record batch."""
    (root,) = struct.unpack_from("<I", message, 0)
    kind, body = _value("<B", message, field_at(message, root, 1)), _value("<q", message, field_at(message, root, 3))
    rows = 0
    if kind == RECORDS and (at := field_at(message, root, 2)):
        rows = _value("<q", message, field_at(message, at + _value("<I", message, at), 0))
    return kind, body, rows


def field_at(buffer: bytes, table: int, number: int) -> int:
    """Where a field of a table is in a flatbuffer; 0 if it has its default."""
    fields = table - struct.unpack_from("<i", buffer, table)[0]
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", buffer, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", buffer, fields + at)[0]
    return table + offset if offset else 0


def _value(form: str, buffer: bytes, at: int) -> int:
    return int(struct.unpack_from(form, buffer, at)[0]) if at else 0
