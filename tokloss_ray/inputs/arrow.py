"""Arrow files: IPC files (Feather V2) and IPC streams, told apart by their first bytes, whatever their name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa

from tokloss_ray.inputs.arrow_file import MAGIC, inspect_file, read_file
from tokloss_ray.inputs.arrow_stream import inspect_stream, read_stream
from tokloss_ray.inputs.batches import is_valid, row_range
from tokloss_ray.inputs.format import CHUNK_ROWS, Format, Groups, RawChunk
from tokloss_ray.inputs.nested import pick
from tokloss_ray.inputs.unit import Columns, FilePart
from tokloss_ray.storage.files import Listed, open_location, open_random

_FEATHER_1 = b"FEA1"


@lru_cache(maxsize=64)
def _is_file(path: str, version: str) -> bool:
    """Whether it is an IPC file, not a stream; `version` keeps changed files apart.

    Raises:
        ArrowInvalid: it is neither.
    """
    with open_random(*open_location(path)) as file:
        start = file.read(len(MAGIC))
    if start.startswith(_FEATHER_1):
        raise pa.ArrowInvalid("it is Feather V1, which is no longer read: write it again with write_feather of pyarrow")
    return start == MAGIC


def _inspect(file: Listed) -> tuple[pa.Schema, Groups]:
    inspect = inspect_file if _is_file(file.path, file.version) else inspect_stream
    return inspect(file.path, file.size)


def _read(columns: Columns, part: FilePart) -> Iterator[RawChunk]:
    read = read_file if _is_file(part.path, part.version) else read_stream
    for row, whole in read(part):
        batch = pick(whole, columns.names)
        valid = is_valid(batch)
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            for chunk in row_range(batch.slice(start, CHUNK_ROWS), row + start, part, valid):
                yield chunk._replace(schema=whole.schema)


ARROW = Format(
    name="arrow", title="Arrow", suffixes=(".arrow", ".feather"), bytes_per_token=12, inspect=_inspect, read=_read
)
