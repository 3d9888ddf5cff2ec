"""Does a finished output keep its promises? Re-reads every file, unit by unit, so that memory does not grow with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.output.done import Committed, Done, file_problems, list_data
from tokloss_ray.output.names import COMMITS, DATA_FILE, INPUTS, PLAN, RUN, SUCCESS
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.records import RecordStream
from tokloss_ray.output.repeats import count_repeats
from tokloss_ray.output.run import (
    Run,
    fingerprint,
    is_finished,
    not_an_output,
    note_damage,
    read_run,
    read_success,
    recorded_inputs,
    recorded_parts,
)
from tokloss_ray.output.totals import Totals
from tokloss_ray.output.verify_unit import Damaged, Part, check_unit, id_hashes
from tokloss_ray.storage.files import is_local, open_location, open_random
from tokloss_ray.storage.sealed import DamagedError
from tokloss_ray.threads import map_in_threads

MOST_PROBLEMS = 1000
_THREADS = 8
"""More than cores: objects are waited for."""
_MEMORY, _BYTES_A_TOKEN = 1 << 30, 40
"""What the files that are checked side by side may take, and what they do: a file's bytes are read whole."""


@dataclass
class Verified:
    """What was found.

    Attributes:
        files: data files that the records name.
        repeated_ids: rows whose id came before.
        problems: promises that do not hold; empty if all is well.
        redo: shards whose record or files are damaged: the same `score` command scores them again, and writes
            `_SUCCESS` again.
        beyond_repair: problems that scoring these shards again does not solve.
    """

    totals: Totals
    files: int = 0
    repeated_ids: int = 0
    problems: list[str] = field(default_factory=list)
    redo: set[str] = field(default_factory=set)
    beyond_repair: int = 0

    def add(self, problem: str, redo: str | None = None, repaired: bool = False) -> None:
        """Note a problem. redo: the shard to score again. repaired: the next attempt puts it right by itself."""
        if redo is not None:
            self.redo.add(redo)
        elif not repaired:
            self.beyond_repair += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)


def verify(output: str) -> Verified:
    """Check a finished output.

    Every byte of records and data files is what was written; every record's files are there, and no others; the shards
    of a unit hold its rows from the first to the last; rows in = rows scored + rows in errors; every (source,
    source_row, window) is there once, within the unit it belongs to; every column can be read, lists are of equal
    length, losses finite and 0 where there is no label, sums right.

    Damaged shards are noted in the output (`_damaged.json`), for the next `score` to do them again; nothing else is
    written.

    Raises:
        Refused: it is not an output of this program, is not finished, or its `_run.json` is damaged.
    """
    run = read_run(output)
    if run is None:
        raise Refused(not_an_output(output))
    if not is_finished(output):
        raise Refused(f"{output} is not finished: tokloss status shows what is missing")
    stream = RecordStream(output, run.short_fingerprint, rolled=False)
    committed = Committed()
    recorded = recorded_parts(output, run)
    plan = _PlannedParts(recorded)
    of_units: list[tuple[Damaged, list[str]]] = []

    def check(records: list[CommitRecord]) -> tuple[Damaged, list[str], np.ndarray]:
        unit = records[0].unit
        return check_unit(output, unit, plan.parts(unit), records, not Done(records).missing([unit]))

    checks = map_in_threads(check, _by_unit(stream, committed, run.units), _threads(output, run))
    repeated = count_repeats(_hashes(checks, of_units))
    found = Verified(committed.tally.totals(), committed.files().num_rows, repeated)
    written = _check_folder(output, run, found)
    for name, problem in stream.damaged.items():
        found.add(f"{COMMITS}/{name} is damaged: {problem}", redo=name.removesuffix(".json"))
    for name in stream.of_other_runs:
        found.add(f"{COMMITS}/{name} belongs to another run", repaired=True)
    if recorded is None:
        found.add(f"{PLAN} is damaged or missing", repaired=True)
    if run.plan.inputs_sha256 is not None and recorded_inputs(output, run) is None:
        found.add(f"{INPUTS} is damaged or missing", repaired=True)
    missing = dict(committed.done.missing(range(run.units)))
    for name in missing.values():
        if f"{name}.json" not in stream.damaged:
            found.add(f"shard {name} is missing", repaired=True)
    for shard, problem in committed.done.misfits({number: plan.rows(number) for number in range(run.units)}):
        found.add(f"shard {shard}: {problem}")
    for file_of, problem in file_problems(list_data(output), committed.files()):
        ours = DATA_FILE.fullmatch(problem.split()[0].rpartition("/")[2])
        found.add(f"shard {file_of}: {problem}" if file_of else problem, redo=file_of, repaired=ours is not None)
    if written is not None and not missing:
        for problem in _sums(found.totals, run, written):
            found.add(problem)
    for damaged, problems in of_units:
        for shard, problem in damaged:
            if shard not in found.redo:  # one whose file has another size is told already
                found.add(f"shard {shard}: {problem}", redo=shard)
        for problem in problems:
            found.add(problem)
    if len(found.problems) > found.beyond_repair:
        note_damage(output, committed.among(found.redo))
    return found


def _by_unit(records: Iterable[CommitRecord], committed: Committed, units: int) -> Iterator[list[CommitRecord]]:
    """The records of each unit of the plan, in the order of its shards; all are counted as they go by.

    records: by the names of their shards, so that those of a unit come together.
    """
    for unit, of_unit in groupby(records, key=lambda record: record.unit):
        known = [record for record in of_unit if committed.add(record)]
        if known and 0 <= unit < units:
            yield sorted(known, key=lambda record: record.index)


def _hashes(
    checks: Iterator[tuple[Damaged, list[str], np.ndarray]], of_units: list[tuple[Damaged, list[str]]]
) -> Iterator[np.ndarray]:
    """The hashes of the ids of each unit; what is wrong with it is put by."""
    for damaged, problems, hashes in checks:
        if damaged or problems:
            of_units.append((damaged, problems))
        yield hashes


def _threads(output: str, run: Run) -> int:
    """How many units are checked side by side: fewer where shards are large, and on a disk no more than cores."""
    most = max(1, min(_THREADS, _MEMORY // max(1, run.identity.get("shard_tokens", 0) * _BYTES_A_TOKEN)))
    return min(most, os.cpu_count() or 1) if is_local(open_location(output)[0]) else most


class _PlannedParts:
    """The rows of the plan by their unit; None for all where the plan is lost."""

    def __init__(self, recorded: pa.Table | None) -> None:
        self.recorded = recorded
        self.numbers = np.zeros(0, np.int64) if recorded is None else recorded.column("number").to_numpy()

    def _of(self, unit: int) -> pa.Table | None:
        start, stop = np.searchsorted(self.numbers, [unit, unit + 1]).tolist()
        return None if self.recorded is None or start == stop else self.recorded.slice(start, stop - start)

    def parts(self, unit: int) -> list[Part] | None:
        """The parts of a unit."""
        rows = self._of(unit)
        return None if rows is None else rows.to_pylist()

    def rows(self, unit: int) -> int | None:
        """Rows of a unit, None where metadata do not tell."""
        rows = self._of(unit)
        if rows is None or rows.column("rows").null_count:
            return None
        return pc.sum(rows.column("rows")).as_py() or 0


def _check_folder(output: str, run: Run, found: Verified) -> dict[str, Any] | None:
    """Look at `_SUCCESS` and `_run.json`; the totals in `_SUCCESS`, None where it is to be written again."""
    if fingerprint(run.identity) != run.fingerprint:
        found.add(f"{RUN} has a fingerprint that does not match its settings")
    try:
        return read_success(output, run)
    except DamagedError as error:
        found.add(f"{SUCCESS} is damaged: {error}", repaired=True)
        return None


def repeated_ids(output: str, records: Iterable[CommitRecord]) -> int:
    """How many scored rows have an id that another row has too."""
    paths = [file.path for record in records for file in record.files]
    return count_repeats(map_in_threads(lambda path: _read_ids(output, path), paths, _THREADS))


def _read_ids(output: str, path: str) -> np.ndarray:
    fs, root = open_location(output)
    with open_random(fs, f"{root}/{path}") as file:
        columns = [schema.EXAMPLE_ID, schema.WINDOW]
        return id_hashes(pq.ParquetFile(file, pre_buffer=True).read(columns=columns, use_threads=False))


def _sums(totals: Totals, run: Run, written: dict[str, Any]) -> Iterator[str]:
    for name in ("rows", "scored_rows", "error_rows", "sequences", "tokens", "labels"):
        if written.get(name) != getattr(totals, name):
            yield f"{name}: the records add up to {getattr(totals, name):,}, but _SUCCESS says {written.get(name)}"
    if totals.rows != totals.scored_rows + totals.error_rows:
        yield f"{totals.rows:,} rows in, {totals.scored_rows:,} scored and {totals.error_rows:,} in errors"
    if run.rows is not None and totals.rows != run.rows:
        yield f"{totals.rows:,} rows in the records, but {run.rows:,} in the plan"
