"""What `_run.json` says of a run, and the other files that an output has once: plan, `_SUCCESS`, note of damage."""

from __future__ import annotations

import json
import posixpath
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused, StorageFailed
from tokloss_ray.output.names import DAMAGED, INPUTS, PLAN, RUN, SUCCESS
from tokloss_ray.ragged import sum_if_known
from tokloss_ray.storage.files import children, exists, open_location, read_whole, write_whole
from tokloss_ray.storage.sealed import DamagedError, is_sealed, sealed, unsealed

_FIRST_WITH_CHECKSUMS = 3
_MOST_LOOKED_INTO = 50


@dataclass(frozen=True)
class PlanFigures:
    """What the plan came to, and checksums of `_plan.parquet` and `_inputs.parquet`.

    `rows` is None where metadata do not tell; checksums are None in runs of earlier versions.
    """

    units: int
    rows: int | None
    estimated_rows: int
    estimated_tokens: int
    estimated_shards: int
    sha256: str | None = None
    inputs_sha256: str | None = None


@dataclass(frozen=True)
class Run:
    """The run that an output folder belongs to.

    Attributes:
        fingerprint: SHA-256 over the identity.
        settings: as they were given, those that are not the default.
        identity: every setting and content that results depend on.
        tags: the model's, by id.
        plan: what the plan came to.
        additions: the same of the files that --append has added, generation after generation.
        versions: of Python and of the packages that results depend on, at the first attempt.
    """

    fingerprint: str
    settings: dict[str, Any]
    identity: dict[str, Any]
    tags: tuple[str, ...]
    plan: PlanFigures
    versions: dict[str, str]
    additions: tuple[PlanFigures, ...] = ()

    @property
    def generations(self) -> tuple[PlanFigures, ...]:
        """The plan and its additions."""
        return (self.plan, *self.additions)

    @property
    def units(self) -> int:
        """Read units of all generations; they are numbered through."""
        return sum(plan.units for plan in self.generations)

    @property
    def rows(self) -> int | None:
        """Rows of all generations, None where metadata do not tell."""
        return sum_if_known(plan.rows for plan in self.generations)

    def generation(self, unit: int) -> int:
        """The generation that a unit belongs to, counted from 0."""
        return bisect_right(list(accumulate(plan.units for plan in self.generations)), unit)

    @property
    def short_fingerprint(self) -> str:
        """The part of the fingerprint that file names and commit records carry."""
        return self.fingerprint[:6]

    @property
    def has_checksums(self) -> bool:
        """Whether the run's files have them: those of earlier versions do not."""
        return bool(self.identity.get("format", 0) >= _FIRST_WITH_CHECKSUMS)

    def to_json(self) -> dict[str, Any]:
        """As `_run.json` has it."""
        return {**asdict(self), "tags": list(self.tags)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Run:
        """From `_run.json`.

        Raises:
            KeyError, TypeError: it is not the file of a run.
        """
        names = ("fingerprint", "settings", "identity", "versions")
        return cls(
            tags=tuple(content["tags"]),
            plan=_figures(content["plan"]),
            additions=tuple(_figures(addition) for addition in content.get("additions", ())),
            **{name: content[name] for name in names},
        )


def _figures(content: dict[str, Any]) -> PlanFigures:
    figures: dict[str, Any] = {name: content.get(name) for name in PlanFigures.__dataclass_fields__}
    return PlanFigures(**figures)


def fingerprint(identity: dict[str, Any]) -> str:
    """SHA-256 over the identity settings."""
    return sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def input_identity(inputs: pa.Table) -> dict[str, Any]:
    """What tells one input from another: digests of the files' names and sizes, and of these with their versions.

    inputs: source, size, version; a row for each file, in the order in which they are read. The digest of names and
    sizes does not depend on the order.
    """
    names, content = sha256(), sha256()
    for batch in inputs.sort_by("source").to_batches(max_chunksize=1 << 16):
        files = zip(batch.column("source").to_pylist(), batch.column("size").to_pylist(), strict=True)
        names.update("".join(f"{source}\0{size}\n" for source, size in files).encode())
    for batch in inputs.to_batches(max_chunksize=1 << 16):
        rows = zip(*(batch.column(name).to_pylist() for name in ("source", "size", "version")), strict=True)
        content.update("".join(f"{source}\0{size}\0{version}\n" for source, size, version in rows).encode())
    size = pc.sum(inputs.column("size")).as_py() or 0
    return {"files": inputs.num_rows, "bytes": size, "names": names.hexdigest(), "content": content.hexdigest()}


def same_input_files(a: Run, b: Run) -> bool:
    """Whether two runs have read files of the same names and sizes."""

    def names(run: Run) -> Any:
        recorded = run.identity["input"]
        if isinstance(recorded, dict):
            return recorded["names"]
        # Earlier versions recorded each file.
        table = pa.Table.from_pylist([{"source": s, "size": n, "version": str(v)} for s, n, v in recorded])
        return input_identity(table)["names"] if recorded else None

    return bool(names(a) == names(b))


def recorded_inputs(output: str, run: Run) -> pa.Table | None:
    """The input files of a run (source, size, version), of all generations; None if their file is not there or is not
    what was written."""
    return _recorded(output, INPUTS, [plan.inputs_sha256 for plan in run.generations])


def input_order(output: str) -> list[str]:
    """The input files of an output, as in the column `source`, in their order; none if that is not to be known."""
    run = read_run(output)
    recorded = run.identity.get("input") if run else None
    if isinstance(recorded, list):  # earlier versions recorded each file
        return [source for source, *_ in recorded]
    table = recorded_inputs(output, run) if run else None
    return [] if table is None else list(table.column("source").to_pylist())


def not_an_output(output: str) -> str:
    """What is said of a folder without `_run.json`: where outputs of several models are in it, name them."""
    fs, root = open_location(output)
    folders = [entry["name"].rstrip("/") for entry in children(fs, root) if entry["type"] == "directory"]
    found = [posixpath.basename(name) for name in folders[:_MOST_LOOKED_INTO] if exists(fs, f"{name}/{RUN}")]
    if not found:
        return f"{output} is not an output of tokloss score: it has no {RUN}"
    inside = " and ".join(f"{output.rstrip('/')}/{name}" for name in found[:5]) + (" ..." if len(found) > 5 else "")
    return f"{output} is not an output of tokloss score, but holds some: name {inside}"


def run_file(output: str) -> str:
    """Where `_run.json` is."""
    return f"{output.rstrip('/')}/{RUN}"


def read_run(output: str) -> Run | None:
    """What `_run.json` says, or None where there is none.

    Raises:
        Refused: it is damaged, or another program's.
    """
    fs, root = open_location(output)
    try:
        data = read_whole(fs, f"{root}/{RUN}")
        content = unsealed(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedError as error:
        raise _damaged(output, error) from None
    try:
        run = Run.from_json(content)
        lacks_checksum = run.has_checksums and not is_sealed(data)
    except (KeyError, TypeError, AttributeError):
        raise Refused(f"{output}/{RUN} was not written by tokloss: choose another folder") from None
    if lacks_checksum:
        raise _damaged(output, DamagedError("it has no checksum"))
    return run


def _damaged(output: str, error: DamagedError) -> Refused:
    return Refused(f"{output}/{RUN} is damaged ({error}): restore it, or remove the folder")


def is_finished(output: str) -> bool:
    """Whether `_SUCCESS` is there."""
    fs, root = open_location(output)
    return exists(fs, f"{root}/{SUCCESS}")


def read_finished(output: str, partial: bool, verb: str) -> tuple[Run, bool]:
    """What `_run.json` of a finished output says, with `partial` also of an unfinished one; and whether it is finished.

    Raises:
        Refused: it is no output, or not finished; `verb` says what cannot be done with it then.
    """
    run = read_run(output)
    if run is None:
        raise Refused(not_an_output(output))
    finished = is_finished(output)
    if not finished and not partial:
        raise Refused(f"{output} is not finished: finish scoring it, or {verb} the committed part with --partial")
    return run, finished


def recorded_parts(output: str, run: Run) -> pa.Table | None:
    """The plan, one row for each part of a file, with the number of the unit that reads it; or None if its file is not
    there or is not what was written."""
    return _recorded(output, PLAN, [plan.sha256 for plan in run.generations])


def of_generation(name: str, generation: int) -> str:
    """`_plan.parquet` or `_inputs.parquet` of a generation: `_plan-001.parquet` is of the first addition."""
    return name if not generation else name.replace(".parquet", f"-{generation:03d}.parquet")


def _recorded(output: str, name: str, checksums: Sequence[str | None]) -> pa.Table | None:
    """What each generation has recorded, one after the other; None if one of them is lost or damaged."""
    tables = [_recorded_table(output, of_generation(name, i), checksum) for i, checksum in enumerate(checksums)]
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found) if len(found) == len(tables) else None


def _recorded_table(output: str, name: str, checksum: str | None) -> pa.Table | None:
    fs, root = open_location(output)
    try:
        data = read_whole(fs, f"{root}/{name}")
    except FileNotFoundError:
        return None
    if checksum is not None and sha256(data).hexdigest() != checksum:
        return None
    return pq.read_table(pa.BufferReader(data))


def read_success(output: str, run: Run) -> dict[str, Any]:
    """The totals in `_SUCCESS` of a run.

    Raises:
        DamagedError: it is not what was written.
    """
    fs, root = open_location(output)
    return unsealed(read_whole(fs, f"{root}/{SUCCESS}"), strict=run.has_checksums)


def note_damage(output: str, shards: Iterable[str]) -> None:
    """Note for the next attempt that these shards are damaged. An output that cannot be written keeps no note."""
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
