"""Arrow IPC streams, as `datasets` saves them: where their record batches are, and reading some of them.

A stream has no table of contents, but each message begins with its own length: the batches are found by going from one
header to the next.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from tokloss_ray.inputs.arrow_messages import (
    LARGE_STEP,
    NEW_FORMAT,
    RECORDS,
    SHORT_MESSAGES,
    Batch,
    Steps,
    header,
)
from tokloss_ray.inputs.unit import FilePart
from tokloss_ray.storage.files import is_local, open_file, open_location, open_random


class _Message(NamedTuple):
    kind: int
    offset: int
    size: int
    rows: int


def inspect_stream(path: str, size: int) -> tuple[pa.Schema, tuple[Batch, ...]]:
    """The schema of a file and its record batches, from the headers alone.

    Raises:
        ArrowInvalid: it is no Arrow stream, or cut off.
    """
    with open_random(*open_location(path), size) as file:
        steps = Steps(file)
        messages = _messages(steps, size)
        schema = _schema(steps, next(messages, None))
        found = list(messages)
    seekable = all(message.kind == RECORDS for message in found)
    batches = (m for m in found if m.kind == RECORDS)
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
        steps = Steps(file)
        return _schema(steps, next(_messages(steps, size), None))


def _schema(steps: Steps, first: _Message | None) -> pa.Schema:
    if first is None:
        raise pa.ArrowInvalid("it is empty")
    return pa.ipc.read_schema(pa.py_buffer(steps.get(first.offset, first.size)))


def _messages(steps: Steps, size: int) -> Iterator[_Message]:
    """The messages of a stream, one after the other; between them nothing but headers is fetched."""
    offset = count = 0
    while offset < size:
        head = 4
        (length,) = struct.unpack("<I", steps.get(offset, 4))
        if length == NEW_FORMAT:
            head = 8
            (length,) = struct.unpack("<I", steps.get(offset + 4, 4))
        if not length:  # the end of the stream
            return
        if length > size:
            raise pa.ArrowInvalid("it is not an Arrow stream")
        try:
            kind, body, rows = header(steps.get(offset + head, length))
        except struct.error:
            raise pa.ArrowInvalid("it is not an Arrow stream") from None
        end = offset + head + length + body
        if body < 0 or end > size:
            raise pa.ArrowInvalid("it is truncated")
        yield _Message(kind, offset, end - offset, rows)
        offset, count = end, count + 1
        # Headers of one kind are of one length, so a step of that length is a header.
        steps.step = LARGE_STEP if offset < count * SHORT_MESSAGES else head + length
