"""The output folder as a whole: whose it is, what is done, and when it is finished."""

from __future__ import annotations

import json
import platform
import posixpath
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused, StorageFailed
from tokloss_ray.faults import fault_point
from tokloss_ray.output.records import COMMITS, Record, files_of
from tokloss_ray.scoring.job import ReadUnit
from tokloss_ray.scoring.lease import LEASE
from tokloss_ray.scoring.plan import Plan, fingerprint
from tokloss_ray.scoring.stages.journal import ATTEMPTS
from tokloss_ray.storage.files import (
    children,
    exists,
    file_names,
    files_below,
    kind_of,
    open_location,
    read_whole,
    remove,
    write_whole,
)
from tokloss_ray.storage.sealed import DamagedError, sealed, unsealed

RUN, PLAN, SUCCESS, REPORT = "_run.json", "_plan.parquet", "_SUCCESS", "report.html"
DAMAGED = "_damaged.json"
"""The shards that `verify` found damaged, for the next attempt to score again."""
DATA_FILE = re.compile(r"(\d{6,}-\d{3,})-[0-9a-f]{6}\.parquet")
"""Names that this program gives to data files: shard and fingerprint."""
_RUN_KEYS = {"fingerprint", "identity", "plan", "settings", "tags", "versions"}
FOLDERS = (COMMITS, ATTEMPTS, "scores", "errors", "mining")

_PLAN_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("source", pa.string()),
        ("format", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("rows", pa.int64()),
        ("size", pa.int64()),
        ("offset", pa.int64()),
    ]
)


def read_run(output: str) -> dict[str, Any] | None:
    """What `_run.json` says, or None where there is none.

    Raises:
        Refused: it is damaged, or another program's.
    """
    fs, root = open_location(output)
    try:
        data = read_whole(fs, f"{root}/{RUN}")
        run = unsealed(data)
        unsealed(data, strict=has_checksums(run))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedError as error:
        raise Refused(f"{output}/{RUN} is damaged ({error}): restore it, or remove the folder") from None
    if not run.keys() >= _RUN_KEYS:
        raise Refused(f"{output}/{RUN} was not written by tokloss: name another folder")
    return run


def has_checksums(run: dict[str, Any]) -> bool:
    """Whether the run's files have them: those of earlier versions do not."""
    identity = run.get("identity")
    return isinstance(identity, dict) and identity.get("format", 0) > 2


def run_file(output: str) -> str:
    """Where `_run.json` is."""
    return f"{output.rstrip('/')}/{RUN}"


def check_folder(output: str) -> None:
    """Write into a new folder, an empty one or one of ours only.

    Raises:
        Refused: it is a file, or holds files of somebody else.
    """
    fs, root = open_location(output)
    kind = kind_of(fs, root)
    if kind == "file":
        raise Refused(f"--output {output} is a file: name a folder")
    if kind is None or read_run(output) is not None:
        return
    # A run that died before it had written _run.json leaves at most its plan behind.
    names = (posixpath.basename(entry["name"]) for entry in children(fs, root))
    foreign = next((name for name in names if name not in (PLAN, LEASE) and not name.endswith(".tmp")), None)
    if foreign is not None:
        raise Refused(f"--output {output} is not empty and not an output of tokloss ({foreign}): name another folder")


def is_finished(output: str) -> bool:
    """Whether `_SUCCESS` is there."""
    fs, root = open_location(output)
    return exists(fs, f"{root}/{SUCCESS}")


def read_finished(output: str, partial: bool, verb: str) -> tuple[dict[str, Any], bool]:
    """What `_run.json` of a finished output says, with `partial` also of an unfinished one; and whether it is finished.

    Raises:
        Refused: it is no output, or not finished; `verb` says what cannot be done with it then.
    """
    run = read_run(output)
    if run is None:
        raise Refused(f"{output} is not an output of tokloss score")
    finished = is_finished(output)
    if not finished and not partial:
        raise Refused(f"{output} is not finished: score it to the end, or {verb} what there is with --partial")
    return run, finished


def check_same_run(run: dict[str, Any], plan: Plan, output: str, finished: bool) -> None:
    """Refuse to mix two runs in one folder, or two versions of what cuts words into tokens in one run.

    Raises:
        Refused: with the identity settings or the version that differ.
    """
    theirs, ours = run["identity"], plan.job.identity
    if run["fingerprint"] == fingerprint(ours):
        before, now = run["versions"].get("tokenizers"), version("tokenizers")
        if not finished and before != now:
            raise Refused(
                f"--output {output} was begun with tokenizers {before}, and {now} is installed here, which may make "
                f"other tokens: install tokenizers=={before}, or start afresh with --overwrite"
            )
        return
    differing = [key for key in ours if theirs.get(key) != ours[key]] + [key for key in theirs if key not in ours]
    named = ", ".join(_difference(key, theirs.get(key), ours.get(key)) for key in differing)
    raise Refused(
        f"--output {output} belongs to another run; it differs in {named}. "
        f"Use another --output, or start afresh with --overwrite"
    )


def _difference(key: str, theirs: Any, ours: Any) -> str:
    if key == "input":
        before, now = {tuple(f) for f in theirs or ()}, {tuple(f) for f in ours or ()}
        changed = sorted({f[0] for f in before ^ now})
        return f"input ({changed[0]}{f' and {len(changed) - 1} more files' if len(changed) > 1 else ''})"
    if key in ("model", "tokenizer"):
        return f"{key} (other files)"
    return f"{key.replace('_', '-')} ({json.dumps(theirs)} there, {json.dumps(ours)} now)"


def start_run(plan: Plan, settings: dict[str, Any]) -> None:
    """Write the plan, then `_run.json`, which makes the folder this run's."""
    fs, root = open_location(plan.job.output)
    fault_point("plan.before")
    plan_sha256 = _write_plan(plan)
    fault_point("plan.written")
    identity = plan.job.identity
    run = {
        "fingerprint": fingerprint(identity),
        "settings": settings,
        "identity": identity,
        "tags": plan.job.tags,
        "plan": {
            "units": len(plan.units),
            "rows": plan.rows,
            "estimated_rows": plan.estimated_rows,
            "estimated_tokens": plan.estimated_tokens,
            "estimated_shards": plan.estimated_shards,
            "sha256": plan_sha256,
        },
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name) for name in ("tokloss-ray", "ray", "torch", "transformers", "tokenizers", "pyarrow")
            },
        },
    }
    write_whole(fs, f"{root}/{RUN}", sealed(run, indent=1))
    fault_point("run.written")


def _write_plan(plan: Plan) -> str:
    """Write the units, all but what may change between attempts; returns the file's SHA-256."""
    fs, root = open_location(plan.job.output)
    rows = [{k: v for k, v in asdict(unit).items() if k not in ("path", "version")} for unit in plan.units]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _PLAN_SCHEMA), sink)
    data = memoryview(sink.getvalue())
    write_whole(fs, f"{root}/{PLAN}", data)
    return sha256(data).hexdigest()


def recorded_units(output: str, run: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of the plan, or None if its file is not there or is not what was written."""
    fs, root = open_location(output)
    try:
        data = read_whole(fs, f"{root}/{PLAN}")
    except FileNotFoundError:
        return None
    written = run["plan"].get("sha256")  # earlier versions wrote none
    if written is not None and sha256(data).hexdigest() != written:
        return None
    return pq.read_table(pa.BufferReader(data)).to_pylist()


def read_plan(plan: Plan, run: dict[str, Any]) -> list[ReadUnit]:
    """The recorded units of a run that goes on, with today's paths of their files.

    A plan that is lost or damaged is made again: it depends on nothing but what the fingerprint covers.

    Raises:
        Refused: the plan made today is another one.
    """
    rows = recorded_units(plan.job.output, run)
    if rows is None:
        if _write_plan(plan) != run["plan"].get("sha256"):
            raise Refused(
                f"{plan.job.output}/{PLAN} is lost or damaged, and cannot be made again: start afresh with --overwrite"
            )
        return plan.units
    files = {unit.source: unit for unit in plan.units}
    return [replace(files[row["source"]], **row) for row in rows]


def clear(output: str) -> None:
    """Remove what a run has written; `_run.json` last, so that a crash in between leaves the folder ours."""
    fs, root = open_location(output)
    for name in (SUCCESS, DAMAGED, *FOLDERS, REPORT, PLAN, RUN):
        remove(fs, f"{root}/{name}")
        fault_point("clear", name)


def forget_attempts(output: str) -> None:
    """Remove the journals of shards that killed workers: what they found is in errors/ by now."""
    fs, root = open_location(output)
    remove(fs, f"{root}/{ATTEMPTS}")


def remove_strangers(output: str, records: Mapping[str, Record]) -> None:
    """Remove what no record of the finished run names: data files and records of other runs, which a worker that was
    thought dead has written late, and files of an attempt in which a shard came out otherwise (without bad rows, say).
    """
    fs, root = open_location(output)
    named = {file["path"] for record in records.values() for file in files_of(record)}
    for folder in ("scores", "errors"):
        for file in files_below(fs, f"{root}/{folder}"):
            if DATA_FILE.fullmatch(posixpath.basename(file.path)) and file.path.removeprefix(f"{root}/") not in named:
                remove(fs, file.path)
    for name in file_names(fs, f"{root}/{COMMITS}", ".json"):
        if name.removesuffix(".json") not in records:
            remove(fs, f"{root}/{COMMITS}/{name}")


def finish(output: str, totals: dict[str, Any]) -> None:
    """Write `_SUCCESS`, with the totals, as the last file of a run."""
    fs, root = open_location(output)
    fault_point("success.before")
    write_whole(fs, f"{root}/{SUCCESS}", sealed(totals, indent=1))
    fault_point("success.after")


def read_success(output: str, run: dict[str, Any]) -> dict[str, Any]:
    """The totals in `_SUCCESS` of a run.

    Raises:
        DamagedError: it is not what was written.
    """
    fs, root = open_location(output)
    return unsealed(read_whole(fs, f"{root}/{SUCCESS}"), strict=has_checksums(run))


def note_damage(output: str, shards: Iterable[str]) -> None:
    """Leave word for the next attempt: these shards are damaged. An output that cannot be written keeps none."""
    fs, root = open_location(output)
    with suppress(StorageFailed):
        write_whole(fs, f"{root}/{DAMAGED}", sealed({"shards": sorted(shards)}))


def read_damage(output: str) -> set[str] | None:
    """The shards that `note_damage` named, None if there is no such note (or none that can be read)."""
    fs, root = open_location(output)
    try:
        return set(unsealed(read_whole(fs, f"{root}/{DAMAGED}"))["shards"])
    except (FileNotFoundError, NotADirectoryError, DamagedError, KeyError):
        return None


def undo(output: str, record_files: Iterable[str]) -> None:
    """Take back `_SUCCESS` and some commit records (`000017-003.json`), so that their shards are scored again.

    `_SUCCESS` goes first and the note of damage last: whatever of it is interrupted, the next attempt does the rest.
    """
    fs, root = open_location(output)
    remove(fs, f"{root}/{SUCCESS}")
    for name in record_files:
        remove(fs, f"{root}/{COMMITS}/{name}")
    remove(fs, f"{root}/{DAMAGED}")
