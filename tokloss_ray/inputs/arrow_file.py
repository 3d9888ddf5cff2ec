"""Arrow IPC files (Feather V2): their record batches by the footer, and reading some of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.inputs.arrow_messages import LARGE_STEP, NEW_FORMAT, SHORT_MESSAGES, Batch, Steps, field_at, header
from tokloss_ray.inputs.unit import FilePart
from tokloss_ray.storage.files import is_local, open_file, open_location, open_random

MAGIC = b"ARROW1"
_TAIL = 64 << 10
_RECORD_BATCHES = 3
_BLOCK = np.dtype([("offset", "<i8"), ("head", "<i4"), ("padding", "<i4"), ("body", "<i8")])


class _Block(NamedTuple):
    """Where the message of a record batch begins, and how long its header and its body are."""

    offset: int
    head: int
    body: int


def inspect_file(path: str, size: int) -> tuple[pa.Schema, tuple[Batch, ...]]:
    """The schema of a file and its record batches, from footer and headers alone.

    Raises:
        ArrowInvalid: it is no Arrow file, or cut off.
    """
    with open_random(*open_location(path), size) as file:
        with pa.ipc.open_file(file) as reader:
            schema = reader.schema
        blocks = _blocks(file)
        steps = Steps(file)
        if size < len(blocks) * SHORT_MESSAGES:
            steps.step = LARGE_STEP
        else:
            steps.step = 0
        return schema, tuple(Batch(_rows(steps, block), block.head + block.body, block.offset) for block in blocks)


def read_file(part: FilePart) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The record batches of a part, each with the number of its first row."""
    fs, path = open_location(part.path)
    with pa.memory_map(path) if is_local(fs) else open_file(fs, path) as source:
        offsets = [block.offset for block in _blocks(source)] if part.offset else []
        row = part.start if part.offset else 0
        with pa.ipc.open_file(source) as reader:
            for number in range(offsets.index(part.offset) if part.offset else 0, reader.num_record_batches):
                if 0 <= part.stop <= row:
                    return
                batch = reader.get_batch(number)
                yield row, batch
                row += batch.num_rows


def _blocks(file: BinaryIO) -> list[_Block]:
    """The table of contents at the end of a file: https://github.com/apache/arrow/blob/main/format/File.fbs."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    try:
        (length,) = struct.unpack_from("<i", tail, len(tail) - len(MAGIC) - 4)
        needed = length + 4 + len(MAGIC)
        if needed > len(tail):
            file.seek(max(0, size - needed))
            tail = file.read(needed)
        footer = tail[len(tail) - needed :][:length]
        (root,) = struct.unpack_from("<I", footer, 0)
        if not (at := field_at(footer, root, _RECORD_BATCHES)):
            return []
        at += struct.unpack_from("<I", footer, at)[0]
        (count,) = struct.unpack_from("<I", footer, at)
        found = np.frombuffer(footer, _BLOCK, count, at + 4)
    except (struct.error, ValueError):
        raise pa.ArrowInvalid("its footer is damaged") from None
    columns = (found[name].tolist() for name in ("offset", "head", "body"))
    return [_Block(*values) for values in zip(*columns, strict=True)]


def _rows(steps: Steps, block: _Block) -> int:
    try:
        message = steps.get(block.offset, block.head)
        (start,) = struct.unpack_from("<I", message, 0)
        return header(message[8 if start == NEW_FORMAT else 4 :])[2]
    except struct.error:
        raise pa.ArrowInvalid("a record batch is damaged") from None
