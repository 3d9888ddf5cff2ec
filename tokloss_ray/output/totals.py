"""What a run came to: sums over commit records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tokloss_ray.output.record import CommitRecord
from tokloss_ray.schema import EQUAL_LENGTH, PACKED, PADDED

_SUMS = (
    "rows",
    "scored_rows",
    "error_rows",
    "sequences",
    "tokens",
    "labels",
    "padded_tokens",
    "dropped_words",
    "storage_retries",
    "memory_splits",
)


@dataclass
class Totals:
    """Sums over commit records, the same whatever their order.

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
        batching: how micro-batches were formed: packed; padded, if some were; or equal-length if padding would change
            the model's results. None for records that do not say.
        compiled: yes, or no and why, if some actor could not compile the model; None if none was asked to.
        repeated_ids: rows that share their id with another row; None if not counted.
        storage_retries: storage operations that were retried.
        memory_splits: micro-batches that did not fit in memory and were halved.
        device_wait: share of the actors' time, from ready to their last shard, in which the device had nothing to do;
            None for records that do not say.
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
    compiled: str | None = None
    repeated_ids: int | None = None
    storage_retries: int = 0
    memory_splits: int = 0
    device_wait: float | None = None

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


class Tally:
    """Adds commit records up, in any order and in parts, to the same totals in every digit: losses are added exactly.

    Attributes:
        busy: seconds for which devices computed the records' shards.
        waited: seconds for which they had nothing to do before and between.
    """

    def __init__(self) -> None:
        self.sums: dict[str, int] = dict.fromkeys(("shards", *_SUMS), 0)
        self.errors: dict[str, int] = {}
        self.labelled: dict[str, int] = {}
        self.losses: dict[str, int] = {}  # in units of the smallest number that a float can be
        self.batch_tokens: int | None = None
        self.batching: str | None = None
        self.compiled: str | None = None
        self.busy = self.waited = 0.0

    def add(self, record: CommitRecord) -> None:
        """Count one commit record."""
        sums = self.sums
        sums["shards"] += 1
        for name in _SUMS:
            sums[name] += getattr(record, name)
        _add(self.errors, record.errors)
        for tag, (count, total) in record.loss_by_tag.items():
            self.labelled[tag] = self.labelled.get(tag, 0) + count
            self.losses[tag] = self.losses.get(tag, 0) + _exact(total)
        self._settle(record.batch_tokens, record.batching, record.compiled)
        self.busy += record.seconds.get("score", 0.0)
        self.waited += record.seconds.get("wait", 0.0)

    def merge(self, other: Tally) -> None:
        """Count what another has counted."""
        for mine, theirs in (
            (self.sums, other.sums), (self.errors, other.errors),
            (self.labelled, other.labelled), (self.losses, other.losses),
        ):  # fmt: skip
            _add(mine, theirs)
        if other.batch_tokens is not None:
            self._settle(other.batch_tokens, other.batching, other.compiled)
        self.busy += other.busy
        self.waited += other.waited

    def totals(self) -> Totals:
        """The sums, rounded once; reasons and tags by name."""
        loss = {tag: (self.labelled[tag], self.losses[tag] / _UNITS) for tag in sorted(self.losses)}
        sums: dict[str, Any] = {**self.sums, "errors": dict(sorted(self.errors.items())), "loss_by_tag": loss}
        wait = wait_share(self.waited, self.busy)
        settled: dict[str, Any] = {
            "batch_tokens": self.batch_tokens,
            "batching": self.batching,
            "compiled": self.compiled,
        }
        return Totals(**sums, **settled, device_wait=wait)

    def _settle(self, batch_tokens: int, batching: str | None, compiled: str | None) -> None:
        self.batch_tokens = min(batch_tokens, self.batch_tokens or batch_tokens)
        # The least usual that any shard needed, so that the order of records does not matter.
        self.batching = max((batching, self.batching), key=_BATCHING.index)
        self.compiled = min((text for text in (compiled, self.compiled) if text), default=None)  # no is before yes


def wait_share(waited: float, busy: float) -> float | None:
    """Share of a device's time in which it had nothing to do, to four digits; None if there was no time."""
    return round(waited / (waited + busy), 4) if waited + busy > 0 else None


_BATCHING = (None, PACKED, PADDED, EQUAL_LENGTH)
_UNITS = 1 << 1074


def _exact(value: float) -> int:
    """A float as a whole number of `1 / _UNITS`, of which every float has one."""
    above, below = value.as_integer_ratio()
    return above * (_UNITS // below)


def _add(mine: dict[str, int], theirs: dict[str, int]) -> None:
    for name, value in theirs.items():
        mine[name] = mine.get(name, 0) + value


def total(records: Iterable[CommitRecord]) -> Totals:
    """The totals of some commit records."""
    tally = Tally()
    for record in records:
        tally.add(record)
    return tally.totals()


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
