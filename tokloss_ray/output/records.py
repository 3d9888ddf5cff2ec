"""Commit records: what is done, read from the folder `_commits`, and which rows of its unit each shard holds.

The rows of a unit are counted from 0 in the order in which they are read; a record holds `start` and `stop` of its
shard in this count, and the `first_row` and `last_row` of it as `source_row` numbers. So it shows when two attempts cut
a unit at different places, which would lose rows or score them twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from sys import intern
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import JobFailed, StorageFailed
from tokloss_ray.output import segments
from tokloss_ray.output.names import COMMITS
from tokloss_ray.output.segments import Entry, RollUp, read_segment, segments_among
from tokloss_ray.storage.files import open_location, read_whole, remove
from tokloss_ray.storage.listings import list_files
from tokloss_ray.storage.sealed import DamagedError, is_sealed, unsealed
from tokloss_ray.threads import in_context, map_in_threads


class RowRange(NamedTuple):
    """The rows of a shard: [start, stop) in the count of its unit, the highest source_row (-1: there is none), and
    whether the unit ends with them."""

    start: int
    stop: int
    last_row: int
    last: bool


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a shard: its path in the output, its rows and bytes, and the SHA-256 of its content (None in
    records of earlier versions)."""

    path: str
    rows: int
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a shard came to. The fields, in the order in which the file has them, are described in docs/output.md.

    A shard begins with `first_row` of the file `source` and ends with `last_row` of `last_source`. Records of earlier
    versions have None for `last_source`, `batching`, `device_wait`, and `start` to `last_row`; a shard without rows has
    None for the two rows. Losses are in nats.
    """

    shard: str
    fingerprint: str
    unit: int
    index: int
    source: str
    last_source: str | None
    last: bool
    rows: int
    start: int | None
    stop: int | None
    first_row: int | None
    last_row: int | None
    seconds: dict[str, float]
    padded_tokens: int
    batch_tokens: int
    batching: str | None
    scored_rows: int
    error_rows: int
    sequences: int
    tokens: int
    labels: int
    dropped_words: int
    errors: dict[str, int]
    loss_by_tag: dict[str, tuple[int, float]]
    files: tuple[DataFile, ...]
    errors_file: DataFile | None
    storage_retries: int
    memory_splits: int
    device_wait: float | None
    compiled: str | None = None

    @property
    def all_files(self) -> tuple[DataFile, ...]:
        """The data files, that of errors/ among them."""
        return self.files if self.errors_file is None else (*self.files, self.errors_file)

    @property
    def row_range(self) -> RowRange | None:
        """Which rows of its unit the shard holds; None in records of earlier versions."""
        if self.start is None or self.stop is None:
            return None
        return RowRange(self.start, self.stop, -1 if self.last_row is None else self.last_row, self.last)

    def to_json(self) -> dict[str, Any]:
        """As the file has it, and as it travels from a worker to the driver."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CommitRecord:
        """From the file, also of an earlier version; keys that are not known are passed over.

        Raises:
            DamagedError: something is missing, or is not what it must be.
        """
        try:
            errors_file = content["errors_file"]
            known: dict[str, Any] = {name: content[name] for name in _REQUIRED}
            known |= {name: content.get(name, default) for name, default in _LATER.items()}
            known["files"] = tuple(_data_file(file) for file in content["files"])
            known["errors_file"] = None if errors_file is None else _data_file(errors_file)
            # A name that many records have is kept once.
            known |= {name: intern(content[name]) for name in ("fingerprint", "source")}
            last_source = known["last_source"]
            known["last_source"] = None if last_source is None else intern(last_source)
            for name in ("seconds", "errors"):
                known[name] = {intern(key): value for key, value in content[name].items()}
            by_tag = content["loss_by_tag"].items()
            known["loss_by_tag"] = {intern(tag): (count, total) for tag, (count, total) in by_tag}
        except KeyError as error:
            raise DamagedError(f"it has no {error.args[0]}") from None
        except (TypeError, ValueError, AttributeError):
            raise DamagedError("it is not a commit record") from None
        return cls(**known)


def _data_file(content: Mapping[str, Any]) -> DataFile:
    return DataFile(content["path"], content["rows"], content["bytes"], content.get("sha256"))


_LATER: dict[str, Any] = {
    "last_source": None, "start": None, "stop": None, "first_row": None, "last_row": None, "batching": None,
    "storage_retries": 0, "memory_splits": 0, "device_wait": None, "compiled": None,
}  # fmt: skip
"""Fields that records of earlier versions lack, and what is taken for them."""
_REQUIRED = tuple(f.name for f in fields(CommitRecord) if f.name not in _LATER)


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


def parse_record(name: str, data: bytes) -> CommitRecord:
    """The record in a file of this name.

    Raises:
        DamagedError: with what is wrong with it.
    """
    record = CommitRecord.from_json(unsealed(data))
    if record.row_range is not None and not is_sealed(data):  # earlier versions wrote neither
        raise DamagedError("it has no checksum")
    if record.shard != name.removesuffix(".json"):
        raise DamagedError(f"it is the record of shard {record.shard}")
    return record


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


def by_unit(records: Iterable[CommitRecord]) -> dict[int, list[CommitRecord]]:
    """Records by the number of their unit, each unit's in the order of its shards."""
    units: dict[int, list[CommitRecord]] = {}
    for record in in_order(records):
        units.setdefault(record.unit, []).append(record)
    return units
