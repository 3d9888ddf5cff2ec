"""A job as the stages see it: every setting resolved, nothing left to look up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from tokloss_ray.model.store import ModelFolder

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


@dataclass(frozen=True)
class Job:
    """Everything the stages need. `tags` are the model's by id, `data_tags` those the data's integers stand for;
    `tokenizers_version` is that of the driver."""

    output: str
    fingerprint: str
    columns: Columns
    constants: dict[str, str]
    partition_by: tuple[str, ...]
    tags: tuple[str, ...]
    data_tags: tuple[str, ...] | None
    tokenizer_json: str = field(repr=False)
    tokenizers_version: str
    token_strings: pa.Array = field(repr=False)
    embedding_rows: int
    pad_token_id: int
    max_length: int
    overflow: str
    overlap: int
    label_all_subtokens: bool
    shard_tokens: int
    model: ModelFolder
    dtype: str
    batch_tokens: int
    keep_probs: bool
    storage_tries: int
    trust_remote_code: bool = False
    allow_pickle: bool = False
    identity: dict = field(default_factory=dict, repr=False)
