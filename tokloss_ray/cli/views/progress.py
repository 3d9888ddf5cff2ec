"""What a run says while it is at work."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tokloss_ray.cli.views.figures import duration, safe
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.totals import Totals
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.scoring.watcher import Watcher

LINE_SECONDS = 5.0
_REDO_SHOWN = 5


class RunProgress:
    """How far a run has come, whoever is told of it."""

    def __init__(self) -> None:
        self.estimated_shards: int | None = None
        self.estimated_tokens: int | None = None
        self.now = "starting"
        self.shards = self.tokens = self.resumed_tokens = 0
        self.started: float | None = None

    def planned(self, plan: Plan, resumed: Totals) -> None:
        """A plan is made; `resumed` is what earlier attempts have committed. Of several runs the figures add up."""
        self.estimated_shards = (self.estimated_shards or 0) + plan.estimated_shards
        self.estimated_tokens = (self.estimated_tokens or 0) + plan.estimated_tokens
        self.shards += resumed.shards
        self.tokens += resumed.tokens
        self.resumed_tokens = self.tokens

    def committed(self, record: CommitRecord) -> None:
        """Move on by one shard."""
        if self.started is None:
            # The first shard's wait is start-up; the rate counts from here.
            self.started = time.monotonic()
            self.resumed_tokens = self.tokens + record.tokens
        self.now = "scoring"
        self.shards += 1
        self.tokens += record.tokens

    def rate(self) -> float | None:
        """Tokens per second since the first commit, as soon as there are some."""
        passed = time.monotonic() - self.started if self.started else 0.0
        done = self.tokens - self.resumed_tokens
        return done / passed if done > 0 and passed > 0 else None

    def seconds_left(self) -> float | None:
        """At this rate, to the end of the plan."""
        rate = self.rate()
        return max(0, (self.estimated_tokens or 0) - self.tokens) / rate if rate else None


class ProgressView(Watcher):
    """A bar on a terminal, a line every few seconds elsewhere (logs, `ray job submit`).

    several: what is said of one run names its output.
    """

    def __init__(self, console: Console, several: bool = False) -> None:
        self.console, self.several = console, several
        self.progress = RunProgress()
        self.warned: set[str] = set()
        self.over = threading.Event()
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> ProgressView:
        if self.console.is_terminal:
            self.bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.progress.now, total=None, figures="")
        else:
            threading.Thread(target=self._lines, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.bar is not None:
            self.bar.stop()

    def planned(self, plan: Plan, resumed: Totals, redo: dict[str, str]) -> None:
        """Show the warnings and what earlier attempts left."""
        self.progress.planned(plan, resumed)
        where = f" in {plan.job.output}" if self.several else ""
        for warning in plan.warnings:
            if warning in self.warned:  # of another run over the same rows
                continue
            self.warned.add(warning)
            self.console.print(f"[yellow]warning:[/] {safe(warning)}", highlight=False)
        for name, reason in list(redo.items())[:_REDO_SHOWN]:
            text = f"scoring shard {name.removesuffix('.json')}{where} again: {reason}"
            self.console.print(safe(text), highlight=False)
        if len(redo) > _REDO_SHOWN:
            self.console.print(f"... and {len(redo) - _REDO_SHOWN:,} more", highlight=False)
        if resumed.shards:
            done = f"resuming: {resumed.shards:,} shard{'s' * (resumed.shards != 1)} already done"
            self.console.print(safe(done + where), highlight=False)
        self._refresh()

    def stage(self, name: str) -> None:
        """Show what the run does now."""
        self.progress.now = name
        self._refresh()

    def committed(self, record: CommitRecord) -> None:
        """Move on by one shard."""
        self.progress.committed(record)
        self._refresh()

    def figures(self) -> str:
        """Shards, tokens per second and time left, as far as they are known."""
        sofar = self.progress
        if sofar.estimated_shards is None:
            return ""
        parts = [f"{sofar.shards:,} of about {max(sofar.shards, sofar.estimated_shards):,} shards"]
        rate, left = sofar.rate(), sofar.seconds_left()
        if rate is not None and left is not None:
            parts += [f"{rate:,.0f} tokens/s", f"{duration(left)} left"]
        return ", ".join(parts)

    def _refresh(self) -> None:
        if self.bar is not None and self.task is not None:
            sofar = self.progress
            total = max(sofar.estimated_tokens or 0, sofar.tokens)
            self.bar.update(
                self.task, description=sofar.now, total=total or None, completed=sofar.tokens, figures=self.figures()
            )

    def _lines(self) -> None:
        while not self.over.wait(LINE_SECONDS):
            figures = self.figures()
            self.console.print(f"{self.progress.now}{': ' + figures if figures else ' ...'}", highlight=False)
