"""What a pass has to do: read units, each with the runs that lack shards of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.output.record import RowRange
from tokloss_ray.scoring.job import Job, encodes_alike


class Work(NamedTuple):
    """A read unit, which is read and encoded once for all its runs.

    Attributes:
        held: by the number of a run that lacks shards of the unit, the rows that its committed ones hold, by index.
    """

    unit: ReadUnit
    held: dict[int, Mapping[int, RowRange]]


def shared_work(
    jobs: Sequence[Job],
    lacking: Sequence[Sequence[ReadUnit]],
    held: Sequence[Mapping[int, Mapping[int, RowRange]]],
) -> list[Work]:
    """The units of several runs, those that are the same for runs whose jobs encode alike put together.

    Args:
        jobs: of the runs.
        lacking: the units of which each run lacks shards.
        held: the rows that each run's committed shards hold, by unit and index; nothing for units without any.

    Returns:
        The work in the order of the units' numbers.
    """
    found: dict[tuple[int, int], list[Work]] = {}
    for number, units in enumerate(lacking):
        like = next(other for other in range(number + 1) if encodes_alike(jobs[other], jobs[number]))
        for unit in units:
            there = found.setdefault((unit.number, like), [])
            work = next((work for work in there if _same(work.unit, unit)), None)
            if work is None:
                work = Work(unit, {})
                there.append(work)
            work.held[number] = held[number].get(unit.number, {})
    return [work for place in sorted(found) for work in found[place]]


def _same(one: ReadUnit, other: ReadUnit) -> bool:
    """Whether two units of one number read the same."""
    return one is other or bool(one.table.equals(other.table))
