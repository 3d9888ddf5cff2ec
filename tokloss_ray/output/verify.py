"""Does a finished output keep its promises? Re-reads every file, unit by unit, so that memory does not grow with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.output.done import Committed, file_problems, list_data
from tokloss_ray.output.names import COMMITS, DATA_FILE, INPUTS, PLAN, RUN, SUCCESS
from tokloss_ray.output.records import CommitRecord, by_unit, scan_records
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
from tokloss_ray.ragged import sum_if_known
from tokloss_ray.storage.files import is_local, open_location, open_random
from tokloss_ray.storage.sealed import DamagedError
from tokloss_ray.threads import map_in_threads

MOST_PROBLEMS = 1000
_THREADS = 8
"""More than cores: objects are waited for."""
_MEMORY, _BYTES_A_TOKEN = 1 << 30, 250
"""What the files that are checked side by side may take, and what they do: a file is decoded whole."""


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
    scan = scan_records(output, run.short_fingerprint)
    records = scan.records
    committed = Committed(records.values())
    found = Verified(committed.tally.totals())
    written = _check_folder(output, run, found)
    for name, problem in scan.damaged.items():
        found.add(f"{COMMITS}/{name} is damaged: {problem}", redo=name.removesuffix(".json"))
    for name in scan.of_other_runs:
        found.add(f"{COMMITS}/{name} belongs to another run", repaired=True)
    recorded = recorded_parts(output, run)
    if recorded is None:
        found.add(f"{PLAN} is damaged or missing", repaired=True)
    if run.plan.inputs_sha256 is not None and recorded_inputs(output, run) is None:
        found.add(f"{INPUTS} is damaged or missing", repaired=True)
    parts = _parts_by_unit(recorded)
    missing = dict(committed.done.missing(range(run.units)))
    for name in missing.values():
        if f"{name}.json" not in scan.damaged:
            found.add(f"shard {name} is missing", repaired=True)
    rows = {number: _rows(parts.get(number)) for number in range(run.units)}
    for shard, problem in committed.done.misfits(rows):
        found.add(f"shard {shard}: {problem}")
    for file_of, problem in file_problems(list_data(output), committed.files()):
        ours = DATA_FILE.fullmatch(problem.split()[0].rpartition("/")[2])
        found.add(f"shard {file_of}: {problem}" if file_of else problem, redo=file_of, repaired=ours is not None)
    if written is not None and not missing:
        for problem in _sums(found.totals, run, written):
            found.add(problem)
    found.files = sum(len(record.all_files) for record in records.values())
    of_unit = by_unit(records.values())
    checks = map_in_threads(
        lambda unit: check_unit(output, unit, parts.get(unit), of_unit.get(unit, []), unit not in missing),
        range(run.units),
        _threads(output, records.values()),
    )
    found.repeated_ids = count_repeats(_ids(checks, found))
    if len(found.problems) > found.beyond_repair:
        note_damage(output, found.redo & records.keys())
    return found


def _threads(output: str, records: Iterable[CommitRecord]) -> int:
    """How many units are checked side by side: fewer where shards are large, and on a disk no more than cores."""
    largest = max((record.tokens for record in records), default=0)
    most = max(1, min(_THREADS, _MEMORY // max(1, largest * _BYTES_A_TOKEN)))
    return min(most, os.cpu_count() or 1) if is_local(open_location(output)[0]) else most


def _parts_by_unit(recorded: pa.Table | None) -> dict[int, list[Part]]:
    """The rows of the plan by their unit."""
    units: dict[int, list[Part]] = {}
    for part in [] if recorded is None else recorded.to_pylist():
        units.setdefault(part["number"], []).append(part)
    return units


def _rows(parts: list[Part] | None) -> int | None:
    """Rows of a unit, None where metadata do not tell."""
    return None if parts is None else sum_if_known(part["rows"] for part in parts)


def _check_folder(output: str, run: Run, found: Verified) -> dict[str, Any] | None:
    """Look at `_SUCCESS` and `_run.json`; the totals in `_SUCCESS`, None where it is to be written again."""
    if fingerprint(run.identity) != run.fingerprint:
        found.add(f"{RUN} has a fingerprint that does not match its settings")
    try:
        return read_success(output, run)
    except DamagedError as error:
        found.add(f"{SUCCESS} is damaged: {error}", repaired=True)
        return None


def _ids(checks: Iterator[tuple[Damaged, list[str], np.ndarray]], found: Verified) -> Iterator[np.ndarray]:
    """The hashes of the ids of each unit; what is wrong with it is noted as it goes by."""
    for damaged, problems, hashes in checks:
        for shard, problem in damaged:
            if shard not in found.redo:  # one whose file has another size is told already
                found.add(f"shard {shard}: {problem}", redo=shard)
        for problem in problems:
            found.add(problem)
        yield hashes


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
