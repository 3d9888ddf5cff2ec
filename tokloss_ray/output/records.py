"""Commit records: what is done, read from the folder `_commits`, and which rows of its unit each shard holds.

The rows of a unit are counted from 0 in the order in which they are read; a record holds `start` and `stop` of its
shard in this count, and the `first_row` and `last_row` of it as `source_row` numbers. So it shows when two attempts cut
a unit at different places, which would lose rows or score them twice.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tokloss_ray.errors import JobFailed
from tokloss_ray.scoring.stages.shard import shard_name
from tokloss_ray.storage.files import files_below, open_location, read_files
from tokloss_ray.storage.sealed import DamagedError, is_sealed, unsealed

COMMITS = "_commits"

Record = dict[str, Any]


class Rows(NamedTuple):
    """The rows of a shard: [start, stop) in the count of its unit, the highest source_row (-1: there is none), and
    whether the unit ends with them."""

    start: int
    stop: int
    last_row: int
    last: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Rows:
        """The rows that a record, or what is known of a shard before it has one, says the shard holds."""
        last_row = record["last_row"]
        return cls(record["start"], record["stop"], -1 if last_row is None else last_row, record["last"])


@dataclass
class Scan:
    """What is in `_commits`.

    Attributes:
        records: by the name of their shard, in the order of the names.
        damaged: file name (`000017-003.json`) -> what is wrong with it; it does not count as a record.
        strangers: file names of records of other runs.
    """

    records: dict[str, Record] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)


def scan_records(output: str, fingerprint: str | None = None) -> Scan:
    """Read all commit records of an output, those that are damaged apart.

    With a fingerprint, records of other runs are set apart: a worker that was thought dead may have written one late.
    """
    fs, root = open_location(output)
    scan = Scan()
    for path, data in read_files(fs, f"{root}/{COMMITS}", ".json"):
        name = posixpath.basename(path)
        try:
            record = unsealed(data)
        except DamagedError as error:
            scan.damaged[name] = str(error)
            continue
        if "start" in record and not is_sealed(data):  # earlier versions wrote neither
            scan.damaged[name] = "it has no checksum"
        elif record.get("shard") != name.removesuffix(".json"):
            scan.damaged[name] = f"it is the record of shard {record.get('shard')}"
        elif fingerprint is not None and record["fingerprint"] != fingerprint:
            scan.strangers.append(name)
        else:
            scan.records[record["shard"]] = record
    return scan


def read_records(output: str, fingerprint: str | None = None) -> dict[str, Record]:
    """The commit records of an output by the name of their shard, in the order of the names.

    Raises:
        JobFailed: a record is damaged.
    """
    scan = scan_records(output, fingerprint)
    for name, problem in scan.damaged.items():
        raise JobFailed(
            f"{output}/{COMMITS}/{name} is damaged ({problem}): the same tokloss score command scores that shard again"
        )
    return scan.records


def by_unit(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Records by the number of their unit, each unit's in the order of its shards."""
    units: dict[int, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r["unit"], r["index"])):
        units.setdefault(record["unit"], []).append(record)
    return units


def range_problems(units: Mapping[int, int | None], records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    """Where the shards of a unit do not hold its rows from the first to the last, each once: (shard, what is wrong).

    units: the rows of each unit by its number, None where metadata do not tell. Missing shards are another matter
    (`missing_shards`): nothing is said of what follows one. Records of earlier versions hold no rows.
    """
    for number, of_unit in by_unit(records).items():
        after, rows = 0, units.get(number)
        if number not in units:
            yield of_unit[0]["shard"], f"the plan has no unit {number}"
            continue
        for position, record in enumerate(of_unit):
            if record["index"] != position or "start" not in record:
                break
            name = shard_name(number, position)
            held = Rows.of(record)
            if held.start != after:
                yield name, f"it begins at row {held.start:,} of its unit, the shard before it ends at row {after:,}"
                break
            if held.stop - held.start != record["rows"]:
                yield name, f"it has {record['rows']:,} rows, from {held.start:,} to {held.stop:,}"
            after = held.stop
            if record["last"]:
                if position + 1 < len(of_unit):
                    yield name, f"it is the last of its unit, but shard {of_unit[position + 1]['shard']} follows"
                if rows is not None and after != rows:
                    yield name, f"its unit ends at row {after:,}, the plan says {rows:,}"
                break


def files_of(record: Record) -> list[dict[str, Any]]:
    """The data files that a record names, that of errors/ among them: path, rows, bytes, sha256."""
    return [*record["files"], *([record["errors_file"]] if record["errors_file"] else [])]


def file_problems(output: str, records: Iterable[Record]) -> list[tuple[str | None, str]]:
    """What a listing shows, by shard: files that records name and that are not there or of another size; and, with None
    for the shard, files of nobody."""
    fs, root = open_location(output)
    there = {
        file.path.removeprefix(f"{root}/"): file.size
        for folder in ("scores", "errors")
        for file in files_below(fs, f"{root}/{folder}")
        if not posixpath.basename(file.path).startswith(".")
    }
    problems: list[tuple[str | None, str]] = []
    for record in records:
        for file in files_of(record):
            size = there.pop(file["path"], None)
            if size is None:
                problems.append((record["shard"], f"{file['path']} is missing"))
            elif size != file["bytes"]:
                problems.append((record["shard"], f"{file['path']} has {size:,} bytes, not {file['bytes']:,}"))
    return problems + [(None, f"{path} belongs to no shard") for path in sorted(there)]
