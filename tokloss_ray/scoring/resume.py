"""What earlier attempts have left: the shards that count, those to score again, and what is still to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokloss_ray.output import folder as output
from tokloss_ray.output.records import Record, Rows, file_problems, scan_records
from tokloss_ray.output.totals import missing_shards
from tokloss_ray.scoring.job import ReadUnit


@dataclass(frozen=True)
class Committed:
    """What is committed.

    Attributes:
        records: of the shards that count.
        redo: why a shard has to be scored again, by the file name of its record: the record is damaged, or a data file
            is missing, has another size, or was found damaged by `tokloss verify`.
        complete: no shard is missing.
        noted: `verify` has left a note of what it found.
    """

    records: dict[str, Record] = field(default_factory=dict)
    redo: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    noted: bool = False

    @property
    def damaged(self) -> bool:
        """Something has to be taken back."""
        return bool(self.redo) or self.noted


def find_committed(folder: str, run: dict[str, Any]) -> Committed:
    """What the attempts of a run have committed, held against a listing of its data files. Changes nothing."""
    scan = scan_records(folder, run["fingerprint"][:6])
    noted = output.read_damage(folder)
    redo = {name: f"its record is damaged ({problem})" for name, problem in scan.damaged.items()}
    redo |= dict.fromkeys(scan.strangers, "its record is of another run")
    redo |= {f"{shard}.json": f"{problem}" for shard, problem in file_problems(folder, scan.records.values()) if shard}
    redo |= {f"{shard}.json": "tokloss verify found it damaged" for shard in noted or () if shard in scan.records}
    records = {shard: record for shard, record in scan.records.items() if f"{shard}.json" not in redo}
    complete = not missing_shards(range(run["plan"]["units"]), records.values())
    return Committed(records, redo, complete, noted is not None)


def take_back(folder: str, found: Committed) -> None:
    """Remove the records of the shards that have to be scored again, and `_SUCCESS` where not all is there."""
    if found.damaged or not found.complete:
        output.undo(folder, found.redo)


def unfinished(units: list[ReadUnit], records: Mapping[str, Record]) -> list[ReadUnit]:
    """The units that lack a shard."""
    missing = {number for number, _ in missing_shards((unit.number for unit in units), records.values())}
    return [unit for unit in units if unit.number in missing]


def rows_by_unit(records: Iterable[Record]) -> dict[int, dict[int, Rows]]:
    """Which rows the committed shards of each unit hold, by the shard's number in its unit."""
    held: dict[int, dict[int, Rows]] = {}
    for record in records:
        held.setdefault(record["unit"], {})[record["index"]] = Rows.of(record)
    return held
