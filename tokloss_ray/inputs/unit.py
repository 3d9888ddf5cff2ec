"""What readers are told: which part of which file to read, which columns of it, and what a row must be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.schema import WORD_OFFSETS

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


class Parts(Sequence[FilePart]):
    """Parts of files as columns, objects only while they are looked at: a plan may have millions.

    Attributes:
        table: rows of PART_SCHEMA.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, parts: Iterable[FilePart]) -> Parts:
        """From single parts."""
        if isinstance(parts, Parts):
            return parts
        rows = list(parts)
        columns = [pa.array([getattr(part, f.name) for part in rows], f.type) for f in PART_SCHEMA]
        return cls(pa.table(columns, PART_SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, place: int) -> FilePart: ...
    @overload
    def __getitem__(self, place: slice) -> Parts: ...
    def __getitem__(self, place: int | slice) -> FilePart | Parts:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return Parts(self.table.take(pa.array(range(start, stop, step), pa.int64())))
        (part,) = _objects(self.table.slice(range(len(self))[place], 1))
        return part

    def __iter__(self) -> Iterator[FilePart]:
        for batch in self.table.to_batches(max_chunksize=1 << 14):
            yield from _objects(batch)


def _objects(rows: pa.Table | pa.RecordBatch) -> Iterator[FilePart]:
    for values in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        yield FilePart(*values)


@dataclass(frozen=True, slots=True)
class ReadUnit:
    """What one read task reads: parts of files, one after the other; at most one part of a file.

    `number` is its position in the plan.
    """

    number: int
    parts: Sequence[FilePart]

    @property
    def table(self) -> pa.Table:
        """The parts as rows of PART_SCHEMA."""
        return Parts.of(self.parts).table

    @property
    def sources(self) -> list[str]:
        """The files, as in the column `source`."""
        return list(self.table.column("source").to_pylist())

    @property
    def rows(self) -> int | None:
        """Rows in it where metadata tell of all parts."""
        rows = self.table.column("rows")
        return None if rows.null_count else pc.sum(rows).as_py() or 0

    @property
    def size(self) -> int:
        """Bytes that will be read, about."""
        return pc.sum(self.table.column("size")).as_py() or 0


def parts_table(units: Sequence[ReadUnit], without: Sequence[str] = ()) -> pa.Table:
    """The parts of some units, in order, after the number of the unit that each belongs to."""
    counts = np.array([len(unit.parts) for unit in units], dtype=np.int64)
    numbers = np.repeat(np.array([unit.number for unit in units], dtype=np.int64), counts)
    names = [name for name in PART_SCHEMA.names if name not in without]
    tables = [unit.table.select(names) for unit in units] or [PART_SCHEMA.empty_table().select(names)]
    return pa.concat_tables(tables).combine_chunks().add_column(0, "number", pa.array(numbers))


def units_of(table: pa.Table, numbers: np.ndarray) -> list[ReadUnit]:
    """The units that rows of PART_SCHEMA belong to. numbers: [N] of the unit of each row, in ascending order."""
    bounds = [*np.flatnonzero(np.diff(numbers, prepend=-1)).tolist(), len(numbers)]
    return [ReadUnit(int(numbers[a]), Parts(table.slice(a, b - a))) for a, b in pairwise(bounds)]


@dataclass(frozen=True)
class SpanColumns:
    """Columns of text and of labelled spans in it, from which words and tags are made (`spans.py`).

    Attributes:
        text, spans: names of columns; spans is None for text without labels.
        tokens: the column that says where each word begins and ends; None: the text is split.
        words: how text is split, one of `text_words.WAYS`.
        widen: a span that cuts a word is widened to it.
        in_words: `text` holds lists of words, and spans count these.
        label_map: labels of the data, and what the model calls them.
        label_names: what integer labels stand for.
        annotations: `spans` holds annotations of Label Studio: a row that has none is not labelled.
    """

    text: str
    spans: str | None
    tokens: str | None = None
    words: str = "punctuation"
    widen: bool = False
    in_words: bool = False
    label_map: tuple[tuple[str, str], ...] = ()
    label_names: tuple[str, ...] | None = None
    annotations: bool = False

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in (self.text, self.spans, self.tokens) if name]


@dataclass(frozen=True)
class Columns:
    """Which input columns the job reads. `words` is None for pre-encoded input, which has `input_ids` instead; `labels`
    is None for text without labels.

    Attributes:
        words, labels, mask, example_id: names of columns.
        carried: columns that are copied to the output, with their types.
        text_tags: the tags are strings; rows of JSON lines may differ.
        declared: tag names that a file must declare for `labels` if it declares any; None: they do not count.
        documents: rows must say which document they are of; document: the column that says it, if there is one.
        spans: what words, tags and their offsets (carried) are made of, if they are not in the input themselves.
    """

    words: str | None
    labels: str | None
    mask: str | None = None
    example_id: str | None = None
    carried: tuple[pa.Field, ...] = ()
    text_tags: bool = False
    declared: tuple[str, ...] | None = None
    spans: SpanColumns | None = None
    documents: bool = False
    document: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns to read, each once."""
        main = [self.words or "input_ids", self.labels, self.mask] if self.spans is None else self.spans.names
        kept = [f.name for f in self.carried if self.spans is None or f.name not in WORD_OFFSETS]
        return list(dict.fromkeys([*(n for n in (*main, self.example_id, self.document) if n), *kept]))


class RowRules(Protocol):
    """What a row is held to (a `Job` has all of it).

    Attributes:
        columns: the input columns that are read.
        tags: the model's, by id; data_tags: those that the data's integers stand for, None if they are the model's.
        partition_by: carried columns whose values must make names of folders.
        embedding_rows: token ids of pre-encoded input are less than this.
        tokenizer_json: the model's tokenizer, which may split text.
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
    @property
    def tokenizer_json(self) -> str: ...
