"""Whether what a run committed is all of it and good enough: totals, the error rate, `_SUCCESS`."""

from __future__ import annotations

from dataclasses import asdict

import pyarrow as pa

from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import JobFailed, TooManyBadRows
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.output.card import card
from tokloss_ray.output.done import Committed, file_problems, list_data
from tokloss_ray.output.records import stream_records
from tokloss_ray.output.run import fingerprint, read_run
from tokloss_ray.output.totals import Tally, Totals
from tokloss_ray.output.verify import repeated_ids
from tokloss_ray.ragged import sum_if_known
from tokloss_ray.scoring.folder import forget_attempts, remove_strangers, write_success
from tokloss_ray.scoring.plan import Plan

BREAKER_ROWS = 1000
NOT_IN_SUCCESS = (
    "padded_tokens",
    "batch_tokens",
    "batching",
    "compiled",
    "storage_retries",
    "memory_splits",
    "device_wait",
)
"""What may differ between two runs of the same job."""
MOST_IDS = 20_000_000
"""Rows up to which a run counts repeated ids before it ends, which holds eight bytes for each; `verify` always does."""


def break_early(tally: Tally, config: ScoreConfig) -> None:
    """Stop a run whose rows are mostly bad from the start: that is a wrong column, not bad rows."""
    if config.max_error_rate >= 0.5 or tally.sums["shards"] > 1000:
        return
    rows, bad = tally.sums["rows"], tally.sums["error_rows"]
    if rows >= BREAKER_ROWS and bad * 2 > rows:
        reasons = _reasons(tally.totals())
        raise TooManyBadRows(
            f"stopped: {bad:,} of the first {rows:,} rows cannot be scored ({reasons}), "
            f"which suggests a wrong column; the rows are in {config.output}/errors"
        )


def complete(
    config: ScoreConfig, plan: Plan, units: list[ReadUnit], committed: Committed, listing: pa.Table | None = None
) -> Totals:
    """Check that everything is there and adds up, then write `_SUCCESS`.

    listing: the data files, if nothing was written since they were listed.

    Raises:
        JobFailed: something is missing, or the parts do not fit together.
        TooManyBadRows: more rows are in errors/ than the settings allow.
    """
    missing = [name for _, name in committed.done.missing(unit.number for unit in units)]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise JobFailed(
            f"{len(missing)} shards are missing, and another pass did not help: {shown}; run the same command again"
        )
    wrong = next(committed.done.misfits({unit.number: unit.rows for unit in units}), None)
    if wrong is not None:
        raise JobFailed(
            f"shard {wrong[0]} does not match the others: {wrong[1]}. Not all attempts cut the units at the same "
            f"places: start over with --overwrite"
        )
    totals = committed.tally.totals()
    planned = sum_if_known(unit.rows for unit in units)
    expected = totals.rows if planned is None else planned
    if not totals.rows == totals.scored_rows + totals.error_rows == expected:
        raise JobFailed(
            f"the totals do not agree: {expected:,} rows in, {totals.scored_rows:,} scored, "
            f"{totals.error_rows:,} in errors/"
        )
    run = read_run(config.output)
    if run is None or run.fingerprint != fingerprint(plan.job.identity):
        raise JobFailed(f"another run took over {config.output} while this one was running: choose another folder")
    forget_attempts(config.output)
    named = committed.files()
    listing = remove_strangers(config.output, committed, list_data(config.output) if listing is None else listing)
    if problems := file_problems(listing, named):
        more = f", and {len(problems) - 1} more problems" if len(problems) > 1 else ""
        remedy = (
            "run the same command again to score that shard again" if problems[0][0] else "move it away and run again"
        )
        raise JobFailed(f"{problems[0][1]}{more}: {remedy}")
    if config.id_column and totals.rows <= MOST_IDS:
        totals.repeated_ids = repeated_ids(config.output, stream_records(config.output, plan.job.fingerprint))
    if totals.error_rate > config.max_error_rate:
        raise TooManyBadRows(
            f"{totals.error_rows:,} of {totals.rows:,} rows cannot be scored ({_reasons(totals)}), more than "
            f"--max-error-rate {config.max_error_rate:g}; all others are scored. Look at {config.output}/errors, then "
            f"run again with --max-error-rate {_rate_above(totals.error_rate)} to accept them"
        )
    write_success(config.output, card(totals), {k: v for k, v in asdict(totals).items() if k not in NOT_IN_SUCCESS})
    return totals


def _reasons(totals: Totals) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(totals.errors.items(), key=lambda e: -e[1]))


def _rate_above(rate: float) -> str:
    """A rate just above, with two digits that say something."""
    digits = 2
    while round(rate, digits) < rate or round(rate, digits) == 0:
        if digits > 9:
            return f"{rate}"
        rounded = round(rate + 10**-digits, digits)
        if rounded < 1.5 * rate or digits > 6:
            return f"{min(1.0, rounded):g}"
        digits += 1
    return f"{round(rate, digits):g}"
