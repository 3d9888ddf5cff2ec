"""A job as the stages see it: every setting resolved, nothing left to look up."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import pyarrow as pa

from tokloss_ray.inputs.unit import Columns
from tokloss_ray.model.store import ModelFolder
from tokloss_ray.scoring.stages.context import Context
from tokloss_ray.scoring.stages.word_level import WordLevel


@dataclass(frozen=True)
class Job:
    """Everything the stages need. `tags` are the model's by id, `data_tags` those the data's integers stand for;
    `tokenizers_version` is that of the driver; `find_budget`: on a GPU, `batch_tokens` is the most there may be;
    `tokens_each`: about what an actor will score."""

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
    keep_entropy: bool
    context: Context | None
    level: WordLevel | None
    storage_tries: int
    packing: str = "auto"
    compile: str = "off"
    tokens_each: int = 0
    trust_remote_code: bool = False
    allow_pickle: bool = False
    find_budget: bool = False
    tf32: bool = False
    identity: dict = field(default_factory=dict, repr=False)


_OF_THE_MODEL = {
    "output", "fingerprint", "token_strings", "pad_token_id", "model", "dtype", "batch_tokens", "find_budget",
    "tf32", "packing", "compile", "tokens_each", "keep_probs", "keep_entropy", "level", "trust_remote_code",
    "allow_pickle", "identity",
}  # fmt: skip
"""What reading and encoding do not depend on: runs that differ in it share them. Other fields keep runs apart."""


def encodes_alike(one: Job, other: Job) -> bool:
    """Whether two jobs make the same shards of a read unit, so that it need be read and encoded only once."""
    names = [field.name for field in fields(Job) if field.name not in _OF_THE_MODEL]
    return all(getattr(one, name) == getattr(other, name) for name in names)
