"""Parquet files: row groups by range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.inputs.batches import row_range
from tokloss_ray.inputs.format import CHUNK_ROWS, Format, Groups, RawChunk
from tokloss_ray.inputs.nested import pick
from tokloss_ray.inputs.unit import Columns, FilePart
from tokloss_ray.ragged import offsets_of
from tokloss_ray.storage.files import Listed, RangeFile, is_local, listed, open_location, open_random, read_whole

_ONE_REQUEST = 1 << 18
"""Bytes up to which an object is fetched whole."""


def _inspect(file: Listed) -> tuple[pa.Schema, Groups]:
    if not file.size:
        raise pa.ArrowInvalid("it is empty")
    fs, path = open_location(file.path)
    with open_random(fs, path, file.size) as opened:
        metadata = pq.ParquetFile(opened)
        groups = (metadata.metadata.row_group(i) for i in range(metadata.num_row_groups))
        return metadata.schema_arrow, tuple((g.num_rows, g.total_byte_size, 0) for g in groups)


def _read(columns: Columns, part: FilePart) -> Iterator[RawChunk]:
    fs, path = open_location(part.path)
    if is_local(fs):
        opened = pq.ParquetFile(path, memory_map=True)
    elif (size := part.file_size or listed(fs, path).size) < _ONE_REQUEST:
        opened = pq.ParquetFile(pa.BufferReader(read_whole(fs, path)))
    else:  # pre_buffer fetches the column chunks that are asked for, neighbours in one request
        opened = pq.ParquetFile(RangeFile(fs, path, size), pre_buffer=True)
    with opened as file:
        whole = file.schema_arrow  # made anew each time it is asked for
        starts = offsets_of(np.array([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]))
        stop = part.stop if part.stop >= 0 else int(starts[-1])
        groups = [i for i in range(file.num_row_groups) if starts[i] < stop and starts[i + 1] > part.start]
        row = int(starts[groups[0]]) if groups else 0
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=columns.names, use_threads=False):
            for chunk in row_range(pick(batch, columns.names), row, part):
                yield chunk._replace(schema=whole)
            row += batch.num_rows


PARQUET = Format(
    name="parquet", title="Parquet", suffixes=(".parquet", ".pq"), bytes_per_token=6, inspect=_inspect, read=_read
)
