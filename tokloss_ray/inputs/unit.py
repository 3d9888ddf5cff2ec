"""What readers are told: which part of which file to read, which columns of it, and what a row must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from tokloss_ray.ragged import sum_if_known

WORDS_COLUMNS = ("tokens", "words")
LABELS_COLUMNS = ("ner_tags", "tags", "labels")
"""Where words and tags are, unless the settings say otherwise; the first that there is."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file, or what one read task reads of it.

    Attributes:
        source: path relative to the input root, with forward slashes.
        path: where the file is now; version: its etag or time of change when the plan was made.
        format: the name of one in `formats.FORMATS`.
        start, stop: rows of a Parquet or Arrow file, bytes of a text file; stop -1 is the end.
        rows: rows in it where metadata tell, else None.
        size: bytes that will be read, about; of an Arrow file exactly.
        offset: where the first record batch of an Arrow file begins; 0 if it must be read from its start.
        file_size: bytes of the whole file; None if the file system has to be asked.
    """

    source: str
    path: str
    version: str
    format: str
    start: int
    stop: int
    rows: int | None
    size: int
    offset: int = 0
    file_size: int | None = None


@dataclass(frozen=True, slots=True)
class ReadUnit:
    """What one read task reads: parts of files, one after the other; at most one part of a file.

    `number` is its position in the plan.
    """

    number: int
    parts: tuple[FilePart, ...]

    @property
    def sources(self) -> list[str]:
        """The files, as in the column `source`."""
        return [part.source for part in self.parts]

    @property
    def rows(self) -> int | None:
        """Rows in it where metadata tell of all parts."""
        return sum_if_known(part.rows for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes that will be read, about."""
        return sum(part.size for part in self.parts)


PART_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.string()),
        ("version", pa.string()),
        ("format", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("rows", pa.int64()),
        ("size", pa.int64()),
        ("offset", pa.int64()),
        ("file_size", pa.int64()),
    ]
)
"""The parts of read units as a table, one row each."""


def parts_table(units: Sequence[ReadUnit], without: Sequence[str] = ()) -> pa.Table:
    """The parts of some units, in order, after the number of the unit that each belongs to."""
    counts = np.array([len(unit.parts) for unit in units], dtype=np.int64)
    columns = {"number": pa.array(np.repeat(np.array([unit.number for unit in units], dtype=np.int64), counts))}
    for field in PART_SCHEMA:
        if field.name not in without:
            values = (getattr(part, field.name) for unit in units for part in unit.parts)
            columns[field.name] = pa.array(values, field.type, size=int(counts.sum()))
    return pa.table(columns)


@dataclass(frozen=True)
class Columns:
    """Which input columns the job reads. `words` is None for pre-encoded input, which has `input_ids` instead.

    Attributes:
        words, labels, mask, example_id: names of columns.
        carried: columns that are copied to the output, with their types.
        text_tags: the tags are strings; rows of JSON lines may differ.
        declared: tag names that a file must declare for `labels` if it declares any; None: they do not count.
    """

    words: str | None
    labels: str
    mask: str | None = None
    example_id: str | None = None
    carried: tuple[pa.Field, ...] = ()
    text_tags: bool = False
    declared: tuple[str, ...] | None = None

    @property
    def names(self) -> list[str]:
        """The columns to read, each once."""
        first = [self.words or "input_ids", self.labels, self.mask, self.example_id]
        return list(dict.fromkeys([*(n for n in first if n), *(f.name for f in self.carried)]))


class RowRules(Protocol):
    """What a row is held to (a `Job` has all of it).

    Attributes:
        columns: the input columns that are read.
        tags: the model's, by id; data_tags: those that the data's integers stand for, None if they are the model's.
        partition_by: carried columns whose values must make names of folders.
        embedding_rows: token ids of pre-encoded input are less than this.
    """

    @property
    def columns(self) -> Columns: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def data_tags(self) -> tuple[str, ...] | None: ...
    @property
    def partition_by(self) -> tuple[str, ...]: ...
    @property
    def embedding_rows(self) -> int: ...
