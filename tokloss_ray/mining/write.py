"""Tables of mining and diff as files: written whole, and over nothing but such tables."""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused
from tokloss_ray.inputs.formats import format_of
from tokloss_ray.inputs.parquet import PARQUET
from tokloss_ray.storage.files import kind_of, open_location, open_random
from tokloss_ray.storage.listings import files_below
from tokloss_ray.storage.writing import writing_whole
from tokloss_ray.threads import map_in_threads

METADATA = b"tokloss"
"""Key of the Parquet metadata under which a table says, as JSON, how it was made; no other file has it."""
GROUP_ROWS = 1 << 16
"""Rows of a row group: few, so that a reader who wants some rows of a long table need not read it all."""


def check_folder(folder: str, own: str) -> None:
    """See that tables may be written to a folder: that it holds no data but tables like them.

    Whoever reads a corpus by its folder would read the tables too. Other files, a README or pictures, do no harm.

    own: the folder that is for such tables, whatever is in it.

    Raises:
        Refused: it is a file, or holds data.
    """
    fs, root = open_location(folder)
    if (fs, root) == open_location(own):
        return
    if kind_of(fs, root) not in (None, "directory"):
        raise Refused(f"--to {folder} is a file: choose a folder for the tables")
    for file in files_below(fs, root):
        name = posixpath.relpath(file.path, root)
        if not any(part.startswith(".") for part in name.split("/")) and _is_data(name) and not _is_ours(fs, file):
            raise Refused(
                f"--to {folder} contains {name}, which is not a tokloss table: choose a folder without other data"
            )


def _is_data(name: str) -> bool:
    return name.endswith(".arrow") or format_of(name, in_folder=True) is not None


def _is_ours(fs: Any, file: Any) -> bool:
    if format_of(file.path, in_folder=True) != PARQUET:
        return False
    try:
        with open_random(fs, file.path, file.size) as opened:
            return METADATA in (pq.read_schema(opened).metadata or {})
    except pa.ArrowInvalid:
        return False


class _Pieces(io.RawIOBase):
    """What pyarrow writes a file to."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write, self._at = write, 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Pass on some bytes."""
        self._write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        """How many there were."""
        return self._at


def write_tables(folder: str, tables: Mapping[str, pa.Table], provenance: Mapping[str, Any]) -> None:
    """Write each table as FOLDER/NAME.parquet, whole or not at all; `provenance` says how they were made.

    Raises:
        JobFailed: the folder cannot be written.
    """
    fs, root = open_location(folder)
    ours = {METADATA: json.dumps(dict(provenance), ensure_ascii=False).encode()}

    def write(name: str) -> None:
        table = tables[name].replace_schema_metadata({**(tables[name].schema.metadata or {}), **ours})
        with writing_whole(fs, f"{root}/{name}.parquet") as piece:
            pq.write_table(
                table, _Pieces(piece), compression="zstd", row_group_size=GROUP_ROWS, write_page_checksum=True
            )

    for _ in map_in_threads(write, list(tables)):
        pass
