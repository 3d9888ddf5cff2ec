"""What earlier attempts have left: the shards that count, those to score again, and what is still to do."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import Refused
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.output.done import Committed, Done, file_problems, list_data, read_committed
from tokloss_ray.output.run import Run, read_damage
from tokloss_ray.scoring.folder import undo
from tokloss_ray.threads import in_background


@dataclass(frozen=True)
class EarlierAttempts:
    """What they have committed.

    Attributes:
        committed: the shards that count.
        redo: why a shard has to be scored again, by the file name of its record: the record is damaged, or a data file
            is missing, has another size, or was found damaged by `tokloss verify`.
        complete: no shard is missing.
        noted: `verify` has left a note of what it found.
        listing: the data files that the records were held against; None where there was no attempt.
    """

    committed: Committed = field(default_factory=Committed)
    redo: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    noted: bool = False
    listing: pa.Table | None = None

    @property
    def damaged(self) -> bool:
        """Something has to be taken back."""
        return bool(self.redo) or self.noted


def find_committed(folder: str, run: Run, *, owned: bool = False) -> EarlierAttempts:
    """What the attempts of a run have committed, held against a listing of its data files.

    Changes nothing; or, if the folder is `owned`, nothing but that many single records are rolled up.
    """
    listed = in_background(lambda: list_data(folder))
    committed = read_committed(folder, run.short_fingerprint, roll_up=owned)
    listing = listed.result()
    noted = read_damage(folder)
    redo = {name: f"its record is damaged ({problem})" for name, problem in committed.damaged.items()}
    redo |= dict.fromkeys(committed.of_other_runs, "its record belongs to another run")
    counting = {f"{shard}.json": problem for shard, problem in file_problems(listing, committed.files()) if shard}
    counting |= {f"{shard}.json": "tokloss verify found it damaged" for shard in committed.among(noted or ())}
    if counting:
        without = {name.removesuffix(".json") for name in counting}
        committed = read_committed(folder, run.short_fingerprint, without)
    complete = not committed.done.missing(range(run.units))
    return EarlierAttempts(committed, redo | counting, complete, noted is not None, listing)


def take_back(folder: str, found: EarlierAttempts) -> None:
    """Remove the records of the shards that have to be scored again, and `_SUCCESS` where not all is there."""
    if found.damaged or not found.complete:
        undo(folder, found.redo)


def unfinished(units: list[ReadUnit], done: Done) -> list[ReadUnit]:
    """The units that lack a shard.

    Raises:
        Refused: a file of one of them is not in the input any more.
    """
    missing = {number for number, _ in done.missing(unit.number for unit in units)}
    lacking = [unit for unit in units if unit.number in missing]
    for unit in lacking:
        lost = unit.table.column("source").filter(pc.equal(unit.table.column("path"), ""))
        if len(lost):
            raise Refused(f"{lost[0]} is not scored yet, and not in --input any more: name it too")
    return lacking
