"""What `status`, `verify` and `check` print."""

from __future__ import annotations

from rich.console import Console

from tokloss_ray.cli.views.figures import duration, figure_table, micro_batches, repeated, safe, size
from tokloss_ray.output.status import Status
from tokloss_ray.output.verify import Verified
from tokloss_ray.scoring.estimate import Estimate
from tokloss_ray.scoring.plan import Plan


def print_status(console: Console, status: Status) -> None:
    """How far a run has come."""
    totals = status.totals
    table = figure_table()
    state = "finished" if status.finished else "not finished"
    table.add_row("state", state)
    table.add_row("shards done", f"{totals.shards:,}")
    if not status.finished:
        table.add_row("units to do", f"{status.units_missing:,} of {status.units:,}")
        if status.missing:
            shown = ", ".join(status.missing[:5]) + (" ..." if len(status.missing) > 5 else "")
            table.add_row("missing", safe(shown))
    table.add_row("rows", f"{totals.rows:,}" + (f" of {status.rows:,}" if status.rows is not None else ""))
    table.add_row("tokens", f"{totals.tokens:,}")
    if status.tokens_per_busy_second:
        table.add_row("tokens per second", f"{status.tokens_per_busy_second:,.0f}  (per busy actor)")
    table.add_row("errors", f"{totals.error_rows:,}")
    for reason, count in sorted(totals.errors.items(), key=lambda e: -e[1]):
        table.add_row(safe(f"  {reason}"), f"{count:,}")
    console.print(table)


def print_verified(console: Console, found: Verified) -> None:
    """What was checked, and what does not hold."""
    for problem in found.problems[:100]:
        console.print(f"[red]{safe(problem)}[/]", highlight=False)
    if len(found.problems) > 100:
        console.print(f"... and {len(found.problems) - 100:,} more")
    table = figure_table()
    totals = found.totals
    table.add_row("shards", f"{totals.shards:,}")
    table.add_row("files", f"{found.files:,}")
    table.add_row("rows", f"{totals.rows:,}  ({totals.scored_rows:,} scored, {totals.error_rows:,} in errors/)")
    table.add_row("tokens", f"{totals.tokens:,}")
    if found.repeated_ids:
        table.add_row("repeated ids", repeated(found.repeated_ids))
    table.add_row("problems", f"{len(found.problems):,}")
    console.print(table)


def print_estimate(console: Console, plan: Plan, estimate: Estimate, several: bool = False) -> None:
    """What a run would take; of several, under the name of its output."""
    if several:
        console.print(f"\n[bold]{safe(plan.job.output)}[/]", highlight=False)
    for warning in plan.warnings:
        console.print(f"[yellow]warning:[/] {safe(warning)}", highlight=False)
    exact = "" if plan.rows is not None else "about "
    table = figure_table()
    files = plan.read_files
    table.add_row("input", f"{files:,} file{'s' if files != 1 else ''}, {exact}{plan.estimated_rows:,} rows")
    table.add_row("tags", safe(", ".join(plan.job.tags)))
    table.add_row("tokens", f"about {plan.estimated_tokens:,}")
    table.add_row("shards", f"about {plan.estimated_shards:,} of {plan.job.shard_tokens:,} tokens")
    table.add_row("compute dtype", plan.job.dtype)
    table.add_row("micro-batches", micro_batches(plan.job.batch_tokens, estimate.batching))
    if estimate.tokens_per_second:
        seconds = plan.estimated_tokens / estimate.tokens_per_second
        table.add_row("output", f"about {size(plan.estimated_tokens * estimate.bytes_per_token)}")
        table.add_row("time", f"about {duration(seconds)} on this machine ({estimate.tokens_per_second:,.0f} tokens/s)")
    if estimate.core_rate:
        table.add_row("CPU", f"a core reads, encodes and writes about {estimate.core_rate:,.0f} tokens/s")
        table.add_row("", f"a GPU at {estimate.gpu_rate:,} tokens/s needs {estimate.cores_per_gpu} cores")
    console.print(table)


def print_ready(console: Console) -> None:
    """What to do after a check."""
    console.print("\nReady to score: run [bold]tokloss score[/] with the same arguments.")
