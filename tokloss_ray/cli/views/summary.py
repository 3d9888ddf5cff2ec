"""What a run says at its end."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tokloss_ray.cli.views.figures import duration, figure_table, micro_batches, repeated, safe
from tokloss_ray.output.totals import RunSummary, Totals


def print_summaries(console: Console, summaries: Sequence[RunSummary]) -> None:
    """The figures of a run; of several in one pass a line each. And the next command to try."""
    if len(summaries) == 1:
        print_summary(console, summaries[0])
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("output")
    for name in ("rows", "in errors/", "labelled tokens", "mean loss", "time"):
        table.add_column(name, justify="right")
    for summary in summaries:
        totals, mean = summary.totals, summary.totals.mean_loss
        table.add_row(
            safe(summary.output),
            f"{totals.rows:,}",
            f"{totals.error_rows:,}",
            f"{totals.labels:,}",
            "" if mean is None else f"{mean:.4f}",
            "complete before" if summary.finished_before else duration(summary.seconds),
        )
    console.print(table)
    first, second = (safe(shlex.quote(summary.output)) for summary in summaries[:2])
    console.print("\nNext, the words on which the models differ:" if len(summaries) == 2 else "\nNext, two of them:")
    console.print(f"  {safe(_command())} diff {first} {second}", highlight=False)


def print_summary(console: Console, summary: RunSummary) -> None:
    """The figures of a run and the next command to try."""
    totals = summary.totals
    if summary.finished_before:
        console.print(f"{safe(summary.output)} is already complete: nothing to do (--overwrite starts over).\n")
    table = figure_table()
    table.add_row("rows", f"{totals.rows:,}" + (f"  ({totals.error_rows:,} in errors/)" if totals.error_rows else ""))
    if totals.sequences != totals.scored_rows:
        table.add_row("sequences", f"{totals.sequences:,}  (long rows in overlapping windows)")
    table.add_row("tokens", f"{totals.tokens:,}  ({totals.labels:,} with a label)")
    if summary.tokens_per_second:
        table.add_row("tokens per second", f"{summary.tokens_per_second:,.0f}")
    if totals.padding_efficiency is not None:
        table.add_row("padding efficiency", f"{totals.padding_efficiency:.3f}  (real tokens / padded tokens)")
    if totals.batch_tokens:
        table.add_row("micro-batches", micro_batches(totals.batch_tokens, totals.batching))
    if totals.device_wait is not None:
        table.add_row("device wait", f"{totals.device_wait:.1%}  (of the time, the model had nothing to do)")
    if totals.compiled:
        table.add_row("compiled", safe(totals.compiled))
    table.add_row("dropped words", f"{totals.dropped_words:,}")
    if totals.repeated_ids:
        table.add_row("repeated ids", repeated(totals.repeated_ids))
    if totals.storage_retries:
        table.add_row("storage retries", f"{totals.storage_retries:,}  (after transient failures)")
    if totals.memory_splits:
        table.add_row("memory splits", f"{totals.memory_splits:,}  (micro-batches that did not fit and were halved)")
    for reason, count in sorted(totals.errors.items(), key=lambda e: -e[1]):
        table.add_row(safe(f"errors: {reason}"), f"{count:,}")
    if not summary.finished_before:
        first = f", first shard after {summary.first_commit:.1f} s" if summary.first_commit else ""
        table.add_row("time", f"{duration(summary.seconds)}{first}")
    console.print(table)
    if totals.labels:
        console.print()
        console.print(tag_table(totals))
    console.print(f"\nResults are in [bold]{safe(summary.output)}[/]. Next, the sequences the model finds hardest:")
    console.print(f"  {safe(_command())} show {safe(shlex.quote(summary.output))} --worst 3", highlight=False)


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
        table.add_row(safe(tag), f"{count:,}", f"{loss / count:.4f}")
    mean = totals.mean_loss
    table.add_row("[dim]all[/]", f"{totals.labels:,}", "" if mean is None else f"{mean:.4f}")
    return table
