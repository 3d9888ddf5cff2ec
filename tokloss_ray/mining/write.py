"""Tables of mining and diff as files."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.mining.threads import map_in_threads
from tokloss_ray.storage import open_location, write_whole


def write_tables(folder: str, tables: Mapping[str, pa.Table], metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Write each table as FOLDER/NAME.parquet, whole or not at all; `metadata` is added to that of each.

    Raises:
        JobFailed: the folder cannot be written.
    """
    fs, root = open_location(folder)

    def write(name: str) -> None:
        sink = pa.BufferOutputStream()
        table = tables[name].replace_schema_metadata({**(tables[name].schema.metadata or {}), **(metadata or {})})
        pq.write_table(table, sink, compression="zstd")
        write_whole(fs, f"{root}/{name}.parquet", memoryview(sink.getvalue()))

    for _ in map_in_threads(write, list(tables)):
        pass
