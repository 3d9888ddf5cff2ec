"""The output folder as `score` writes it: begun, resumed, cleared and finished."""

from __future__ import annotations

import json
import platform
import posixpath
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused
from tokloss_ray.faults import fault_point
from tokloss_ray.inputs.unit import PART_SCHEMA, ReadUnit, parts_table, units_of
from tokloss_ray.output.done import Committed, strangers
from tokloss_ray.output.names import (
    ATTEMPTS,
    CARD,
    COMMITS,
    DAMAGED,
    DATA_FILE,
    FOLDERS,
    INPUTS,
    LEASE,
    OF_ADDITION,
    PLAN,
    REPORT,
    RUN,
    SUCCESS,
)
from tokloss_ray.output.run import (
    PlanFigures,
    Run,
    fingerprint,
    of_generation,
    read_run,
    recorded_inputs,
    recorded_parts,
)
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.storage.files import children, kind_of, open_location, remove, write_whole
from tokloss_ray.storage.sealed import sealed

INPUT_COLUMNS = ("source", "size", "version")
_MAY_CHANGE = ("path", "version", "file_size")
"""Fields of a part that are not in the plan: they may be others at the next attempt."""
_RECORDED = tuple(name for name in PART_SCHEMA.names if name not in _MAY_CHANGE)


def check_folder(output: str) -> None:
    """Write into a new folder, an empty one or one of ours only.

    Raises:
        Refused: it is a file, or holds files of somebody else.
    """
    fs, root = open_location(output)
    kind = kind_of(fs, root)
    if kind == "file":
        raise Refused(f"--output {output} is a file: choose a folder")
    if kind is None or read_run(output) is not None:
        return
    # A run that died before it had written _run.json leaves at most its plan behind.
    names = (posixpath.basename(entry["name"]) for entry in children(fs, root))
    foreign = next((name for name in names if name not in (PLAN, INPUTS, LEASE) and not name.endswith(".tmp")), None)
    if foreign is not None:
        raise Refused(f"--output {output} is not empty and not an output of tokloss ({foreign}): choose another folder")


def check_same_run(run: Run, plan: Plan, output: str, finished: bool) -> None:
    """Refuse to mix two runs in one folder, or two versions of what cuts words into tokens in one run.

    Raises:
        Refused: with the identity settings or the version that differ.
    """
    theirs, ours = run.identity, plan.job.identity
    if run.fingerprint == fingerprint(ours):
        before, now = run.versions.get("tokenizers"), version("tokenizers")
        if not finished and before != now:
            raise Refused(
                f"--output {output} was started with tokenizers {before}, but {now} is installed here, which may make "
                f"different tokens: install tokenizers=={before}, or start over with --overwrite"
            )
        return
    differing = [key for key in ours if theirs.get(key) != ours[key]] + [key for key in theirs if key not in ours]
    differences = {key: _difference(key, theirs.get(key), ours.get(key)) for key in differing}
    if "input" in differences:
        differences["input"] = _changed_input(recorded_inputs(output, run), plan.inputs)
    named = ", ".join(differences.values())
    raise Refused(
        f"--output {output} belongs to another run; it differs in {named}. "
        f"Use another --output, or start over with --overwrite"
    )


def _changed_input(before: pa.Table | None, now: pa.Table) -> str:
    if before is None:
        return "input (other files)"
    files = [set(zip(*(table.column(n).to_pylist() for n in INPUT_COLUMNS), strict=True)) for table in (before, now)]
    changed = sorted({file[0] for file in files[0] ^ files[1]})
    if not changed:
        return "input (the same files in another order)"
    return f"input ({changed[0]}{f' and {len(changed) - 1:,} more files' if len(changed) > 1 else ''})"


def _difference(key: str, theirs: Any, ours: Any) -> str:
    if key in ("model", "tokenizer"):
        return f"{key} (other files)"
    return f"{key.replace('_', '-')} ({json.dumps(theirs)} there, {json.dumps(ours)} now)"


def start_run(plan: Plan, settings: dict[str, Any]) -> None:
    """Write the plan, then `_run.json`, which makes the folder this run's."""
    fs, root = open_location(plan.job.output)
    fault_point("plan.before")
    inputs_sha256 = _write_table(fs, f"{root}/{INPUTS}", plan.inputs)
    plan_sha256 = _write_plan(plan)
    fault_point("plan.written")
    identity = plan.job.identity
    names = ("tokloss-ray", "ray", "torch", "transformers", "tokenizers", "pyarrow")
    run = Run(
        fingerprint=fingerprint(identity),
        settings=settings,
        identity=identity,
        tags=plan.job.tags,
        plan=_figures(plan, plan_sha256, inputs_sha256),
        versions={"python": platform.python_version(), **{name: version(name) for name in names}},
    )
    write_whole(fs, f"{root}/{RUN}", sealed(run.to_json(), indent=1))
    fault_point("run.written")


def add_generation(plan: Plan, run: Run) -> Run:
    """Add the plan of new files to a run; returns the run as it is then.

    `_SUCCESS` goes first: with the run's new plan the output is not finished.
    """
    fs, root = open_location(plan.job.output)
    fault_point("append.begin")
    remove(fs, f"{root}/{SUCCESS}")
    fault_point("append.unfinished")
    number = len(run.generations)
    inputs_sha256 = _write_table(fs, f"{root}/{of_generation(INPUTS, number)}", plan.inputs)
    plan_sha256 = _write_plan(plan, number)
    fault_point("append.planned")
    run = replace(run, additions=(*run.additions, _figures(plan, plan_sha256, inputs_sha256)))
    write_whole(fs, f"{root}/{RUN}", sealed(run.to_json(), indent=1))
    fault_point("append.written")
    return run


def _figures(plan: Plan, plan_sha256: str, inputs_sha256: str) -> PlanFigures:
    return PlanFigures(
        units=len(plan.units),
        rows=plan.rows,
        estimated_rows=plan.estimated_rows,
        estimated_tokens=plan.estimated_tokens,
        estimated_shards=plan.estimated_shards,
        sha256=plan_sha256,
        inputs_sha256=inputs_sha256,
    )


def _write_plan(plan: Plan, generation: int = 0) -> str:
    """Write the units, all but what may change between attempts; returns the file's SHA-256."""
    fs, root = open_location(plan.job.output)
    return _write_table(fs, f"{root}/{of_generation(PLAN, generation)}", parts_table(plan.units, without=_MAY_CHANGE))


def _write_table(fs: fsspec.AbstractFileSystem, path: str, table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = memoryview(sink.getvalue())
    write_whole(fs, path, data)
    return sha256(data).hexdigest()


def read_plan(plan: Plan, run: Run) -> list[ReadUnit]:
    """The recorded units of a run that goes on, with today's paths of their files; of a file that is not in the input
    any more the path is empty.

    A plan that is lost or damaged is made again: it depends on nothing but what the fingerprint covers.

    Raises:
        Refused: the plan made today is another one.
    """
    if not run.additions and recorded_inputs(plan.job.output, run) is None:  # else `find_base` has read them
        fs, root = open_location(plan.job.output)
        _write_table(fs, f"{root}/{INPUTS}", plan.inputs)
    recorded = recorded_parts(plan.job.output, run)
    if recorded is None:
        if run.additions or _write_plan(plan) != run.plan.sha256:
            raise Refused(
                f"{plan.job.output}/{PLAN} is lost or damaged and cannot be made again: start over with --overwrite"
            )
        return plan.units
    now = plan.files.table
    now = now.take(pc.index_in(recorded.column("source").cast(pa.string()), now.column("source")))
    columns = {name: recorded.column(name) for name in _RECORDED}
    columns |= {name: pc.fill_null(now.column(name), "") for name in ("path", "version")}
    columns["file_size"] = pc.fill_null(now.column("size"), 0)
    table = pa.table([columns[f.name].cast(f.type) for f in PART_SCHEMA], PART_SCHEMA)
    return units_of(table, recorded.column("number").to_numpy())


def clear(output: str) -> None:
    """Remove what a run has written; `_run.json` last, so that a crash in between leaves the folder ours."""
    fs, root = open_location(output)
    names = {posixpath.basename(entry["name"]) for entry in children(fs, root)}
    of_additions = sorted(name for name in names if OF_ADDITION.fullmatch(name))
    for name in (SUCCESS, CARD, DAMAGED, *FOLDERS, REPORT, *of_additions, PLAN, INPUTS, RUN):
        remove(fs, f"{root}/{name}")
        fault_point("clear", name)


def forget_attempts(output: str) -> None:
    """Remove the journals of shards that killed workers: what they found is in errors/ by now."""
    fs, root = open_location(output)
    remove(fs, f"{root}/{ATTEMPTS}")


def remove_strangers(output: str, committed: Committed, listing: pa.Table) -> pa.Table:
    """Remove what no record of the finished run names: data files and records of other runs, which a worker that was
    thought dead has written late, and files of an attempt in which a shard came out otherwise (without bad rows, say).

    listing: the data files; returns it without those that were removed.
    """
    fs, root = open_location(output)
    ours = [path for path in strangers(listing, committed.files()) if DATA_FILE.fullmatch(posixpath.basename(path))]
    names = [*committed.damaged, *committed.of_other_runs, *committed.other_segments]
    for path in (*ours, *(f"{COMMITS}/{name}" for name in names)):
        remove(fs, f"{root}/{path}")
    return listing.filter(pc.invert(pc.is_in(listing.column("path"), pa.array(ours, pa.string()))))


def write_success(output: str, card: str, totals: dict[str, Any]) -> None:
    """Write the card, and `_SUCCESS`, with the totals, as the last file of a run."""
    fs, root = open_location(output)
    write_whole(fs, f"{root}/{CARD}", card.encode())
    fault_point("success.before")
    write_whole(fs, f"{root}/{SUCCESS}", sealed(totals, indent=1))
    fault_point("success.after")


def undo(output: str, record_files: Iterable[str]) -> None:
    """Take back `_SUCCESS` and some commit records (`000017-003.json`), so that their shards are scored again.

    `_SUCCESS` goes first and the note of damage last: whatever of it is interrupted, the next attempt does the rest.
    """
    fs, root = open_location(output)
    remove(fs, f"{root}/{SUCCESS}")
    for name in record_files:
        remove(fs, f"{root}/{COMMITS}/{name}")
    remove(fs, f"{root}/{DAMAGED}")
