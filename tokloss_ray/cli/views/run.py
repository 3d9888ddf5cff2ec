"""What a run says on the terminal: progress, summary, state, estimate."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokloss_ray.output.records import CommitRecord
from tokloss_ray.output.status import Status
from tokloss_ray.output.totals import RunSummary, Totals
from tokloss_ray.output.verify import Verified
from tokloss_ray.schema import EQUAL_LENGTH
from tokloss_ray.scoring.driver import Watcher
from tokloss_ray.scoring.estimate import Estimate
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.text import visible

LINE_SECONDS = 5.0
_REDO_SHOWN = 5


class ProgressView(Watcher):
    """A bar on a terminal, a line every few seconds elsewhere (logs, `ray job submit`)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plan: Plan | None = None
        self.now = "starting"
        self.shards = self.tokens = self.resumed_tokens = 0
        self.started: float | None = None
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
            self.task = self.bar.add_task(self.now, total=None, figures="")
        else:
            threading.Thread(target=self._lines, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.bar is not None:
            self.bar.stop()

    def planned(self, plan: Plan, resumed: Totals, redo: dict[str, str]) -> None:
        """Show the warnings and what earlier attempts left."""
        self.plan = plan
        self.shards, self.tokens = resumed.shards, resumed.tokens
        self.resumed_tokens = resumed.tokens
        for warning in plan.warnings:
            self.console.print(f"[yellow]warning:[/] {_safe(warning)}", highlight=False)
        for name, reason in list(redo.items())[:_REDO_SHOWN]:
            self.console.print(_safe(f"scoring shard {name.removesuffix('.json')} again: {reason}"), highlight=False)
        if len(redo) > _REDO_SHOWN:
            self.console.print(f"... and {len(redo) - _REDO_SHOWN:,} more", highlight=False)
        if resumed.shards:
            self.console.print(f"going on after {resumed.shards:,} shards that are done", highlight=False)
        self._refresh()

    def stage(self, name: str) -> None:
        """Show what the run does now."""
        self.now = name
        self._refresh()

    def committed(self, record: CommitRecord) -> None:
        """Move on by one shard."""
        if self.started is None:
            # The first shard's wait is start-up; the rate counts from here.
            self.started = time.monotonic()
            self.resumed_tokens = self.tokens + record.tokens
        self.now = "scoring"
        self.shards += 1
        self.tokens += record.tokens
        self._refresh()

    def figures(self) -> str:
        """Shards, tokens per second and time left, as far as they are known."""
        if self.plan is None:
            return ""
        parts = [f"{self.shards:,} of about {max(self.shards, self.plan.estimated_shards):,} shards"]
        passed = time.monotonic() - self.started if self.started else 0.0
        done = self.tokens - self.resumed_tokens
        if done > 0 and passed > 0:
            rate = done / passed
            left = max(0, self.plan.estimated_tokens - self.tokens) / rate
            parts += [f"{rate:,.0f} tokens/s", f"{duration(left)} left"]
        return ", ".join(parts)

    def _refresh(self) -> None:
        if self.bar is not None and self.task is not None:
            total = None if self.plan is None else max(self.plan.estimated_tokens, self.tokens)
            self.bar.update(
                self.task, description=self.now, total=total or None, completed=self.tokens, figures=self.figures()
            )

    def _lines(self) -> None:
        while not self.over.wait(LINE_SECONDS):
            figures = self.figures()
            self.console.print(f"{self.now}{': ' + figures if figures else ' ...'}", highlight=False)


def print_summary(console: Console, summary: RunSummary) -> None:
    """The figures of a run and the next command to try."""
    totals = summary.totals
    if summary.finished_before:
        console.print(f"{_safe(summary.output)} is complete already: nothing to do (--overwrite starts afresh).\n")
    table = _figures()
    table.add_row("rows", f"{totals.rows:,}" + (f"  ({totals.error_rows:,} in errors/)" if totals.error_rows else ""))
    if totals.sequences != totals.scored_rows:
        table.add_row("sequences", f"{totals.sequences:,}  (long rows in overlapping windows)")
    table.add_row("tokens", f"{totals.tokens:,}  ({totals.labels:,} with a label)")
    if summary.tokens_per_second:
        table.add_row("tokens per second", f"{summary.tokens_per_second:,.0f}")
    if totals.padding_efficiency is not None:
        table.add_row("padding efficiency", f"{totals.padding_efficiency:.3f}  (real tokens / padded tokens)")
    if totals.batch_tokens:
        table.add_row("micro-batches", f"up to {totals.batch_tokens:,} padded tokens{_equally_long(totals.batching)}")
    table.add_row("dropped words", f"{totals.dropped_words:,}")
    if totals.repeated_ids:
        table.add_row("repeated ids", _repeated(totals.repeated_ids))
    if totals.storage_retries:
        table.add_row(
            "storage retries", f"{totals.storage_retries:,}  (operations tried again after a passing failure)"
        )
    for reason, count in sorted(totals.errors.items(), key=lambda e: -e[1]):
        table.add_row(_safe(f"errors: {reason}"), f"{count:,}")
    if not summary.finished_before:
        first = f", first shard after {summary.first_commit:.1f} s" if summary.first_commit else ""
        table.add_row("time", f"{duration(summary.seconds)}{first}")
    console.print(table)
    if totals.labels:
        console.print()
        console.print(tag_table(totals))
    console.print(f"\nResults are in [bold]{_safe(summary.output)}[/]. Next, the sequences the model finds hardest:")
    console.print(f"  {_safe(_command())} show {_safe(shlex.quote(summary.output))} --worst 3", highlight=False)


def _equally_long(batching: str | None) -> str:
    """What is said of micro-batches where padding would change results."""
    return ", of equally long sequences: padding changes this model's answers" if batching == EQUAL_LENGTH else ""


def _command() -> str:
    """How to call this program from here: by its name, or by its path where the environment is not activated."""
    path = Path(sys.argv[0])
    return "tokloss" if path.name != "tokloss" or shutil.which("tokloss") else os.path.relpath(path)


def tag_table(totals: Totals) -> Table:
    """Labelled tokens and mean loss by tag, highest first."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("tag")
    table.add_column("tokens", justify="right")
    table.add_column("mean loss", justify="right")
    for tag, (count, loss) in sorted(totals.loss_by_tag.items(), key=lambda item: -item[1][1] / item[1][0]):
        table.add_row(_safe(tag), f"{count:,}", f"{loss / count:.4f}")
    mean = totals.mean_loss
    table.add_row("[dim]all[/]", f"{totals.labels:,}", "" if mean is None else f"{mean:.4f}")
    return table


def print_status(console: Console, status: Status) -> None:
    """How far a run has come."""
    totals = status.totals
    table = _figures()
    state = "finished" if status.finished else "not finished"
    table.add_row("state", state)
    table.add_row("shards done", f"{totals.shards:,}")
    if not status.finished:
        table.add_row("units to do", f"{status.units_missing:,} of {status.units:,}")
        if status.missing:
            shown = ", ".join(status.missing[:5]) + (" ..." if len(status.missing) > 5 else "")
            table.add_row("missing", _safe(shown))
    table.add_row("rows", f"{totals.rows:,}" + (f" of {status.rows:,}" if status.rows is not None else ""))
    table.add_row("tokens", f"{totals.tokens:,}")
    if status.tokens_per_busy_second:
        table.add_row("tokens per second", f"{status.tokens_per_busy_second:,.0f}  (of one actor at work)")
    table.add_row("errors", f"{totals.error_rows:,}")
    for reason, count in sorted(totals.errors.items(), key=lambda e: -e[1]):
        table.add_row(_safe(f"  {reason}"), f"{count:,}")
    console.print(table)


def print_verified(console: Console, found: Verified) -> None:
    """What was checked, and what does not hold."""
    for problem in found.problems[:100]:
        console.print(f"[red]{_safe(problem)}[/]", highlight=False)
    if len(found.problems) > 100:
        console.print(f"... and {len(found.problems) - 100:,} more")
    table = _figures()
    totals = found.totals
    table.add_row("shards", f"{totals.shards:,}")
    table.add_row("files", f"{found.files:,}")
    table.add_row("rows", f"{totals.rows:,}  ({totals.scored_rows:,} scored, {totals.error_rows:,} in errors/)")
    table.add_row("tokens", f"{totals.tokens:,}")
    if found.repeated_ids:
        table.add_row("repeated ids", _repeated(found.repeated_ids))
    table.add_row("problems", f"{len(found.problems):,}")
    console.print(table)


def _repeated(count: int) -> str:
    return f"[yellow]{count:,}[/]  (rows whose example_id another row has; join by source and source_row)"


def print_estimate(console: Console, plan: Plan, estimate: Estimate) -> None:
    """What a run would take."""
    for warning in plan.warnings:
        console.print(f"[yellow]warning:[/] {_safe(warning)}", highlight=False)
    exact = "" if plan.rows is not None else "about "
    table = _figures()
    files = len({u.source for u in plan.units})
    table.add_row("input", f"{files:,} file{'s' if files != 1 else ''}, {exact}{plan.estimated_rows:,} rows")
    table.add_row("tags", _safe(", ".join(plan.job.tags)))
    table.add_row("tokens", f"about {plan.estimated_tokens:,}")
    table.add_row("shards", f"about {plan.estimated_shards:,} of {plan.job.shard_tokens:,} tokens")
    table.add_row("computes in", plan.job.dtype)
    table.add_row("micro-batches", f"up to {plan.job.batch_tokens:,} padded tokens{_equally_long(estimate.batching)}")
    if estimate.tokens_per_second:
        seconds = plan.estimated_tokens / estimate.tokens_per_second
        table.add_row("output", f"about {size(plan.estimated_tokens * estimate.bytes_per_token)}")
        table.add_row("time", f"about {duration(seconds)} on this machine ({estimate.tokens_per_second:,.0f} tokens/s)")
    console.print(table)
    console.print("\nReady to score: the same arguments with [bold]tokloss score[/].")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _figures() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    return table


def _safe(text: str) -> str:
    """Text from data or paths: brackets in it are no markup, and control characters are shown, not obeyed."""
    from rich.markup import escape

    return escape(visible(text))
