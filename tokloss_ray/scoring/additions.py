"""A corpus that grows: which files an output has already, and which are to be added to it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.inputs.input_files import InputFiles
from tokloss_ray.output.names import INPUTS
from tokloss_ray.output.run import Run, recorded_inputs


@dataclass(frozen=True)
class Base:
    """What an output to which files were or will be added has already.

    Attributes:
        units: read units of all its generations; those of new files are numbered from here.
        new: files that it does not have yet.
    """

    units: int
    new: InputFiles


def find_base(config: ScoreConfig, run: Run | None, files: InputFiles) -> Base | None:
    """Hold the input against the files of a run; None where there is no run, or nothing is or was added to it.

    With --append, files that the run has need not be in the input: they were scored before.

    Raises:
        Refused: a file has changed since it was recorded, or without --append, the input has other files than the run.
    """
    if run is None or not (config.append or run.additions):
        return None
    recorded = recorded_inputs(config.output, run)
    if recorded is None:
        raise Refused(
            f"{config.output}/{INPUTS} is lost or damaged, so that new files cannot be told from those that are "
            f"scored: start over with --overwrite"
        )
    now = files.table
    place = pc.index_in(now.column("source"), recorded.column("source").cast(pa.string()))
    is_new = pc.is_null(place)
    new = InputFiles(now.filter(is_new))
    before = recorded.select(["size", "version"]).take(place)
    differs = pc.or_(*(pc.not_equal(before.column(name), now.column(name)) for name in ("size", "version")))
    changed = now.column("source").filter(pc.fill_null(differs, False)).to_pylist()
    if changed:
        raise Refused(
            f"{_some(changed)} no longer what {config.output} has of it: put what is new beside it under another name, "
            f"or start over with --overwrite"
        )
    if not config.append:
        if new:
            added = new.table.column("source").to_pylist()
            raise Refused(f"{_some(added)} not in {config.output}: add with --append, or leave out of --input")
        sources = recorded.column("source").cast(pa.string())
        lost = sources.filter(pc.invert(pc.is_in(sources, now.column("source")))).to_pylist()
        if lost:
            raise Refused(f"{_some(sorted(lost))} in {config.output}, but not in --input: name all, or use --append")
    return Base(run.units, new)


def _some(sources: list[str]) -> str:
    """`a.jsonl is`, or `a.jsonl and 2 more files are`."""
    more = len(sources) - 1
    return f"{sources[0]} is" if not more else f"{sources[0]} and {more:,} more file{'s' if more > 1 else ''} are"
