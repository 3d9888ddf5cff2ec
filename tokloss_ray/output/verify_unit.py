"""The files of one unit: read whole, and held to their records, to the plan and to each other."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.output.records import CommitRecord, DataFile
from tokloss_ray.ragged import list_lengths, offsets_of, one_array, sum_per_row
from tokloss_ray.schema import IGN
from tokloss_ray.storage.files import open_location, read_whole
from tokloss_ray.storage.sealed import DamagedError

_SAME_LENGTH = (
    schema.INPUT_TOKENS,
    schema.LABELS,
    schema.PREDICTED_LABEL,
    schema.LOSS,
    schema.PREDICTED_PROB,
    schema.SECOND_LABEL,
    schema.SECOND_PROB,
)

Damaged = list[tuple[str, str]]


def check_unit(
    output: str, unit: dict[str, Any], records: list[CommitRecord], complete: bool
) -> tuple[Damaged, list[str], np.ndarray]:
    """Damaged files of one unit by their shard, what is wrong with whole ones, and the hashes of the unit's ids.

    complete: the unit lacks no shard.
    """
    damaged: Damaged = []
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
                ids.append(id_hashes(table))
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


def id_hashes(table: pa.Table) -> np.ndarray:
    """A 64-bit hash of the id of each row; further windows of a row do not count."""
    first = table.filter(pc.equal(table.column(schema.WINDOW), 0)).column(schema.EXAMPLE_ID)
    import pandas as pd  # late: it takes a fifth of a second, which the start of a run would wait for

    return pd.util.hash_array(first.to_numpy(), categorize=False)
