"""The one way to open a file of a committed shard. What is damaged is named, with what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed, StorageFailed, TokLossError
from tokloss_ray.output.opened import ScoreFile
from tokloss_ray.storage.files import is_local, open_location, open_random, read_whole

BATCH_TOKENS = 1 << 19
"""Tokens that are turned into tables at once: many, so that Python's share is small; bounded, so that memory is."""
WHOLE_FILE = 64 << 20
"""An object up to this size is fetched in one request; of a larger one, the columns needed."""

_TYPES = {field.name: field.type for field in schema.SCORES_FIELDS}
# What pyarrow raises on bytes that are not what was written; UnicodeDecodeError is a ValueError.
_DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, MemoryError, TypeError, OverflowError)


@contextmanager
def reading(output: str, path: str) -> Iterator[None]:
    """Whatever is wrong with a file of an output, one sentence names it. Only pyarrow's work belongs in here.

    Raises:
        JobFailed: the file is missing or damaged.
        StorageFailed: it may be whole, but cannot be read.
    """
    try:
        yield
    except TokLossError:
        raise
    except _DAMAGED as error:
        number = getattr(error, "errno", None)
        if number not in (None, errno.ENOENT):
            raise StorageFailed(f"cannot read {output}/{path}: {str(error.strerror).lower()}") from error  # type: ignore[union-attr]
        cause = "it is missing" if isinstance(error, FileNotFoundError) else cause_of(error)
        raise JobFailed(
            f"cannot read {output}/{path}: {cause}; run tokloss verify {output}, then the same tokloss score command, "
            f"to score that shard again"
        ) from error


def cause_of(error: BaseException) -> str:
    """The first line of what pyarrow says, without what it quotes of damaged bytes that is not to be shown."""
    line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return "".join(char if char.isprintable() else "?" for char in line).strip().rstrip(".")


@contextmanager
def open_score_file(file: ScoreFile, narrow: bool = False, **options: Any) -> Iterator[pq.ParquetFile]:
    """A file of scores/, to read columns of; checksums of its pages are compared.

    narrow: few columns are needed, so that of an object only these are fetched. options: of `pq.ParquetFile`.

    Raises:
        JobFailed: it is missing or damaged, or lacks a column.
    """
    source = _source(file, narrow)
    with reading(file.output, file.path), pq.ParquetFile(source, page_checksum_verification=True, **options) as parquet:
        # No checksum covers the footer.
        there = parquet.schema.to_arrow_schema()
        for name, type_ in _TYPES.items():
            if there.get_field_index(name) < 0 or there.field(name).type != type_:
                raise ValueError(f"it has no column {name} of type {type_}")
        yield parquet


def read_columns(
    parquet: pq.ParquetFile, file: ScoreFile, columns: Sequence[str] | None = None, threads: bool = True
) -> pa.Table:
    """All rows of an open file, with these columns or with all."""
    table = parquet.read(columns, use_threads=threads)
    _check_number(table.num_rows, file)
    return _checked(table, file)


def iter_columns(parquet: pq.ParquetFile, file: ScoreFile, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    """The same, so many rows at a time."""
    done = 0
    for batch in parquet.iter_batches(rows, columns=list(columns), use_threads=False):
        done += batch.num_rows
        yield _checked(pa.Table.from_batches([batch]), file)
    _check_number(done, file)


def read_batches(file: ScoreFile, columns: Sequence[str], narrow: bool = False) -> Iterator[pa.Table]:
    """The rows of a file, about `BATCH_TOKENS` tokens at a time; the same cuts whatever the columns are.

    Raises:
        JobFailed: the file is missing or damaged.
    """
    with open_score_file(file, narrow, pre_buffer=False) as parquet:
        yield from iter_columns(parquet, file, columns, batch_rows(file))


def _check_number(rows: int, file: ScoreFile) -> None:
    # Where the footer is damaged, pyarrow may stop early without a word.
    if rows != file.rows:
        raise ValueError(f"it has {rows:,} rows, but its record says {file.rows:,}")


def _checked(table: pa.Table, file: ScoreFile) -> pa.Table:
    """The table; of a file whose pages have no checksums, after a look at all strings and offsets."""
    if not file.checksum:
        table.validate(full=True)
    return table


def batch_rows(file: ScoreFile, tokens: int = BATCH_TOKENS) -> int:
    """Rows of a file that have about so many tokens."""
    return max(1, int(tokens * file.rows / max(file.tokens, 1)))


def _source(file: ScoreFile, narrow: bool) -> Any:
    """What pyarrow reads a file from."""
    fs, root = open_location(file.folder)
    path = f"{root}/{file.path}"
    if is_local(fs):
        return path
    with reading(file.output, file.path):
        if file.size <= WHOLE_FILE and not narrow:
            return pa.BufferReader(read_whole(fs, path))
        return open_random(fs, path, file.size)
