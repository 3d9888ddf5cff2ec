"""Does a finished output keep its promises? Re-reads every file, unit by unit, so that memory does not grow with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.output.names import COMMITS, DATA_FILE, PLAN, RUN, SUCCESS
from tokloss_ray.output.records import (
    CommitRecord,
    DataFile,
    by_unit,
    file_problems,
    missing_shards,
    range_problems,
    scan_records,
)
from tokloss_ray.output.run import (
    Run,
    fingerprint,
    is_finished,
    note_damage,
    read_run,
    read_success,
    recorded_units,
)
from tokloss_ray.output.totals import Totals, total
from tokloss_ray.ragged import list_lengths, offsets_of, one_array, sum_per_row
from tokloss_ray.schema import IGN
from tokloss_ray.storage.files import open_location, open_random, read_whole
from tokloss_ray.storage.sealed import DamagedError
from tokloss_ray.threads import in_context

MOST_PROBLEMS = 1000
_SAME_LENGTH = (
    schema.INPUT_TOKENS,
    schema.LABELS,
    schema.PREDICTED_LABEL,
    schema.LOSS,
    schema.PREDICTED_PROB,
    schema.SECOND_LABEL,
    schema.SECOND_PROB,
)


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
        raise Refused(f"{output} is not an output of tokloss: it has no {RUN}")
    if not is_finished(output):
        raise Refused(f"{output} is not finished: tokloss status shows what is missing")
    scan = scan_records(output, run.short_fingerprint)
    records = scan.records
    found = Verified(total(records.values()))
    again = _check_folder(output, run, found)
    for name, problem in scan.damaged.items():
        found.add(f"{COMMITS}/{name} is damaged: {problem}", redo=name.removesuffix(".json"))
    for name in scan.of_other_runs:
        found.add(f"{COMMITS}/{name} belongs to another run", repaired=True)
    units = recorded_units(output, run)
    if units is None:
        found.add(f"{PLAN} is damaged or missing", repaired=True)
        units = [{"number": number} for number in range(run.plan.units)]
    missing = dict(missing_shards(range(len(units)), records.values()))
    for name in missing.values():
        if f"{name}.json" not in scan.damaged:
            found.add(f"shard {name} is missing", repaired=True)
    for shard, problem in range_problems({u["number"]: u.get("rows") for u in units}, records.values()):
        found.add(f"shard {shard}: {problem}")
    for file_of, problem in file_problems(output, records.values()):
        ours = DATA_FILE.fullmatch(problem.split()[0].rpartition("/")[2])
        found.add(f"shard {file_of}: {problem}" if file_of else problem, redo=file_of, repaired=ours is not None)
    if not again and not missing:
        for problem in _sums(found.totals, run, read_success(output, run)):
            found.add(problem)
    found.files = sum(len(record.all_files) for record in records.values())
    of_unit = by_unit(records.values())
    ids: list[np.ndarray] = []
    with ThreadPoolExecutor(8) as pool:
        checks = pool.map(
            in_context(
                lambda unit: _check_unit(output, unit, of_unit.get(unit["number"], []), unit["number"] not in missing)
            ),
            units,
        )
        for damaged, problems, hashes in checks:
            for shard, problem in damaged:
                if shard not in found.redo:  # one whose file has another size is told already
                    found.add(f"shard {shard}: {problem}", redo=shard)
            for problem in problems:
                found.add(problem)
            ids.append(hashes)
    found.repeated_ids = _repeated(ids)
    if len(found.problems) > found.beyond_repair:
        note_damage(output, found.redo & records.keys())
    return found


def _check_folder(output: str, run: Run, found: Verified) -> bool:
    """Look at `_SUCCESS` and `_run.json`; whether `_SUCCESS` is to be written again."""
    if fingerprint(run.identity) != run.fingerprint:
        found.add(f"{RUN} has a fingerprint that does not match its settings")
    try:
        read_success(output, run)
    except DamagedError as error:
        found.add(f"{SUCCESS} is damaged: {error}", repaired=True)
        return True
    return False


def repeated_ids(output: str, records: Iterable[CommitRecord]) -> int:
    """How many scored rows have an id that another row has too."""
    paths = [file.path for record in records for file in record.files]
    with ThreadPoolExecutor(8) as pool:
        return _repeated(pool.map(in_context(lambda path: _read_ids(output, path)), paths))


def _read_ids(output: str, path: str) -> np.ndarray:
    fs, root = open_location(output)
    with open_random(fs, f"{root}/{path}") as file:
        columns = [schema.EXAMPLE_ID, schema.WINDOW]
        return _ids(pq.ParquetFile(file, pre_buffer=True).read(columns=columns, use_threads=False))


def _repeated(hashes: Iterable[np.ndarray]) -> int:
    together = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
    return len(together) - len(np.unique(together))


def _ids(table: pa.Table) -> np.ndarray:
    """A 64-bit hash of the id of each row; further windows of a row do not count."""
    first = table.filter(pc.equal(table.column(schema.WINDOW), 0)).column(schema.EXAMPLE_ID)
    import pandas as pd  # late: it takes a fifth of a second, which the start of a run would wait for

    return pd.util.hash_array(first.to_numpy(), categorize=False)


def _sums(totals: Totals, run: Run, written: dict[str, Any]) -> Iterator[str]:
    for name in ("rows", "scored_rows", "error_rows", "sequences", "tokens", "labels"):
        if written.get(name) != getattr(totals, name):
            yield f"{name}: the records add up to {getattr(totals, name):,}, but _SUCCESS says {written.get(name)}"
    if totals.rows != totals.scored_rows + totals.error_rows:
        yield f"{totals.rows:,} rows in, {totals.scored_rows:,} scored and {totals.error_rows:,} in errors"
    if run.plan.rows is not None and totals.rows != run.plan.rows:
        yield f"{totals.rows:,} rows in the records, but {run.plan.rows:,} in the plan"


_Damaged = list[tuple[str, str]]


def _check_unit(
    output: str, unit: dict[str, Any], records: list[CommitRecord], complete: bool
) -> tuple[_Damaged, list[str], np.ndarray]:
    """Damaged files of one unit by their shard, what is wrong with whole ones, and the hashes of the unit's ids.

    complete: the unit lacks no shard.
    """
    damaged: _Damaged = []
    problems: list[str] = []
    keys, refused, ids = [], [], [np.zeros(0, dtype=np.uint64)]
    for record in records:
        shard, rows = record.shard, {"sequences": 0, "scored_rows": 0, "error_rows": 0}
        numbers = [np.zeros(0, dtype=np.int64)]
        for file in record.all_files:
            try:
                table = _read_whole_file(output, file)
            except (DamagedError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
                damaged.append((shard, f"{file.path} is damaged: {str(error).splitlines()[0]}"))
                continue
            if table.num_rows != file.rows:
                problems.append(f"{file.path} has {table.num_rows:,} rows, but its record says {file.rows:,}")
            if file is record.errors_file:
                refused.append(one_array(table.column(schema.SOURCE_ROW)).to_numpy())
                rows["error_rows"] += table.num_rows
                if not set(table.column("reason").to_pylist()) <= set(schema.REASONS):
                    problems.append(f"{file.path} has an unknown reason")
            else:
                rows["sequences"] += table.num_rows
                rows["scored_rows"] += pc.sum(pc.equal(table.column(schema.WINDOW), 0)).as_py() or 0
                problems += [f"{file.path}: {problem}" for problem in _check_table(table, unit)]
                keys.append(_key(table, schema.WINDOW))
                ids.append(_ids(table))
            numbers.append(one_array(table.column(schema.SOURCE_ROW)).to_numpy())
        if not any(name == shard for name, _ in damaged):
            problems += [f"shard {shard}: {problem}" for problem in _against_record(record, rows, numbers)]
    if not damaged and complete and "source" in unit:
        problems += _once(unit, keys, refused)
    return damaged, problems, np.concatenate(ids)


def _against_record(record: CommitRecord, rows: dict[str, int], numbers: list[np.ndarray]) -> Iterator[str]:
    """Whether the files of a shard hold the rows that its record says; numbers: their source_rows."""
    for name, count in rows.items():
        if count != getattr(record, name):
            yield f"{count:,} {name.replace('_', ' ')}, but its record says {getattr(record, name):,}"
    together = np.concatenate(numbers)
    if record.row_range is not None and len(together):
        held = int(together.min()), int(together.max())
        if held != (record.first_row, record.last_row):
            said = f"{record.first_row} to {record.last_row}"
            yield f"it holds rows {held[0]} to {held[1]} of the file, but its record says {said}"


def _read_whole_file(output: str, file: DataFile) -> pa.Table:
    """All columns of a data file.

    Raises:
        DamagedError: its bytes are not those that were written.
        pa.ArrowException: it cannot be decoded.
    """
    fs, root = open_location(output)
    data = read_whole(fs, f"{root}/{file.path}")
    if file.sha256 is not None and sha256(data).hexdigest() != file.sha256:
        raise DamagedError("its checksum does not match")
    table = pq.read_table(pa.BufferReader(data), use_threads=False, partitioning=None)
    table.validate(full=True)
    return table


def _key(table: pa.Table, *more: str) -> np.ndarray:
    return np.stack(
        [one_array(table.column(n)).to_numpy().astype(np.int64) for n in (schema.SOURCE_ROW, *more)], axis=1
    )


def _once(unit: dict[str, Any], keys: list[np.ndarray], refused: list[np.ndarray]) -> Iterator[str]:
    """Each row of the unit is there once, with windows 0, 1, 2, ..., or is in errors once."""
    where = f"unit {unit['number']:06d} ({unit['source']})"
    scored = np.concatenate([np.zeros((0, 2), dtype=np.int64), *keys])
    unique, counts = np.unique(scored, axis=0, return_counts=True)
    for row, window in unique[counts > 1][:10].tolist():
        yield f"{where}: row {row}, window {window} appears more than once"
    rows, windows = np.unique(unique[:, 0], return_counts=True)
    last = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(last, np.searchsorted(rows, unique[:, 0]), unique[:, 1])
    for row in rows[last + 1 != windows][:10].tolist():
        yield f"{where}: row {row} is missing a window"
    bad = np.concatenate([np.zeros(0, dtype=np.int64), *refused])
    twice, counts = np.unique(bad, return_counts=True)
    for row in twice[counts > 1][:10].tolist():
        yield f"{where}: row {row} appears in errors more than once"
    for row in np.intersect1d(rows, bad)[:10].tolist():
        yield f"{where}: row {row} is scored and in errors"
    outside = [r for r in [*rows.tolist(), *bad.tolist()] if r < unit["start"] or 0 <= unit["stop"] <= r]
    for row in outside[:10]:
        yield f"{where}: row {row} is not one of its rows"
    count = len(rows) + len(twice)
    if unit["rows"] is not None and count != unit["rows"]:
        yield f"{where}: {count:,} rows, but the plan says {unit['rows']:,}"


def _check_table(table: pa.Table, unit: dict[str, Any]) -> Iterator[str]:
    """What must hold within one file of scores/."""
    lengths = list_lengths(one_array(table.column(schema.INPUT_IDS)))
    offsets = offsets_of(lengths)
    for name in _SAME_LENGTH:
        if not np.array_equal(list_lengths(one_array(table.column(name))), lengths):
            yield f"{name} is not as long as input_ids"
            return
    word_ids = one_array(table.column(schema.WORD_IDS))
    if not np.array_equal(list_lengths(word_ids), np.where(word_ids.is_valid(), lengths, 0)):
        yield "word_ids is not as long as input_ids"
    losses = one_array(table.column(schema.LOSS)).flatten().to_numpy(zero_copy_only=False)
    labelled = pc.not_equal(one_array(table.column(schema.LABELS)).flatten(), IGN).to_numpy(zero_copy_only=False)
    if not np.isfinite(losses).all():
        yield "a loss is not finite"
    if losses[~labelled].any():
        yield "a position without a label has a loss"
    source = unit.get("source")  # unknown where the plan is damaged
    if source is not None and set(pc.unique(table.column(schema.SOURCE)).to_pylist()) - {source}:
        yield f"it has rows of a file other than {source}"
    sums = {
        schema.NUM_TOKENS: lengths,
        schema.NUM_LABELS: sum_per_row(labelled, offsets),
        schema.TOTAL_LOSS: np.add.reduceat(losses.astype(np.float64), offsets[:-1]) if len(lengths) else np.zeros(0),
    }
    for name, values in sums.items():
        if not np.allclose(table.column(name).to_numpy(), values, rtol=1e-5, atol=1e-5):
            yield f"{name} is wrong"
