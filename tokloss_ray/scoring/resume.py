"""What earlier attempts have left: the shards that count, those to score again, and what is still to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.output.records import CommitRecord, RowRange, file_problems, missing_shards, scan_records
from tokloss_ray.output.run import Run, read_damage
from tokloss_ray.scoring.folder import undo


@dataclass(frozen=True)
class EarlierAttempts:
    """What they have committed.

    Attributes:
        records: of the shards that count.
        redo: why a shard has to be scored again, by the file name of its record: the record is damaged, or a data file
            is missing, has another size, or was found damaged by `tokloss verify`.
        complete: no shard is missing.
        noted: `verify` has left a note of what it found.
    """

    records: dict[str, CommitRecord] = field(default_factory=dict)
    redo: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    noted: bool = False

    @property
    def damaged(self) -> bool:
        """Something has to be taken back."""
        return bool(self.redo) or self.noted


def find_committed(folder: str, run: Run) -> EarlierAttempts:
    """What the attempts of a run have committed, held against a listing of its data files. Changes nothing."""
    scan = scan_records(folder, run.short_fingerprint)
    noted = read_damage(folder)
    redo = {name: f"its record is damaged ({problem})" for name, problem in scan.damaged.items()}
    redo |= dict.fromkeys(scan.of_other_runs, "its record belongs to another run")
    redo |= {f"{shard}.json": f"{problem}" for shard, problem in file_problems(folder, scan.records.values()) if shard}
    redo |= {f"{shard}.json": "tokloss verify found it damaged" for shard in noted or () if shard in scan.records}
    records = {shard: record for shard, record in scan.records.items() if f"{shard}.json" not in redo}
    complete = not missing_shards(range(run.plan.units), records.values())
    return EarlierAttempts(records, redo, complete, noted is not None)


def take_back(folder: str, found: EarlierAttempts) -> None:
    """Remove the records of the shards that have to be scored again, and `_SUCCESS` where not all is there."""
    if found.damaged or not found.complete:
        undo(folder, found.redo)


def unfinished(units: list[ReadUnit], records: Mapping[str, CommitRecord]) -> list[ReadUnit]:
    """The units that lack a shard."""
    missing = {number for number, _ in missing_shards((unit.number for unit in units), records.values())}
    return [unit for unit in units if unit.number in missing]


def rows_by_unit(records: Iterable[CommitRecord]) -> dict[int, dict[int, RowRange]]:
    """Which rows the committed shards of each unit hold, by the shard's number in its unit."""
    held: dict[int, dict[int, RowRange]] = {}
    for record in records:
        if (rows := record.row_range) is not None:
            held.setdefault(record.unit, {})[record.index] = rows
    return held
