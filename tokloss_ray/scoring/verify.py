"""Does a finished output keep its promises? Re-reads every file, unit by unit, so that memory does not grow with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.schema import IGN
from tokloss_ray.scoring import output as output_folder
from tokloss_ray.scoring.commit import read_records
from tokloss_ray.scoring.ragged import list_lengths, offsets_of, one_array, sum_per_row
from tokloss_ray.scoring.summary import Totals, missing_shards, total
from tokloss_ray.storage import files_below, open_location, open_random, read_whole

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
_READ = [
    schema.EXAMPLE_ID,
    schema.SOURCE,
    schema.SOURCE_ROW,
    schema.WINDOW,
    schema.INPUT_IDS,
    schema.WORD_IDS,
    schema.NUM_TOKENS,
    schema.NUM_LABELS,
    schema.TOTAL_LOSS,
    *_SAME_LENGTH,
]


@dataclass
class Verified:
    """What was found. `problems` is empty if every promise holds; `repeated_ids` are rows whose id came before."""

    totals: Totals
    files: int = 0
    repeated_ids: int = 0
    problems: list[str] = field(default_factory=list)


def verify(output: str) -> Verified:
    """Check a finished output.

    Every record's files are there, with the sizes and row counts it says, and no others; rows in = rows scored + rows
    in errors; every (source, source_row, window) is there once, within the unit it belongs to; lists are of equal
    length, losses finite and 0 where there is no label, sums right.

    Raises:
        Refused: it is not an output of this program, or not finished.
    """
    run = output_folder.read_run(output)
    if run is None:
        raise Refused(f"{output} is not an output of tokloss: it has no {output_folder.RUN}")
    if not output_folder.is_finished(output):
        raise Refused(f"{output} is not finished: tokloss status says what is missing")
    records = read_records(output)
    found = Verified(total(records.values()))
    fs, root = open_location(output)
    units = pq.read_table(pa.BufferReader(read_whole(fs, f"{root}/{output_folder.PLAN}"))).to_pylist()
    found.problems += [f"shard {name} is missing" for _, name in missing_shards(range(len(units)), records.values())]
    found.problems += file_problems(output, records.values())
    found.problems += _sums(found.totals, run, _success(output))
    by_unit: dict[int, list[dict]] = {}
    for record in records.values():
        by_unit.setdefault(record["unit"], []).append(record)
        found.files += len(record["files"]) + (record["errors_file"] is not None)
    ids: list[np.ndarray] = []
    with ThreadPoolExecutor(8) as pool:
        for problems, hashes in pool.map(
            lambda unit: _check_unit(output, unit, by_unit.get(unit["number"], [])), units
        ):
            found.problems += problems[: max(0, MOST_PROBLEMS - len(found.problems))]
            ids.append(hashes)
    found.repeated_ids = _repeated(ids)
    return found


def file_problems(output: str, records: Iterable[dict[str, Any]]) -> list[str]:
    """What a listing shows: files that records name and that are not there or of another size, and files of nobody."""
    fs, root = open_location(output)
    there = {
        file.path.removeprefix(f"{root}/"): file.size
        for folder in ("scores", "errors")
        for file in files_below(fs, f"{root}/{folder}")
        if not file.path.rsplit("/", 1)[1].startswith(".")
    }
    problems = []
    for record in records:
        for file in [*record["files"], *([record["errors_file"]] if record["errors_file"] else [])]:
            size = there.pop(file["path"], None)
            if size is None:
                problems.append(f"shard {record['shard']}: {file['path']} is missing")
            elif size != file["bytes"]:
                problems.append(f"shard {record['shard']}: {file['path']} has {size:,} bytes, not {file['bytes']:,}")
    return problems + [f"{path} belongs to no shard" for path in sorted(there)]


def repeated_ids(output: str, records: Iterable[dict[str, Any]]) -> int:
    """How many scored rows have an id that another row has too."""
    paths = [file["path"] for record in records for file in record["files"]]
    with ThreadPoolExecutor(8) as pool:
        return _repeated(pool.map(lambda path: _ids(_read(output, path, [schema.EXAMPLE_ID, schema.WINDOW])), paths))


def _repeated(hashes: Iterable[np.ndarray]) -> int:
    together = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
    return len(together) - len(np.unique(together))


def _ids(table: pa.Table) -> np.ndarray:
    """A 64-bit hash of the id of each row; further windows of a row do not count."""
    first = table.filter(pc.equal(table.column(schema.WINDOW), 0)).column(schema.EXAMPLE_ID)
    import pandas as pd  # late: it takes a fifth of a second, which the start of a run would wait for

    return pd.util.hash_array(first.to_numpy(), categorize=False)


def _success(output: str) -> bytes:
    fs, root = open_location(output)
    return read_whole(fs, f"{root}/{output_folder.SUCCESS}")


def _sums(totals: Totals, run: dict[str, Any], success: bytes) -> Iterator[str]:
    written = json.loads(success)
    for name in ("rows", "scored_rows", "error_rows", "sequences", "tokens", "labels"):
        if written.get(name) != getattr(totals, name):
            yield f"{name}: the records add up to {getattr(totals, name):,}, _SUCCESS says {written.get(name)}"
    if totals.rows != totals.scored_rows + totals.error_rows:
        yield f"{totals.rows:,} rows in, {totals.scored_rows:,} scored and {totals.error_rows:,} in errors"
    if run["plan"]["rows"] is not None and totals.rows != run["plan"]["rows"]:
        yield f"{totals.rows:,} rows in the records, {run['plan']['rows']:,} in the plan"


def _check_unit(output: str, unit: dict[str, Any], records: list[dict[str, Any]]) -> tuple[list[str], np.ndarray]:
    """Problems of one unit's files, and the hashes of its ids."""
    problems: list[str] = []
    keys, refused, ids = [], [], [np.zeros(0, dtype=np.uint64)]
    for record in sorted(records, key=lambda r: r["index"]):
        sequences = 0
        for file in record["files"]:
            try:
                table = _read(output, file["path"], _READ)
            except (pa.ArrowException, FileNotFoundError) as error:
                problems.append(f"{file['path']} cannot be read: {str(error).splitlines()[0]}")
                continue
            sequences += table.num_rows
            if table.num_rows != file["rows"]:
                problems.append(f"{file['path']} has {table.num_rows:,} rows, its record says {file['rows']:,}")
            problems += [f"{file['path']}: {problem}" for problem in _check_table(table, unit)]
            keys.append(_key(table, schema.WINDOW))
            ids.append(_ids(table))
        if sequences != record["sequences"]:
            problems.append(
                f"shard {record['shard']}: {sequences:,} sequences, its record says {record['sequences']:,}"
            )
        if record["errors_file"]:
            errors = _read(output, record["errors_file"]["path"], [schema.SOURCE, schema.SOURCE_ROW, "reason"])
            refused.append(one_array(errors.column(schema.SOURCE_ROW)).to_numpy())
            if errors.num_rows != record["error_rows"]:
                problems.append(
                    f"{record['errors_file']['path']} has {errors.num_rows:,} rows, not {record['error_rows']:,}"
                )
            if not set(errors.column("reason").to_pylist()) <= set(schema.REASONS):
                problems.append(f"{record['errors_file']['path']} has a reason that is none")
    return problems + list(_once(unit, keys, refused)), np.concatenate(ids)


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
        yield f"{where}: row {row}, window {window} is there more than once"
    rows, windows = np.unique(unique[:, 0], return_counts=True)
    last = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(last, np.searchsorted(rows, unique[:, 0]), unique[:, 1])
    for row in rows[last + 1 != windows][:10].tolist():
        yield f"{where}: row {row} lacks a window"
    bad = np.concatenate([np.zeros(0, dtype=np.int64), *refused])
    twice, counts = np.unique(bad, return_counts=True)
    for row in twice[counts > 1][:10].tolist():
        yield f"{where}: row {row} is in errors more than once"
    for row in np.intersect1d(rows, bad)[:10].tolist():
        yield f"{where}: row {row} is scored and in errors"
    outside = [r for r in [*rows.tolist(), *bad.tolist()] if r < unit["start"] or 0 <= unit["stop"] <= r]
    for row in outside[:10]:
        yield f"{where}: row {row} is none of its rows"
    count = len(rows) + len(twice)
    if unit["rows"] is not None and count != unit["rows"]:
        yield f"{where}: {count:,} rows, the plan says {unit['rows']:,}"


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
    if set(pc.unique(table.column(schema.SOURCE)).to_pylist()) - {unit["source"]}:
        yield f"it has rows of another file than {unit['source']}"
    sums = {
        schema.NUM_TOKENS: lengths,
        schema.NUM_LABELS: sum_per_row(labelled, offsets),
        schema.TOTAL_LOSS: np.add.reduceat(losses.astype(np.float64), offsets[:-1]) if len(lengths) else np.zeros(0),
    }
    for name, values in sums.items():
        if not np.allclose(table.column(name).to_numpy(), values, rtol=1e-5, atol=1e-5):
            yield f"{name} is wrong"


def _read(output: str, path: str, columns: list[str]) -> pa.Table:
    fs, root = open_location(output)
    with open_random(fs, f"{root}/{path}") as file:
        return pq.ParquetFile(file, pre_buffer=True).read(columns=columns, use_threads=False)
