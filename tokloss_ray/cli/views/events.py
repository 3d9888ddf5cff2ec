"""What a run tells a machine: its events as lines of the log."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any

from tokloss_ray import __version__
from tokloss_ray.cli import log
from tokloss_ray.cli.views.progress import RunProgress
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.totals import RunSummary, Totals
from tokloss_ray.scoring.estimate import Estimate
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.scoring.watcher import Watcher

PROGRESS_SECONDS = 30.0


class EventView(Watcher):
    """A line for each event, and one on the progress every half minute, so that silence means that it is not alive."""

    def __init__(self) -> None:
        self.progress = RunProgress()
        self.over = threading.Event()

    def __enter__(self) -> EventView:
        log.say("start", version=__version__, command="score")
        threading.Thread(target=self._beats, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def planned(self, plan: Plan, resumed: Totals, redo: dict[str, str]) -> None:
        """The plan, its warnings, and what earlier attempts left."""
        self.progress.planned(plan, resumed)
        log.say(
            "plan",
            output=plan.job.output,
            run=plan.job.fingerprint,
            units=len(plan.units),
            rows=plan.rows,
            estimated_shards=plan.estimated_shards,
            estimated_tokens=plan.estimated_tokens,
            done_shards=resumed.shards,
            done_tokens=resumed.tokens,
        )
        say_warnings(plan)
        for name, reason in redo.items():
            log.say("again", run=plan.job.fingerprint, shard=name.removesuffix(".json"), reason=reason)

    def stage(self, name: str) -> None:
        """What the run does now."""
        self.progress.now = name
        log.say("stage", stage=name)

    def committed(self, record: CommitRecord) -> None:
        """A shard, with the figures of its record."""
        self.progress.committed(record)
        figures = {name: getattr(record, name) for name in log.EVENTS["commit"] if name != "run"}
        log.say("commit", run=record.fingerprint, **figures)

    def retrying(self, reason: str) -> None:
        """One more pass."""
        log.say("retry", reason=reason)
        self.stage("retrying lost shards")

    def _beats(self) -> None:
        while not self.over.wait(PROGRESS_SECONDS):
            sofar = self.progress
            shards, tokens = sofar.estimated_shards, sofar.estimated_tokens
            log.say(
                "progress",
                stage=sofar.now,
                shards=sofar.shards,
                estimated_shards=None if shards is None else max(sofar.shards, shards),
                tokens=sofar.tokens,
                estimated_tokens=None if tokens is None else max(sofar.tokens, tokens),
                tokens_per_second=sofar.rate(),
                seconds_left=sofar.seconds_left(),
            )


def say_warnings(plan: Plan) -> None:
    """What the user should know about input and model."""
    for warning in plan.warnings:
        log.say("warning", message=warning)


def say_summary(summary: RunSummary) -> None:
    """The figures of a run."""
    totals = summary.totals
    sums: dict[str, Any] = {k: v for k, v in asdict(totals).items() if k in log.EVENTS["summary"]}
    log.say(
        "summary",
        output=summary.output,
        already_complete=summary.finished_before,
        new_shards=summary.new_shards,
        seconds=summary.seconds,
        first_commit_seconds=summary.first_commit,
        tokens_per_second=summary.tokens_per_second,
        padding_efficiency=totals.padding_efficiency,
        mean_loss=totals.mean_loss,
        **sums,
    )


def say_estimate(plan: Plan, estimate: Estimate) -> None:
    """What a run would take."""
    say_warnings(plan)
    rate = estimate.tokens_per_second
    log.say(
        "estimate",
        output=plan.job.output,
        files=plan.read_files,
        rows=plan.rows,
        estimated_rows=plan.estimated_rows,
        estimated_tokens=plan.estimated_tokens,
        estimated_shards=plan.estimated_shards,
        shard_tokens=plan.job.shard_tokens,
        tags=plan.job.tags,
        dtype=plan.job.dtype,
        batch_tokens=plan.job.batch_tokens,
        batching=estimate.batching,
        tokens_per_second=rate,
        estimated_bytes=round(plan.estimated_tokens * estimate.bytes_per_token) if rate else None,
        estimated_seconds=plan.estimated_tokens / rate if rate else None,
        core_tokens_per_second=estimate.core_rate,
        gpu_tokens_per_second=estimate.gpu_rate,
        cores_per_gpu=estimate.cores_per_gpu,
    )
