"""The commit records of an output, read from its folder `_commits`, from segments where these have them right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import JobFailed, StorageFailed
from tokloss_ray.output import segments
from tokloss_ray.output.names import COMMITS
from tokloss_ray.output.record import CommitRecord, parse_record
from tokloss_ray.output.segments import Entry, RollUp, read_segment, segments_among
from tokloss_ray.storage.files import open_location, read_whole, remove
from tokloss_ray.storage.listings import list_files
from tokloss_ray.storage.sealed import DamagedError, is_sealed
from tokloss_ray.threads import in_context, map_in_threads


@dataclass
class Scan:
    """What is in `_commits`.

    Attributes:
        records: by the name of their shard, in the order of the names.
        damaged: file name (`000017-003.json`) -> what is wrong with it; it does not count as a record.
        of_other_runs: file names of records of other runs.
    """

    records: dict[str, CommitRecord] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    of_other_runs: list[str] = field(default_factory=list)


class RecordStream:
    """The commit records of an output, one after the other in no certain order: memory does not grow with them.

    Each iteration lists `_commits` and reads what is listed: from segments what they have right (`segments.py`), the
    rest from the records' own files.

    Args:
        output: the folder.
        fingerprint: records of other runs are set apart: a worker that was thought dead may have written one late.
        rolled: whether to look into segments at all.
        roll_up: put records that are in no segment into new ones, if they are many, and remove segments that hold
            nothing any more. For a driver that owns the folder.

    Attributes:
        damaged, of_other_runs: as in `Scan`; complete when an iteration has ended.
        other_segments: file names of segments of other runs.
        next_segment: the number that no segment has yet.
    """

    def __init__(
        self, output: str, fingerprint: str | None = None, *, rolled: bool = True, roll_up: bool = False
    ) -> None:
        self.output, self.fingerprint, self.rolled, self.roll_up = output, fingerprint, rolled, roll_up
        self.damaged: dict[str, str] = {}
        self.of_other_runs: list[str] = []
        self.other_segments: list[str] = []
        self.next_segment = 1

    def __iter__(self) -> Iterator[CommitRecord]:
        fs, root = open_location(self.output)
        folder = f"{root}/{COMMITS}"
        self.damaged, self.of_other_runs = {}, []
        files = list_files(fs, folder)
        ours, self.other_segments = segments_among(files.column("path").to_pylist(), self.fingerprint)
        self.next_segment = max(ours.values(), default=0) + 1
        files = files.filter(pc.match_substring_regex(files.column("path"), r"^[^/]*\.json$")).sort_by("path")
        listing = _Listing(_fixed_width(files.column("path")), _fixed_width(files.column("version")), _sizes(files))
        taken = np.zeros(len(listing.names), dtype=bool)
        if self.rolled and len(taken):
            paths = [f"{folder}/{name}" for name in ours]
            for path, table in zip(paths, map_in_threads(lambda path: read_segment(fs, path), paths), strict=True):
                held = False
                for place, data in () if table is None else listing.matching(table, taken):
                    with suppress(DamagedError):
                        record = parse_record(listing.name(place), data)
                        if self.fingerprint in (None, record.fingerprint):
                            taken[place] = held = True
                            yield record
                if self.roll_up and not held:
                    with suppress(StorageFailed):
                        remove(fs, path)
        yield from self._from_files(fs, folder, listing, np.flatnonzero(~taken))

    def _from_files(
        self, fs: fsspec.AbstractFileSystem, folder: str, listing: _Listing, places: np.ndarray
    ) -> Iterator[CommitRecord]:
        """Records from their own files, and into segments of so many at once."""

        def content(name: str) -> bytes | None:
            try:
                return read_whole(fs, f"{folder}/{name}")
            except FileNotFoundError:  # others may remove it meanwhile
                return None

        owner = self.fingerprint if self.roll_up else None
        roll_up = RollUp(self.output, owner, self.next_segment) if owner else None
        loose: list[Entry] = []
        with ThreadPoolExecutor(16) as pool:
            for start in range(0, len(places), segments.RECORDS):
                chunk = places[start : start + segments.RECORDS]
                names = [listing.name(place) for place in chunk]
                for place, name, data in zip(chunk, names, pool.map(in_context(content), names), strict=True):
                    if data is None:
                        continue
                    try:
                        record = parse_record(name, data)
                    except DamagedError as error:
                        self.damaged[name] = str(error)
                        continue
                    if self.fingerprint not in (None, record.fingerprint):
                        self.of_other_runs.append(name)
                        continue
                    if roll_up is not None and is_sealed(data):
                        loose.append(Entry(name, len(data), listing.versions[place].decode(), data))
                    yield record
                if roll_up is not None and len(loose) >= segments.RECORDS:
                    with suppress(StorageFailed):
                        roll_up.write(loose)
                    loose = []
                    self.next_segment = roll_up.number


class _Listing(NamedTuple):
    """The files of records: names in order, versions (both as bytes of fixed width) and sizes."""

    names: np.ndarray
    versions: np.ndarray
    sizes: np.ndarray

    def name(self, place: int) -> str:
        return self.names[place].decode()

    def matching(self, segment: pa.Table, taken: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Place in this listing and bytes, of the entries of a segment that are of listed files as they are now."""
        names = _fixed_width(segment.column("name"))
        places = np.minimum(np.searchsorted(self.names, names), len(self.names) - 1)
        same = (self.names[places] == names) & (self.versions[places] == _fixed_width(segment.column("version")))
        same &= (self.sizes[places] == _sizes(segment)) & ~taken[places]
        records = segment.column("record")
        return ((int(places[i]), records[i].as_py()) for i in np.flatnonzero(same).tolist())


def _fixed_width(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.cast(pa.binary()).to_pylist() or [b""][:0], dtype=np.bytes_)


def _sizes(table: pa.Table) -> np.ndarray:
    return table.column("size").to_numpy()


def scan_records(output: str, fingerprint: str | None = None, rolled: bool = False) -> Scan:
    """Read all commit records of an output, those that are damaged apart; from their own files, unless `rolled`."""
    stream = RecordStream(output, fingerprint, rolled=rolled)
    records = {record.shard: record for record in stream}
    return Scan({shard: records[shard] for shard in sorted(records)}, stream.damaged, stream.of_other_runs)


def stream_records(output: str, fingerprint: str | None = None) -> Iterator[CommitRecord]:
    """The commit records of an output, in no certain order.

    Raises:
        JobFailed: a record is damaged; at the end, when all others have come.
    """
    stream = RecordStream(output, fingerprint)
    yield from stream
    for name, problem in stream.damaged.items():
        raise JobFailed(
            f"{output}/{COMMITS}/{name} is damaged ({problem}): run the same tokloss score command to score it again"
        )


def read_records(output: str, fingerprint: str | None = None) -> dict[str, CommitRecord]:
    """The commit records of an output by the name of their shard, in the order of the names.

    Raises:
        JobFailed: a record is damaged.
    """
    return {record.shard: record for record in sorted(stream_records(output, fingerprint), key=lambda r: r.shard)}


def in_order(records: Iterable[CommitRecord]) -> list[CommitRecord]:
    """Records by unit, and by their place in it."""
    return sorted(records, key=lambda record: (record.unit, record.index))
