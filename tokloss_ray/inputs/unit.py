"""What readers are told: which part of which file to read, which columns of it, and what a row must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

WORDS_COLUMNS = ("tokens", "words")
LABELS_COLUMNS = ("ner_tags", "tags", "labels")
"""Where words and tags are, unless the settings say otherwise; the first that there is."""


@dataclass(frozen=True)
class ReadUnit:
    """What one read task opens.

    Attributes:
        number: position in the plan.
        source: path relative to the input root, with forward slashes.
        path: where the file is now; version: its etag or time of change when the plan was made.
        format: parquet, arrow, jsonl or conll.
        start, stop: rows of a Parquet or Arrow file, bytes of a text file; stop -1 is the end.
        rows: rows in the unit where metadata tell, else None.
        size: bytes it will read, about; of an Arrow file exactly.
        offset: where the first record batch of an Arrow file begins; 0 if it must be read from its start.
    """

    number: int
    source: str
    path: str
    version: str
    format: str
    start: int
    stop: int
    rows: int | None
    size: int
    offset: int = 0


UNIT_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("version", pa.string()),
        ("format", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("rows", pa.int64()),
        ("size", pa.int64()),
        ("offset", pa.int64()),
    ]
)
"""Read units as a table, one row each."""


@dataclass(frozen=True)
class Columns:
    """Which input columns the job reads. `words` is None for pre-encoded input, which has `input_ids` instead.

    `text_tags`: the tags are strings; rows of JSON lines may differ.
    """

    words: str | None
    labels: str
    mask: str | None = None
    example_id: str | None = None
    carried: tuple[pa.Field, ...] = ()
    text_tags: bool = False

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
