"""A corpus that grows: which files an output has already, and which are to be added to it."""

from __future__ import annotations

from dataclasses import dataclass

from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.inputs.listing import InputFile
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
    new: list[InputFile]


def find_base(config: ScoreConfig, run: Run | None, files: list[InputFile]) -> Base | None:
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
    sizes, versions = recorded.column("size").to_pylist(), recorded.column("version").to_pylist()
    known = dict(zip(recorded.column("source").to_pylist(), zip(sizes, versions, strict=True), strict=True))
    new = [file for file in files if file.source not in known]
    same = [file for file in files if file.source in known]
    changed = [file.source for file in same if known[file.source] != (file.listed.size, file.listed.version)]
    if changed:
        raise Refused(
            f"{_some(changed)} no longer what {config.output} has of it: put what is new beside it under another name, "
            f"or start over with --overwrite"
        )
    if not config.append:
        if new:
            raise Refused(
                f"{_some([file.source for file in new])} not in {config.output}: add with --append, or leave out of "
                f"--input"
            )
        lost = known.keys() - {file.source for file in files}
        if lost:
            raise Refused(f"{_some(sorted(lost))} in {config.output}, but not in --input: name all, or use --append")
    return Base(run.units, new)


def _some(sources: list[str]) -> str:
    """`a.jsonl is`, or `a.jsonl and 2 more files are`."""
    more = len(sources) - 1
    return f"{sources[0]} is" if not more else f"{sources[0]} and {more:,} more file{'s' if more > 1 else ''} are"
