"""What a run came to: sums over commit records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokloss_ray.output.records import CommitRecord, in_order
from tokloss_ray.schema import EQUAL_LENGTH

_SUMS = ("rows", "scored_rows", "error_rows", "sequences", "tokens", "labels", "padded_tokens", "dropped_words")


@dataclass
class Totals:
    """Sums over commit records, in any order.

    Attributes:
        shards: committed shards.
        rows: input rows read: scored_rows + error_rows.
        scored_rows, error_rows: rows in scores/ (windows of a row counted once) and in errors/.
        sequences: rows of scores/; more than scored_rows if long rows became windows.
        tokens, labels: tokens scored, and how many of them have a label.
        padded_tokens: tokens that went through the model, padding included.
        dropped_words: words lost to truncation, or to a tokenizer that makes no token of them.
        errors: rows in errors/ by reason.
        loss_by_tag: tag -> (labelled tokens, sum of their losses in nats).
        batch_tokens: the smallest micro-batch budget an actor settled on, in padded tokens.
        batching: how micro-batches were formed: padded, or equal-length if padding would change the model's results;
            None for records that do not say.
        repeated_ids: rows that share their id with another row; None if not counted.
        storage_retries: storage operations that were retried.
        memory_splits: micro-batches that did not fit in memory and were halved.
    """

    shards: int = 0
    rows: int = 0
    scored_rows: int = 0
    error_rows: int = 0
    sequences: int = 0
    tokens: int = 0
    labels: int = 0
    padded_tokens: int = 0
    dropped_words: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    loss_by_tag: dict[str, tuple[int, float]] = field(default_factory=dict)
    batch_tokens: int | None = None
    batching: str | None = None
    repeated_ids: int | None = None
    storage_retries: int = 0
    memory_splits: int = 0

    def add(self, record: CommitRecord) -> None:
        """Count one commit record."""
        self.shards += 1
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(record, name))
        self.storage_retries += record.storage_retries
        self.memory_splits += record.memory_splits
        for reason, count in record.errors.items():
            self.errors[reason] = self.errors.get(reason, 0) + count
        for tag, (count, total) in record.loss_by_tag.items():
            before = self.loss_by_tag.get(tag, (0, 0.0))
            self.loss_by_tag[tag] = (before[0] + count, before[1] + total)
        self.batch_tokens = min(record.batch_tokens, self.batch_tokens or record.batch_tokens)
        if self.batching != EQUAL_LENGTH:
            self.batching = record.batching or self.batching

    @property
    def padding_efficiency(self) -> float | None:
        """Real tokens over padded tokens."""
        return self.tokens / self.padded_tokens if self.padded_tokens else None

    @property
    def mean_loss(self) -> float | None:
        """Mean loss over labelled tokens."""
        return sum(total for _, total in self.loss_by_tag.values()) / self.labels if self.labels else None

    @property
    def error_rate(self) -> float:
        """Share of the rows that ended in errors/."""
        return self.error_rows / self.rows if self.rows else 0.0


def total(records: Iterable[CommitRecord]) -> Totals:
    """The totals of some commit records, added in the order of their shards so that sums are the same every time."""
    totals = Totals()
    for record in in_order(records):
        totals.add(record)
    return totals


@dataclass(frozen=True)
class RunSummary:
    """The result of `score`.

    Attributes:
        output: where the results are.
        totals: sums over the whole output, whichever attempt wrote it.
        new_shards: shards this attempt committed.
        seconds: wall time of this attempt.
        first_commit: seconds until the first shard of this attempt was committed; None if there was none.
        tokens_per_second: steady rate of this attempt; None if it scored nothing.
        finished_before: whether the output was already complete.
        warnings: what the user should know about input and model.
    """

    output: str
    totals: Totals
    new_shards: int
    seconds: float
    first_commit: float | None
    tokens_per_second: float | None
    finished_before: bool
    warnings: tuple[str, ...]
