"""Arrow IPC streams, as `datasets` saves them: where their record batches are, and reading some of them.

A stream has no table of contents, but each message begins with its own length: the batches are found by going from one
header to the next. https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format, and Message.fbs and
https://flatbuffers.dev/internals for what is in a header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from tokloss_ray.inputs.batches import is_valid, row_range
from tokloss_ray.inputs.format import CHUNK_ROWS, Format, Groups, RawChunk
from tokloss_ray.inputs.unit import Columns, FilePart
from tokloss_ray.storage.files import Listed, is_local, open_file, open_location, open_random

_FIRST_STEP = 8 << 10
_SHORT_MESSAGES, _LARGE_STEP = 32 << 10, 1 << 20
"""Where messages are shorter than this on average, to fetch all of them is cheaper than a request for each header."""
_NEW_FORMAT = 0xFFFFFFFF
_RECORDS = 3


class Batch(NamedTuple):
    """A record batch: its rows, its bytes in the file, and where it begins.

    offset is 0 in files with dictionaries, which `datasets` does not write: they must be read from the start.
    """

    rows: int
    size: int
    offset: int


class _Message(NamedTuple):
    kind: int
    offset: int
    size: int
    rows: int


class _Steps:
    """Bytes of a file, fetched in steps of `step`."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.step = file, _FIRST_STEP
        self.start, self.data = 0, b""

    def get(self, offset: int, count: int) -> bytes:
        if not self.start <= offset <= offset + count <= self.start + len(self.data):
            self.file.seek(offset)
            self.start, self.data = offset, self.file.read(max(count, self.step))
        found = self.data[offset - self.start : offset - self.start + count]
        if len(found) < count:
            raise pa.ArrowInvalid("it is truncated")
        return found


def inspect_stream(path: str, size: int) -> tuple[pa.Schema, tuple[Batch, ...]]:
    """The schema of a file and its record batches, from the headers alone.

    Raises:
        ArrowInvalid: it is no Arrow stream, or cut off.
    """
    with open_random(*open_location(path), size) as file:
        steps = _Steps(file)
        messages = _messages(steps, size)
        schema = _schema(steps, next(messages, None))
        found = list(messages)
    seekable = all(message.kind == _RECORDS for message in found)
    batches = (m for m in found if m.kind == _RECORDS)
    return schema, tuple(Batch(m.rows, m.size, m.offset if seekable else 0) for m in batches)


def read_stream(part: FilePart) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The record batches of a part, each with the number of its first row; from a file with dictionaries more."""
    fs, path = open_location(part.path)
    end = part.offset + part.size if part.offset else None
    row = part.start if part.offset else 0
    with pa.memory_map(path) if is_local(fs) else open_file(fs, path, end) as source:
        if not part.offset:
            with pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield row, batch
                    row += batch.num_rows
                    if 0 <= part.stop <= row:
                        return
            return
        schema = _schema_of(part.path, part.version)
        source.seek(part.offset)
        while row < part.stop:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)
            yield row, batch
            row += batch.num_rows


@lru_cache(maxsize=64)
def _schema_of(path: str, version: str) -> pa.Schema:
    """The schema of a file; `version` keeps changed files apart."""
    fs, local_path = open_location(path)
    with open_random(fs, local_path) as file:
        size = file.seek(0, 2)
        steps = _Steps(file)
        return _schema(steps, next(_messages(steps, size), None))


def _schema(steps: _Steps, first: _Message | None) -> pa.Schema:
    if first is None:
        raise pa.ArrowInvalid("it is empty")
    return pa.ipc.read_schema(pa.py_buffer(steps.get(first.offset, first.size)))


def _messages(steps: _Steps, size: int) -> Iterator[_Message]:
    """The messages of a stream, one after the other; between them nothing but headers is fetched."""
    offset = count = 0
    while offset < size:
        head = 4
        (length,) = struct.unpack("<I", steps.get(offset, 4))
        if length == _NEW_FORMAT:
            head = 8
            (length,) = struct.unpack("<I", steps.get(offset + 4, 4))
        if not length:  # the end of the stream
            return
        if length > size:
            raise pa.ArrowInvalid("it is not an Arrow stream")
        try:
            kind, body, rows = _header(steps.get(offset + head, length))
        except struct.error:
            raise pa.ArrowInvalid("it is not an Arrow stream") from None
        end = offset + head + length + body
        if body < 0 or end > size:
            raise pa.ArrowInvalid("it is truncated")
        yield _Message(kind, offset, end - offset, rows)
        offset, count = end, count + 1
        # Headers of one kind are of one length, so a step of that length is a header.
        steps.step = _LARGE_STEP if offset < count * _SHORT_MESSAGES else head + length


def _header(message: bytes) -> tuple[int, int, int]:
    """Of a message (a flatbuffer) its kind, the bytes of its body, and the rows of a record batch."""

    def field(table: int, number: int) -> int:
        """Where a field of a table is; 0 if it has its default."""
        fields = table - struct.unpack_from("<i", message, table)[0]
        at = 4 + 2 * number
        if at >= struct.unpack_from("<H", message, fields)[0]:
            return 0
        offset = struct.unpack_from("<H", message, fields + at)[0]
        return table + offset if offset else 0

    def value(form: str, at: int) -> int:
        return int(struct.unpack_from(form, message, at)[0]) if at else 0

    (root,) = struct.unpack_from("<I", message, 0)
    kind, body = value("<B", field(root, 1)), value("<q", field(root, 3))
    rows = 0
    if kind == _RECORDS and (at := field(root, 2)):
        rows = value("<q", field(at + value("<I", at), 0))
    return kind, body, rows


def _inspect(file: Listed) -> tuple[pa.Schema, Groups]:
    return inspect_stream(file.path, file.size)


def _read(columns: Columns, part: FilePart) -> Iterator[RawChunk]:
    for row, whole in read_stream(part):
        batch = whole.select([name for name in columns.names if name in whole.schema.names])
        valid = is_valid(batch)
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            for chunk in row_range(batch.slice(start, CHUNK_ROWS), row + start, part, valid):
                yield chunk._replace(schema=whole.schema)


# Only within folders that `datasets` saved: no file is read in it by its name.
ARROW = Format(name="arrow", title="Arrow", suffixes=(), bytes_per_token=12, inspect=_inspect, read=_read)
