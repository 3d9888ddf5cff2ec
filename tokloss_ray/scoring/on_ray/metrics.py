"""The figures of a run as metrics of Ray's, which each node exports for Prometheus.

Only the driver exports, from commit records: they say what is done, whatever Ray has lost or done twice, and nothing is
added to the work on a shard. Ray reports the figures of a process every ten seconds; where a node has no metrics agent
(Ray without `ray[default]`), nobody takes them, and nothing else happens.
"""

from __future__ import annotations

import logging
from typing import Any

from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.totals import Totals
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.scoring.watcher import Watcher

RUN, REASON, STAGE = "run", "reason", "stage"
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokloss_shards": ("Shards committed.", ()),
    "tokloss_rows": ("Input rows accounted for, scored or in errors/.", ()),
    "tokloss_error_rows": ("Rows in errors/, by reason.", (REASON,)),
    "tokloss_tokens": ("Tokens scored.", ()),
    "tokloss_padded_tokens": ("Tokens that went through the model, padding included.", ()),
    "tokloss_memory_splits": ("Micro-batches that did not fit in memory and were halved.", ()),
    "tokloss_storage_retries": ("Storage operations that were retried.", ()),
    "tokloss_stage_seconds": (
        "Seconds spent on committed shards, by stage: encode, wait (the device had nothing to do), score, decode.",
        (STAGE,),
    ),
    "tokloss_retried_passes": ("Further passes over shards that were lost.", ()),
}
"""Name: description and labels; each also has the label `run`. They count the work of this attempt."""
GAUGES: dict[str, str] = {
    "tokloss_planned_tokens": "Tokens of the whole corpus, as estimated by the plan.",
    "tokloss_done_tokens": "Tokens of the whole corpus that are committed, by this attempt or an earlier one.",
}
_log = logging.getLogger(__name__)


def exported(name: str) -> str:
    """What Prometheus calls a metric."""
    return f"ray_{name}_total" if name in COUNTERS else f"ray_{name}"


class RunMetrics(Watcher):
    """Counts what a run commits. No figure is worth a job: if Ray refuses one, there are none from then on."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.planned_tokens: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def planned(self, plan: Plan, resumed: Totals, redo: dict[str, str]) -> None:
        """Ray is up."""
        run = plan.job.fingerprint
        self.planned_tokens[run], self.done[run] = max(plan.estimated_tokens, resumed.tokens), resumed.tokens
        try:
            from ray.util.metrics import Counter, Gauge

            self.metrics = {name: Counter(name, text, (RUN, *tags)) for name, (text, tags) in COUNTERS.items()}
            self.metrics |= {name: Gauge(name, text, (RUN,)) for name, text in GAUGES.items()}
        except Exception as error:
            self._give_up(error)
        self._set_tokens(run)

    def committed(self, record: CommitRecord) -> None:
        """Add the figures of a shard."""
        run = record.fingerprint
        self.done[run] = self.done.get(run, 0) + record.tokens
        self._set_tokens(run)
        self._add(run, "tokloss_shards", 1)
        self._add(run, "tokloss_rows", record.rows)
        self._add(run, "tokloss_tokens", record.tokens)
        self._add(run, "tokloss_padded_tokens", record.padded_tokens)
        self._add(run, "tokloss_memory_splits", record.memory_splits)
        self._add(run, "tokloss_storage_retries", record.storage_retries)
        for reason, count in record.errors.items():
            self._add(run, "tokloss_error_rows", count, **{REASON: reason})
        for stage, seconds in record.seconds.items():
            self._add(run, "tokloss_stage_seconds", seconds, **{STAGE: stage})

    def retrying(self, reason: str) -> None:
        """One more pass."""
        for run in self.done:
            self._add(run, "tokloss_retried_passes", 1)

    def _set_tokens(self, run: str) -> None:
        """Both at once: Ray forgets a gauge that is not set for a while."""
        self._set(run, "tokloss_planned_tokens", self.planned_tokens.get(run, 0))
        self._set(run, "tokloss_done_tokens", self.done[run])

    def _add(self, run: str, name: str, value: float, **tags: str) -> None:
        if value > 0 and name in self.metrics:
            try:
                self.metrics[name].inc(value, {RUN: run, **tags})
            except Exception as error:
                self._give_up(error)

    def _set(self, run: str, name: str, value: float) -> None:
        if name in self.metrics:
            try:
                self.metrics[name].set(value, {RUN: run})
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.metrics = {}
        _log.debug("no metrics: %s", error)
