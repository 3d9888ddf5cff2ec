"""How far the run of an output folder has come, from its records alone."""

from __future__ import annotations

from dataclasses import dataclass

from tokloss_ray.errors import Refused
from tokloss_ray.output.done import read_committed
from tokloss_ray.output.run import is_finished, not_an_output, read_run
from tokloss_ray.output.totals import Totals


@dataclass(frozen=True)
class Status:
    """State of a run. `rows` is what the input holds, where metadata tell; `missing` names shards and units."""

    finished: bool
    units: int
    units_missing: int
    rows: int | None
    missing: list[str]
    totals: Totals
    tokens_per_busy_second: float | None


def read_status(output: str) -> Status:
    """The state of the run in a folder.

    Raises:
        Refused: the folder is not an output of this program.
    """
    run = read_run(output)
    if run is None:
        raise Refused(not_an_output(output))
    committed = read_committed(output, run.short_fingerprint)
    missing = committed.done.missing(range(run.units))
    totals, busy = committed.tally.totals(), committed.tally.busy
    return Status(
        finished=is_finished(output),
        units=run.units,
        units_missing=len({unit for unit, _ in missing}),
        rows=run.rows,
        missing=[name for _, name in missing],
        totals=totals,
        tokens_per_busy_second=totals.tokens / busy if busy else None,
    )
