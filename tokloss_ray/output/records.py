"""Commit records: what is done, read from the folder `_commits`, and which rows of its unit each shard holds.

The rows of a unit are counted from 0 in the order in which they are read; a record holds `start` and `stop` of its
shard in this count, and the `first_row` and `last_row` of it as `source_row` numbers. So it shows when two attempts cut
a unit at different places, which would lose rows or score them twice.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from tokloss_ray.errors import JobFailed
from tokloss_ray.output.names import COMMITS, ERRORS, SCORES, shard_name
from tokloss_ray.storage.files import files_below, open_location, read_files
from tokloss_ray.storage.sealed import DamagedError, is_sealed, unsealed


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
    versions have None for `last_source`, `batching`, and `start` to `last_row`; a shard without rows has None for the
    two rows. Losses are in nats.
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
            known["files"] = tuple(DataFile(**file) for file in content["files"])
            known["errors_file"] = None if errors_file is None else DataFile(**errors_file)
            known["loss_by_tag"] = {tag: (count, total) for tag, (count, total) in content["loss_by_tag"].items()}
        except KeyError as error:
            raise DamagedError(f"it has no {error.args[0]}") from None
        except (TypeError, ValueError, AttributeError):
            raise DamagedError("it is not a commit record") from None
        return cls(**known)


_LATER: dict[str, Any] = {
    "last_source": None, "start": None, "stop": None, "first_row": None, "last_row": None, "batching": None,
    "storage_retries": 0, "memory_splits": 0,
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


def scan_records(output: str, fingerprint: str | None = None) -> Scan:
    """Read all commit records of an output, those that are damaged apart.

    With a fingerprint, records of other runs are set apart: a worker that was thought dead may have written one late.
    """
    fs, root = open_location(output)
    scan = Scan()
    for path, data in read_files(fs, f"{root}/{COMMITS}", ".json"):
        name = posixpath.basename(path)
        try:
            record = CommitRecord.from_json(unsealed(data))
            if record.row_range is not None and not is_sealed(data):  # earlier versions wrote neither
                raise DamagedError("it has no checksum")
            if record.shard != name.removesuffix(".json"):
                raise DamagedError(f"it is the record of shard {record.shard}")
        except DamagedError as error:
            scan.damaged[name] = str(error)
            continue
        if fingerprint is not None and record.fingerprint != fingerprint:
            scan.of_other_runs.append(name)
        else:
            scan.records[record.shard] = record
    return scan


def read_records(output: str, fingerprint: str | None = None) -> dict[str, CommitRecord]:
    """The commit records of an output by the name of their shard, in the order of the names.

    Raises:
        JobFailed: a record is damaged.
    """
    scan = scan_records(output, fingerprint)
    for name, problem in scan.damaged.items():
        raise JobFailed(
            f"{output}/{COMMITS}/{name} is damaged ({problem}): run the same tokloss score command to score it again"
        )
    return scan.records


def in_order(records: Iterable[CommitRecord]) -> list[CommitRecord]:
    """Records by unit, and by their place in it."""
    return sorted(records, key=lambda record: (record.unit, record.index))


def by_unit(records: Iterable[CommitRecord]) -> dict[int, list[CommitRecord]]:
    """Records by the number of their unit, each unit's in the order of its shards."""
    units: dict[int, list[CommitRecord]] = {}
    for record in in_order(records):
        units.setdefault(record.unit, []).append(record)
    return units


def missing_shards(units: Iterable[int], records: Iterable[CommitRecord]) -> list[tuple[int, str]]:
    """What is not committed yet, as (unit, name): shards before a unit's last one, and units without a last one."""
    done: dict[int, set[int]] = {}
    last: dict[int, int] = {}
    for record in records:
        done.setdefault(record.unit, set()).add(record.index)
        if record.last:
            last[record.unit] = record.index
    missing = []
    for unit in units:
        have = done.get(unit, set())
        if unit not in last:
            known = f" after {max(have):03d}" if have else ""
            missing.append((unit, f"{unit:06d}{known}"))
        else:
            missing += [(unit, shard_name(unit, i)) for i in range(last[unit]) if i not in have]
    return missing


def range_problems(units: Mapping[int, int | None], records: Iterable[CommitRecord]) -> Iterator[tuple[str, str]]:
    """Where the shards of a unit do not hold its rows from the first to the last, each once: (shard, what is wrong).

    units: the rows of each unit by its number, None where metadata do not tell. Missing shards are another matter
    (`missing_shards`): nothing is said of what follows one. Records of earlier versions hold no rows.
    """
    for number, of_unit in by_unit(records).items():
        after, rows = 0, units.get(number)
        if number not in units:
            yield of_unit[0].shard, f"the plan has no unit {number}"
            continue
        for position, record in enumerate(of_unit):
            held = record.row_range
            if record.index != position or held is None:
                break
            if held.start != after:
                before = f"but the previous shard ends at row {after:,}"
                yield record.shard, f"it begins at row {held.start:,} of its unit, {before}"
                break
            if held.stop - held.start != record.rows:
                yield record.shard, f"it has {record.rows:,} rows, from {held.start:,} to {held.stop:,}"
            after = held.stop
            if record.last:
                if position + 1 < len(of_unit):
                    yield record.shard, f"it is the last of its unit, but shard {of_unit[position + 1].shard} follows"
                if rows is not None and after != rows:
                    yield record.shard, f"its unit ends at row {after:,}, but the plan says {rows:,}"
                break


def file_problems(output: str, records: Iterable[CommitRecord]) -> list[tuple[str | None, str]]:
    """What a listing shows, by shard: files that records name and that are not there or of another size; and, with None
    for the shard, files of nobody."""
    fs, root = open_location(output)
    there = {
        file.path.removeprefix(f"{root}/"): file.size
        for folder in (SCORES, ERRORS)
        for file in files_below(fs, f"{root}/{folder}")
        if not posixpath.basename(file.path).startswith(".")
    }
    problems: list[tuple[str | None, str]] = []
    for record in records:
        for file in record.all_files:
            size = there.pop(file.path, None)
            if size is None:
                problems.append((record.shard, f"{file.path} is missing"))
            elif size != file.bytes:
                problems.append((record.shard, f"{file.path} has {size:,} bytes, not {file.bytes:,}"))
    return problems + [(None, f"{path} belongs to no shard") for path in sorted(there)]
