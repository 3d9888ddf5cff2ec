"""Segments: a thousand commit records in one file, so that a hundred thousand are read in seconds.

A segment is a cache and never the truth. It holds, for each record, its file's name, size and version and its bytes;
they stand in for the file only while a listing shows a file of that name, size and version. So a segment may be lost,
damaged or out of date at any moment: what it does not have right is read from the record's own file.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import md5
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.errors import StorageFailed
from tokloss_ray.faults import fault_point
from tokloss_ray.output.names import COMMITS
from tokloss_ray.storage.failures import is_local
from tokloss_ray.storage.files import listed, open_location, read_whole, write_whole
from tokloss_ray.storage.listings import etag_version, local_version
from tokloss_ray.threads import in_context

RECORDS = 1000
"""Records in a segment. Fewer that are in none are read one by one, which takes a second or two."""
_NAME = re.compile(r"rolled-(\d{6,})-([0-9a-f]{6})\.parquet")
_SCHEMA = pa.schema([("name", pa.binary()), ("size", pa.int64()), ("version", pa.binary()), ("record", pa.binary())])


class Entry(NamedTuple):
    """A record in a segment: name and size of its file, the version that a listing shows for it, and its bytes."""

    name: str
    size: int
    version: str
    data: bytes


def segment_name(number: int, fingerprint: str) -> str:
    """`rolled-000012-3f2a9c.parquet`: never ends like a record's file."""
    return f"rolled-{number:06d}-{fingerprint}.parquet"


def segments_among(names: Iterable[str], fingerprint: str | None = None) -> tuple[dict[str, int], list[str]]:
    """The names of segments of this run (without a fingerprint, of any) with their numbers, and those of other runs."""
    ours, others = {}, []
    for name in sorted(names):
        if match := _NAME.fullmatch(name):
            if fingerprint in (None, match[2]):
                ours[name] = int(match[1])
            else:
                others.append(name)
    return ours, others


def write_segment(fs: fsspec.AbstractFileSystem, path: str, entries: Iterable[Entry]) -> None:
    """Write a segment.

    Raises:
        StorageFailed: it cannot be written.
    """
    columns = zip(*((e.name.encode(), e.size, e.version.encode(), e.data) for e in entries), strict=True)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    write_whole(fs, path, memoryview(sink.getvalue()))


def read_segment(fs: fsspec.AbstractFileSystem, path: str) -> pa.Table | None:
    """The entries of a segment as columns `name`, `size`, `version`, `record`; None if it is gone or damaged.

    Raises:
        StorageFailed: storage does not answer.
    """
    try:
        data = pa.BufferReader(read_whole(fs, path))
        table = pq.read_table(data, use_threads=False, partitioning=None, page_checksum_verification=True)
    except StorageFailed:
        raise
    except (pa.ArrowException, OSError, ValueError):
        return None
    return table if table.schema.equals(_SCHEMA) and not any(c.null_count for c in table.columns) else None


class RollUp:
    """Takes the records that a run commits, as they come, and writes a segment for every so many.

    It costs a tenth of a millisecond a record. A segment that cannot be written is left out: the records are there.

    Args:
        output: the folder.
        fingerprint: of the run, as in file names.
        number: of the next segment.
    """

    def __init__(self, output: str, fingerprint: str, number: int) -> None:
        self.fs, root = open_location(output)
        self.folder = f"{root}/{COMMITS}"
        self.fingerprint, self.number = fingerprint, number
        self.waiting: dict[str, bytes] = {}

    def add(self, shard: str, data: bytes) -> None:
        """A shard was committed; data: what its record's file holds."""
        self.waiting[f"{shard}.json"] = data
        if len(self.waiting) >= RECORDS:
            with suppress(StorageFailed):
                self.write(self._entries())
            self.waiting.clear()

    def write(self, entries: list[Entry]) -> None:
        """Write the next segment.

        Raises:
            StorageFailed: it cannot be written.
        """
        if entries:
            name = segment_name(self.number, self.fingerprint)
            fault_point("roll.before", name)
            write_segment(self.fs, f"{self.folder}/{name}", entries)
            self.number += 1
            fault_point("roll.written", name)

    def _entries(self) -> list[Entry]:
        if is_local(self.fs):
            read = _read_local
        elif self._etags_are_md5():
            return [Entry(name, len(data), _md5(data), data) for name, data in self.waiting.items()]
        else:
            read = self._read_remote
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(in_context(read), [posixpath.join(self.folder, name) for name in self.waiting])
            return [entry for entry in found if entry is not None]

    def _etags_are_md5(self) -> bool:
        """Whether the store tells versions as most do: then none has to be asked for. One is, to see.

        Where a store does otherwise with some objects, those entries count for nothing: their version is never listed.
        """
        name, data = next(iter(self.waiting.items()))
        try:
            return etag_version(listed(self.fs, posixpath.join(self.folder, name)).version) == _md5(data)
        except FileNotFoundError:
            return False

    def _read_remote(self, path: str) -> Entry | None:
        # Version first: content that is newer than its version is never taken for another's.
        try:
            version = etag_version(listed(self.fs, path).version)
            data = read_whole(self.fs, path)
        except FileNotFoundError:
            return None
        return Entry(posixpath.basename(path), len(data), version, data)


def _read_local(path: str) -> Entry | None:
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            data = file.read()
    except FileNotFoundError:
        return None
    return Entry(os.path.basename(path), len(data), local_version(info), data)


def _md5(data: bytes) -> str:
    return md5(data, usedforsecurity=False).hexdigest()
