"""The files of one unit: read whole, and held to their records, to the plan and to each other."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.output.record import CommitRecord, DataFile
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

_TOKENS = 1 << 17
"""Tokens of a file that are decoded at a time."""

Damaged = list[tuple[str, str]]
Part = dict[str, Any]
"""A row of the plan."""


def check_unit(
    output: str, number: int, parts: list[Part] | None, records: list[CommitRecord], complete: bool
) -> tuple[Damaged, list[str], np.ndarray]:
    """Damaged files of one unit by their shard, what is wrong with whole ones, and the hashes of the unit's ids.

    parts: rows of the plan (source, start, stop, rows), None where the plan is damaged. complete: the unit lacks no
    shard.
    """
    damaged: Damaged = []
    problems: list[str] = []
    ids = [np.zeros(0, dtype=np.uint64)]
    keys: list[pa.Table] = []
    for record in records:
        shard, rows = record.shard, {"sequences": 0, "scored_rows": 0, "error_rows": 0}
        of_shard: list[pa.Table] = []
        for file in record.all_files:
            try:
                found = _check_file(output, file, record, file is record.errors_file)
            except (DamagedError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
                damaged.append((shard, f"{file.path} is damaged: {str(error).splitlines()[0]}"))
                continue
            rows = {name: count + found.rows.get(name, 0) for name, count in rows.items()}
            problems += [f"{file.path}{problem}" for problem in found.problems]
            ids += found.ids
            of_shard += found.keys
        if not any(name == shard for name, _ in damaged):
            problems += [f"shard {shard}: {problem}" for problem in _against_record(record, rows, of_shard)]
        keys += of_shard
    if parts is not None:
        together = pa.concat_tables([_NO_KEYS, *keys])
        sources = pa.array([part["source"] for part in parts], pa.string())
        at = pc.index_in(together.column(schema.SOURCE), value_set=sources)
        if at.null_count:
            stranger = together.column(schema.SOURCE).filter(at.is_null())[0]
            problems.append(f"unit {number:06d} has rows of {stranger}, which is not one of its files")
        elif not damaged and complete:
            for part, rows_of_part in _by_part(parts, together, at):
                problems += _once(f"unit {number:06d} ({part['source']})", part, rows_of_part)
    return damaged, problems, np.concatenate(ids)


class _InFile(NamedTuple):
    """What is in a file: rows by what they count as, what is wrong, hashes of ids, and keys of rows."""

    rows: dict[str, int]
    problems: list[str]
    ids: list[np.ndarray]
    keys: list[pa.Table]


def _check_file(output: str, file: DataFile, record: CommitRecord, is_errors: bool) -> _InFile:
    """Look at every row of a file.

    Raises:
        DamagedError, pa.ArrowException, OSError, UnicodeDecodeError: it is damaged.
    """
    found = _InFile(dict.fromkeys(("sequences", "scored_rows", "error_rows"), 0), [], [], [])
    problems: dict[str, None] = {}
    total = 0
    for table in _read_file(output, file, record):
        total += table.num_rows
        found.keys.append(_keys(table))
        if is_errors:
            found.rows["error_rows"] += table.num_rows
            if not set(table.column("reason").to_pylist()) <= set(schema.REASONS):
                problems[" has an unknown reason"] = None
            continue
        found.rows["sequences"] += table.num_rows
        found.rows["scored_rows"] += pc.sum(pc.equal(table.column(schema.WINDOW), 0)).as_py() or 0
        problems |= dict.fromkeys(f": {problem}" for problem in _check_table(table))
        found.ids.append(id_hashes(table))
    if total != file.rows:
        found.problems.append(f" has {total:,} rows, but its record says {file.rows:,}")
    found.problems.extend(problems)
    return found


REFUSED = -1
"""In place of the window of a row in errors/."""
_NO_KEYS = pa.schema(
    [(schema.SOURCE, pa.string()), (schema.SOURCE_ROW, pa.int64()), (schema.WINDOW, pa.int32())]
).empty_table()


def _keys(table: pa.Table) -> pa.Table:
    """Source, source_row and window of each row of scores/ or errors/."""
    refused = pa.array(np.full(table.num_rows, REFUSED, dtype=np.int32))
    window = table.column(schema.WINDOW) if schema.WINDOW in table.column_names else refused
    columns = table.column(schema.SOURCE), table.column(schema.SOURCE_ROW), window
    return pa.table(dict(zip(_NO_KEYS.column_names, columns, strict=True))).cast(_NO_KEYS.schema)


def _by_part(parts: list[Part], keys: pa.Table, at: pa.ChunkedArray) -> Iterator[tuple[Part, np.ndarray]]:
    """The rows of each part, as source_row and window, int64 [n, 2]. at: which part each row is of."""
    of = at.to_numpy()
    order = np.argsort(of, kind="stable")
    pairs = np.stack([keys.column(n).to_numpy().astype(np.int64) for n in (schema.SOURCE_ROW, schema.WINDOW)], axis=1)
    bounds = np.searchsorted(of[order], np.arange(len(parts) + 1))
    for i, part in enumerate(parts):
        yield part, pairs[order[bounds[i] : bounds[i + 1]]]


def _against_record(record: CommitRecord, rows: dict[str, int], keys: list[pa.Table]) -> Iterator[str]:
    """Whether the files of a shard hold the rows that its record says."""
    for name, count in rows.items():
        if count != getattr(record, name):
            yield f"{count:,} {name.replace('_', ' ')}, but its record says {getattr(record, name):,}"
    if record.row_range is None or not rows:
        return
    together = pa.concat_tables([_NO_KEYS, *keys])
    for source, end, says in (
        (record.source, pc.min, record.first_row),
        (record.last_source or record.source, pc.max, record.last_row),
    ):
        of_file = together.filter(pc.equal(together.column(schema.SOURCE), source)).column(schema.SOURCE_ROW)
        if end(of_file).as_py() != says:
            which = "first" if end is pc.min else "last"
            yield f"its {which} row of {source} is {end(of_file).as_py()}, but its record says {says}"


def _read_file(output: str, file: DataFile, record: CommitRecord) -> Iterator[pa.Table]:
    """All columns of a data file, some rows at a time; at least one table.

    Raises:
        DamagedError: its bytes are not those that were written.
        pa.ArrowException: it cannot be decoded.
    """
    fs, root = open_location(output)
    data = read_whole(fs, f"{root}/{file.path}")
    if file.sha256 is not None and sha256(data).hexdigest() != file.sha256:
        raise DamagedError("its checksum does not match")
    rows = max(1, _TOKENS * max(record.sequences, record.error_rows) // max(1, record.tokens))
    with pq.ParquetFile(pa.BufferReader(data)) as parquet:
        if not parquet.metadata.num_rows:
            yield parquet.schema_arrow.empty_table()
        for batch in parquet.iter_batches(rows, use_threads=False):
            table = pa.Table.from_batches([batch])
            table.validate(full=True)
            yield table


def _once(where: str, part: Part, rows_windows: np.ndarray) -> Iterator[str]:
    """Each row of the part is there once, with windows 0, 1, 2, ..., or is in errors once."""
    is_refused = rows_windows[:, 1] == REFUSED
    scored, refused = rows_windows[~is_refused], rows_windows[is_refused, 0]
    scored = scored[np.lexsort((scored[:, 1], scored[:, 0]))]
    first = np.ones(len(scored), dtype=bool)
    first[1:] = (scored[1:] != scored[:-1]).any(axis=1)
    for row, window in np.unique(scored[~first], axis=0)[:10].tolist():
        yield f"{where}: row {row}, window {window} appears more than once"
    unique = scored[first]
    rows, windows = np.unique(unique[:, 0], return_counts=True)
    last = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(last, np.searchsorted(rows, unique[:, 0]), unique[:, 1])
    for row in rows[last + 1 != windows][:10].tolist():
        yield f"{where}: row {row} is missing a window"
    bad, counts = np.unique(refused, return_counts=True)
    for row in bad[counts > 1][:10].tolist():
        yield f"{where}: row {row} appears in errors more than once"
    for row in np.intersect1d(rows, bad)[:10].tolist():
        yield f"{where}: row {row} is scored and in errors"
    both = np.concatenate([rows, bad])
    outside = both[(both < part["start"]) | ((part["stop"] >= 0) & (both >= part["stop"]))]
    for row in outside[:10].tolist():
        yield f"{where}: row {row} is not one of its rows"
    if part["rows"] is not None and len(both) != part["rows"]:
        yield f"{where}: {len(both):,} rows, but the plan says {part['rows']:,}"


def _check_table(table: pa.Table) -> Iterator[str]:
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
    if schema.ENTROPY in table.column_names:
        entropies = one_array(table.column(schema.ENTROPY))
        if not np.array_equal(list_lengths(entropies), lengths):
            yield "entropy is not as long as input_ids"
        elif not (entropies.flatten().to_numpy(zero_copy_only=False) >= 0).all():
            yield "an entropy is not a number from 0"
    if schema.WORD_INDEX in table.column_names:
        sizes = list_lengths(one_array(table.column(schema.WORD_INDEX)))
        for field in schema.WORD_FIELDS:
            if not np.array_equal(list_lengths(one_array(table.column(field.name))), sizes):
                yield f"{field.name} is not as long as word_index"
    if losses[~labelled].any():
        yield "a position without a label has a loss"
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
