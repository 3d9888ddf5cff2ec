"""Encoded sequences to shards."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed
from tokloss_ray.inputs.read import rows_before, rows_behind
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.inputs.validate import Chunk
from tokloss_ray.output.names import shard_name
from tokloss_ray.output.record import RowRange
from tokloss_ray.ragged import list_lengths, one_array
from tokloss_ray.schema import ERRORS_SCHEMA
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.context import Portion, portions
from tokloss_ray.scoring.stages.encode import encode_rows
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.scoring.stages.shard import Shard

_WORDS_AT_ONCE = 1 << 16
MAX_ERROR_ROWS = 1 << 14
"""Rows with their payload for errors/ that one shard may hold, about: they fill memory as sequences do."""
FIRST_HALVINGS = 3
"""The first shards of a run have an eighth, a quarter and half of the tokens of the others."""


def encode_unit(
    job: Job,
    tokenizer: RowTokenizer,
    unit: ReadUnit,
    chunks: Iterable[Chunk],
    held: Mapping[int, RowRange] | None = None,
    wanted: Collection[int] = (),
) -> Iterator[Shard]:
    """Encode the rows of a unit and cut them into shards.

    held: which rows the committed shards hold, by index. These are cut again to find where the next one begins, but not
    yielded, unless they are wanted: by another run in the same pass. Nothing is yielded before all of them were found
    to be the same: a new shard among old ones that it does not fit would spoil the unit. The last shard of a unit is
    marked; a unit without rows has one empty shard.

    Raises:
        JobFailed: a committed shard would hold other rows today, or rows got lost on the way.
    """
    held = held or {}
    written, index = 0, -1
    waiting: list[Shard] = []
    start = time.perf_counter()
    sources = unit.sources
    for index, (sequences, errors, read) in enumerate(_cut(job, tokenizer, unit, chunks)):
        rows = int(np.count_nonzero(one_array(sequences.column(schema.WINDOW)).to_numpy() == 0)) + errors.num_rows
        (first_part, first), (last_part, last) = _ends(sequences, errors, sources) if rows else ((0, None), (0, None))
        here = RowRange(written, written + rows, -1 if last is None else last, read is not None)
        written += rows
        if read is not None and read != written:
            files = sources[0] if len(sources) == 1 else f"{sources[0]} to {sources[-1]}"
            raise JobFailed(f"{files}: {read:,} rows of unit {unit.number} were read, but {written:,} were encoded")
        if index in held:
            _check_same(held[index], here, shard_name(unit.number, index))
        if index not in held or index in wanted:
            about = {
                "unit": unit.number, "index": index, "last": here.last, "rows": rows,
                "source": sources[first_part], "last_source": sources[last_part],
                "start": here.start, "stop": here.stop, "first_row": first, "last_row": last,
                "sources": sources[first_part : last_part + 1],
                "seconds": {"encode": round(time.perf_counter() - start, 4)},
            }  # fmt: skip
            waiting.append(Shard(about, _of_shard(sequences, first_part), errors))
        if index >= max(held, default=0):
            yield from waiting
            waiting.clear()
        start = time.perf_counter()
    if beyond := [known for known in held if known > index]:
        raise _moved(shard_name(unit.number, min(beyond)), "it would not exist")


Position = tuple[int, int]
"""Where a row is: its part of the unit, and its source_row."""


def _ends(sequences: pa.Table, errors: pa.Table, sources: list[str]) -> tuple[Position, Position]:
    """The first and the last row of a shard. Sequences and errors are in the order of the input."""
    tables = [(sequences, one_array(sequences.column(schema.FILE_PART))), (errors, _parts_of(errors, sources))]
    ends = [
        [(int(parts[i].as_py()), int(table.column(schema.SOURCE_ROW)[i].as_py())) for i in (0, -1)]
        for table, parts in tables
        if table.num_rows
    ]
    return min(first for first, _ in ends), max(last for _, last in ends)


def _parts_of(errors: pa.Table, sources: list[str]) -> pa.Array:
    """Which part of the unit each row of errors/ is of."""
    return pc.index_in(one_array(errors.column(schema.SOURCE)), pa.array(sources, pa.string()))


def _of_shard(sequences: pa.Table, first_part: int) -> pa.Table:
    """The same with file_part counted from the first file of the shard."""
    if not first_part:
        return sequences
    at = sequences.schema.get_field_index(schema.FILE_PART)
    parts = pc.subtract(sequences.column(schema.FILE_PART), pa.scalar(first_part, pa.int32()))
    return sequences.set_column(at, schema.FILE_PART, parts)


def held_by_all(unit: int, runs: Collection[Mapping[int, RowRange]]) -> tuple[dict[int, RowRange], set[int]]:
    """What `encode_unit` is told of a unit's committed shards where several runs share it: the rows of all, and those
    that some run lacks.

    Raises:
        JobFailed: a shard of one run holds other rows than that of another.
    """
    held: dict[int, RowRange] = {}
    for of_run in runs:
        for index, rows in of_run.items():
            _check_same(held.setdefault(index, rows), rows, shard_name(unit, index))
    return held, {index for index in held if any(index not in of_run for of_run in runs)}


def _check_same(before: RowRange, now: RowRange, name: str) -> None:
    if before != now:
        held, would = (
            f"rows {rows.start:,} to {rows.stop:,}, up to row {rows.last_row} of the file" for rows in (before, now)
        )
        raise _moved(name, f"it was committed with {held} and would now hold {would}")


def _moved(name: str, difference: str) -> JobFailed:
    return JobFailed(
        f"shard {name} would now be different: {difference}. The tokenizer or the reader gives other results than "
        f"before, so the shards would not fit together: go back to the versions in _run.json, or use --overwrite"
    )


def shard_budget(job: Job, unit: int, index: int) -> int:
    """Tokens of a shard. The first few of a run are smaller: the model need not wait for a large one to be encoded, and
    the user sees sooner that the job works."""
    return max(1, job.shard_tokens >> max(0, FIRST_HALVINGS - index)) if unit == 0 else job.shard_tokens


def _cut(
    job: Job, tokenizer: RowTokenizer, unit: ReadUnit, chunks: Iterable[Chunk]
) -> Iterator[tuple[pa.Table, pa.Table, int | None]]:
    """Sequences and errors of one shard after another; with the last come the rows that were read in all."""
    sources = unit.sources
    pending = _Pending(sources)
    read = index = 0
    for portion in _portions(job, unit, chunks):
        read += portion.read
        pending.add_errors(portion.errors)
        for rows, chosen in _some_words(portion, together=job.context is not None):
            pending.add(*encode_rows(job, tokenizer, sources, rows, chosen))
            while (count := pending.full(shard_budget(job, unit.number, index))) is not None:
                yield *pending.take(count), None
                index += 1
        if pending.error_rows >= MAX_ERROR_ROWS:
            yield *pending.take(), None
            index += 1
    yield *pending.take(), read


class _Pending:
    """Encoded sequences and errors, in the order of their rows, that do not fill a shard yet."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = sources
        self.sequences: list[pa.Table] = []
        self.errors: list[pa.Table] = []
        self.tokens = self.error_rows = 0

    def add_errors(self, errors: pa.Table) -> None:
        self.errors.append(errors)
        self.error_rows += errors.num_rows

    def add(self, sequences: pa.Table, errors: pa.Table) -> None:
        self.add_errors(errors)
        self.sequences.append(sequences)
        self.tokens += len(one_array(sequences.column(schema.INPUT_IDS)).flatten())

    def full(self, shard_tokens: int) -> int | None:
        """How many sequences fill a shard, or None while they do not.

        They hold no more tokens than the budget, or are those of one row: the windows of a row stay together, so that
        the row is scored or refused as one.
        """
        if self.tokens < shard_tokens:
            return None
        self.sequences = [pa.concat_tables(self.sequences).combine_chunks()]
        ends = np.cumsum(list_lengths(one_array(self.sequences[0].column(schema.INPUT_IDS))))
        first_of_row = one_array(self.sequences[0].column(schema.WINDOW)).to_numpy() == 0
        cuts = np.append(np.flatnonzero(first_of_row), len(ends))[1:]
        fitting = int(np.searchsorted(ends[cuts - 1], shard_tokens, side="right"))
        return int(cuts[max(0, fitting - 1)])

    def take(self, count: int | None = None) -> tuple[pa.Table, pa.Table]:
        """The first `count` sequences with the errors up to the last one's row; everything if None."""
        sequences = pa.concat_tables(self.sequences)
        errors = pa.concat_tables([ERRORS_SCHEMA.empty_table(), *self.errors])
        parts = _parts_of(errors, self.sources).to_numpy(zero_copy_only=False)
        rows = one_array(errors.column(schema.SOURCE_ROW)).to_numpy()
        order = np.lexsort((rows, parts))
        errors, parts, rows = errors.take(pa.array(order)), parts[order], rows[order]
        count, split = sequences.num_rows if count is None else count, errors.num_rows
        if count < sequences.num_rows:
            part, row = (sequences.column(n)[count - 1].as_py() for n in (schema.FILE_PART, schema.SOURCE_ROW))
            split = int(((parts < part) | ((parts == part) & (rows <= row))).sum())
        self.sequences, self.errors = [sequences.slice(count)], [errors.slice(split)]
        self.tokens = len(one_array(self.sequences[0].column(schema.INPUT_IDS)).flatten())
        self.error_rows = self.errors[0].num_rows
        return sequences.slice(0, count), errors.slice(0, split)


def _portions(job: Job, unit: ReadUnit, chunks: Iterable[Chunk]) -> Iterator[Portion]:
    """The rows of a unit as they are encoded, with neighbours if they have context."""
    if job.context is None:
        for chunk in chunks:
            count = chunk.rows.num_rows
            yield Portion(chunk.rows, 0, count, chunk.errors, count + chunk.errors.num_rows)
        return
    count = job.context.rows
    before = rows_before(job, unit, count)
    yield from portions(chunks, unit.sources, count, before, lambda: rows_behind(job, unit, count))


def _some_words(portion: Portion, together: bool) -> Iterator[tuple[pa.Table, slice]]:
    """Split rows so that no part holds many more words than one very long row does, unless they must stay together."""
    rows = portion.rows
    if together or not rows.num_rows:
        yield rows, slice(portion.start, portion.stop)
        return
    name = schema.WORDS if schema.WORDS in rows.column_names else schema.INPUT_IDS
    ends = np.cumsum(list_lengths(one_array(rows.column(name))))
    start = 0
    while start < rows.num_rows:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _WORDS_AT_ONCE, side="right")))
        yield rows.slice(start, stop - start), slice(None)
        start = stop
