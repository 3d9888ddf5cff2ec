"""What a run tells whoever watches it, and what it measures of itself meanwhile."""

from __future__ import annotations

import time

from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.totals import Totals
from tokloss_ray.scoring.plan import Plan


class Watcher:
    """What a run tells whoever watches it; every method does nothing unless it is overridden."""

    def planned(self, plan: Plan, resumed: Totals, redo: dict[str, str]) -> None:
        """The plan is made; `resumed` is what earlier attempts have committed, `redo` what of it has to be scored again
        and why (see `resume.EarlierAttempts`)."""

    def committed(self, record: CommitRecord) -> None:
        """A shard was committed."""

    def stage(self, name: str) -> None:
        """What the run does now, in a word or two."""

    def retrying(self, reason: str) -> None:
        """Shards were lost, which are scored in another pass; `reason` says why, in a sentence."""
        self.stage("retrying lost shards")


class Watchers(Watcher):
    """Several, told one after the other."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers

    def planned(self, plan: Plan, resumed: Totals, redo: dict[str, str]) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.planned(plan, resumed, redo)

    def committed(self, record: CommitRecord) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.committed(record)

    def stage(self, name: str) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.stage(name)

    def retrying(self, reason: str) -> None:
        """Tell each."""
        for watcher in self.watchers:
            watcher.retrying(reason)


class Clock:
    """When shards were committed, and how fast tokens went by once the first one was through."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first: float | None = None
        self.last = 0.0
        self.tokens = 0
        self.first_tokens = 0
        self.busy = 0.0

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def committed(self, record: CommitRecord) -> None:
        """A shard was committed."""
        self.last = self.elapsed()
        if self.first is None:
            self.first, self.first_tokens = self.last, record.tokens
        self.tokens += record.tokens
        self.busy += record.seconds["score"]

    def rate(self) -> float | None:
        """Tokens per second between the first commit and the last, or in the model where there is one shard only."""
        if not self.tokens:
            return None
        if self.first is not None and self.last > self.first and self.tokens > self.first_tokens:
            return (self.tokens - self.first_tokens) / (self.last - self.first)
        return self.tokens / self.busy if self.busy else None
