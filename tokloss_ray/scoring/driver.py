"""One run from settings to `_SUCCESS`, or several in one pass: begin, passes over what is missing, totals."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import overload

from tokloss_ray.cluster.session import raise_if_stopped
from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import JobFailed, PassFailed, Refused, TokLossError, TooManyBadRows, before_work
from tokloss_ray.output.done import Done, read_committed
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.run import is_finished, read_run
from tokloss_ray.output.segments import RollUp
from tokloss_ray.output.totals import RunSummary, Totals
from tokloss_ray.scoring.additions import find_base
from tokloss_ray.scoring.begin import Begun, begin, plan_run
from tokloss_ray.scoring.estimate import Estimate, estimate
from tokloss_ray.scoring.finish import break_early, complete
from tokloss_ray.scoring.folder import check_folder
from tokloss_ray.scoring.on_ray.hardware import Actors, cluster_hardware, local_gpu, plan_actors, weights_of
from tokloss_ray.scoring.on_ray.metrics import RunMetrics
from tokloss_ray.scoring.on_ray.nodes import NodeWatch
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.scoring.preflight import locate, preflight
from tokloss_ray.scoring.stages.journal import count_deaths
from tokloss_ray.scoring.watcher import Watcher, Watchers
from tokloss_ray.scoring.work import Work, shared_work
from tokloss_ray.storage.failures import PREFLIGHT_TRIES, tries
from tokloss_ray.storage.sealed import sealed

IDLE_PASSES = 2
"""Shards that Ray lost (their worker died again and again) are tried in further passes, until so many in a row have
committed nothing."""


@overload
def score(config: ScoreConfig, watcher: Watcher | None = None) -> RunSummary: ...
@overload
def score(config: Sequence[ScoreConfig], watcher: Watcher | None = None) -> list[RunSummary]: ...
def score(config: ScoreConfig | Sequence[ScoreConfig], watcher: Watcher | None = None) -> RunSummary | list[RunSummary]:
    """Score a corpus and write losses and predictions to `config.output`.

    If an earlier call with the same settings was interrupted, this one resumes after its committed shards. Uses the Ray
    instance this process is connected to, otherwise `config.address`, otherwise starts a local one for the run.

    Several models score a corpus in one pass if each has a config (`ScoreConfig.several` makes them). What they write
    is what separate calls would write. The corpus is read and encoded once where their tokenizers and tags agree. A run
    that fails does not end the others.

    Args:
        config: the settings; or those of several runs, which differ in model, revision, tokenizer, labels_column, tags
            and output at most.
        watcher: called with the plan, each commit and each stage; for progress displays.

    Returns:
        The totals of the whole output, including shards from earlier attempts; losses are in nats. Of several runs a
        list, in their order.

    Raises:
        Refused: settings, input, model or output are unusable; nothing was done.
        JobFailed: the job failed while running; committed shards are kept.
        TooManyBadRows: all good rows are scored, but more rows are in errors/ than `max_error_rate` allows; there is no
            `_SUCCESS`.
        Interrupted: a signal stopped the run; committed shards are kept.

    Example:
        >>> from tokloss_ray import ScoreConfig, score
        >>> summary = score(ScoreConfig(model="my-model", input="news.jsonl", output="out", id_column="id"))
        >>> summary.totals.rows, summary.totals.errors
        (300, {})
    """
    if isinstance(config, ScoreConfig):
        return _score([config], watcher)[0]
    if not config:
        raise Refused("no runs: give a config for each")
    return _score(config, watcher)


def _score(configs: Sequence[ScoreConfig], watcher: Watcher | None) -> list[RunSummary]:
    watcher = Watchers(watcher or Watcher(), RunMetrics())
    with ExitStack() as stack:
        effort = stack.enter_context(tries(PREFLIGHT_TRIES))
        with before_work():
            runs, actors, joins = begin(configs, watcher, stack)
        if any(run.lease for run in runs):
            effort.tries = configs[0].storage_tries
        _score_missing(runs, actors, joins, watcher)
        totals = [_complete(run) for run in runs]
        _raise_failures(runs)
        retries = effort.take()
    summaries = []
    for run, total in zip(runs, totals, strict=True):
        assert total is not None  # else the run would have failed
        if run.lease is not None:
            total.storage_retries, retries = total.storage_retries + retries, 0
        summaries.append(_summary(run, total))
    return summaries


def _summary(run: Begun, totals: Totals) -> RunSummary:
    output, warnings, clock = run.config.output, tuple(run.plan.warnings), run.clock
    if run.lease is None:
        return RunSummary(output, totals, 0, clock.elapsed(), None, None, True, warnings)
    new = run.committed.done.shards - run.before
    return RunSummary(output, totals, new, clock.elapsed(), clock.first, clock.rate(), False, warnings)


def _complete(run: Begun) -> Totals | None:
    """The totals of a run that is whole; of one that has failed, None."""
    if run.error is not None:
        return None
    if run.lease is None:
        return run.committed.tally.totals()
    try:
        listing = run.found.listing if run.committed is run.found.committed else None
        return complete(run.config, run.plan, run.units, run.committed, listing)
    except (JobFailed, TooManyBadRows) as error:
        run.error = error
        return None


def _raise_failures(runs: Sequence[Begun]) -> None:
    """Raise what runs have failed with, if any has.

    Raises:
        JobFailed, TooManyBadRows: naming the output, where there are several.
    """
    failed = [(run.config.output, run.error) for run in runs if run.error is not None]
    if not failed:
        return
    first = next((error for _, error in failed if not isinstance(error, TooManyBadRows)), failed[0][1])
    if len(runs) == 1:
        raise first
    told = [f"{output}: {error}" for output, error in failed]
    told += [f"{run.config.output} is finished" for run in runs if run.error is None]
    raise type(first)("; ".join(told), first.detail)


def _score_missing(runs: Sequence[Begun], actors: Actors | None, joins: bool, watcher: Watcher) -> None:
    """Passes over what is missing, until nothing is or passes commit nothing; what is committed then is in the runs.

    Meanwhile records are rolled up. What is kept of them grows with the units at work, not with the shards done.

    Raises:
        JobFailed: a stage failed, or the cluster has no node left.
        TooManyBadRows: the rows are mostly bad from the start.
    """
    config = runs[0].config
    idle, again, deaths = 0, False, 0
    work = _work(runs)
    while work and idle < IDLE_PASSES:
        failure, known = None, (_shards(runs), deaths)
        try:
            actors = actors or _actors_again(config, joins, runs)
            rolls = [RollUp(run.config.output, run.plan.job.fingerprint, run.committed.next_segment) for run in runs]
            for number, record in _one_pass(runs, work, actors, again):
                run = runs[number]
                run.clock.committed(record)
                watcher.committed(record)
                if run.committed.done.add(record):
                    run.committed.tally.add(record)
                    rolls[number].add(record.shard, sealed(record.to_json()))
                    _break_early(run, runs)
        except PassFailed as error:
            failure = error
        gc.collect()  # actors of this pass live, and hold their CPUs, until the last reference to them is gone
        # What is on disk counts, not what Ray said.
        for run in _open(runs):
            tell = partial(_tell_new, run.committed.done, watcher)
            run.committed = read_committed(run.config.output, run.plan.job.fingerprint, roll_up=True, each=tell)
        actors, work = None, _work(runs)
        # Shards that were lost may have killed their workers: the next pass looks for the rows that do.
        again, deaths = True, sum(count_deaths(run.config.output) for run in _open(runs)) if work else 0
        idle = idle + 1 if (_shards(runs), deaths) == known else 0
        if work and failure is not None and idle == IDLE_PASSES:
            for run in runs:
                run.error = run.error or (failure if run.lacking() else None)
        elif work:
            watcher.retrying(str(failure or "Ray gave some shards up"))


def _open(runs: Sequence[Begun]) -> list[Begun]:
    """Those that were not complete before."""
    return [run for run in runs if run.lease is not None]


def _shards(runs: Sequence[Begun]) -> int:
    return sum(run.committed.done.shards for run in runs)


def _work(runs: Sequence[Begun]) -> list[Work]:
    jobs = [run.plan.job for run in runs]
    return shared_work(jobs, [run.lacking() for run in runs], [run.committed.done.held() for run in runs])


def _break_early(run: Begun, runs: Sequence[Begun]) -> None:
    """As `break_early`; of several runs the others go on."""
    if run.error is None:
        try:
            break_early(run.committed.tally, run.config)
        except TooManyBadRows as error:
            _fail([run], error, runs)


def _fail(failing: Sequence[Begun], error: TokLossError, runs: Sequence[Begun]) -> None:
    """Note that some runs have failed.

    Raises:
        JobFailed, TooManyBadRows: no other is left at work.
    """
    for run in failing:
        run.error = run.error or error
    if all(run.error for run in _open(runs)):
        _raise_failures(runs)


def _tell_new(told: Done, watcher: Watcher, record: CommitRecord) -> None:
    """Tell of a shard that was committed and that Ray did not tell of."""
    if not told.has(record.unit, record.index):
        watcher.committed(record)


def _actors_again(config: ScoreConfig, joins: bool, runs: Sequence[Begun]) -> Actors:
    """The actors for one more pass, on the nodes that are left, or that come up in place of those that were lost.

    Raises:
        JobFailed: there are none.
    """
    deadline = time.monotonic() + (config.stall_timeout if joins else 0)
    weights = weights_of(run.plan.job.model for run in runs)
    while True:
        try:
            return plan_actors(config, cluster_hardware(may_grow=joins), weights)
        except Refused as error:
            if time.monotonic() > deadline:
                raise JobFailed(str(error)) from None
            raise_if_stopped()
            time.sleep(1)


def _one_pass(
    runs: Sequence[Begun], work: list[Work], actors: Actors, again: bool
) -> Iterator[tuple[int, CommitRecord]]:
    """Commit records as they come, with the number of their run.

    Raises:
        PassFailed: Ray gave the pass up, or lost a node and hangs.
        JobFailed: a stage failed (the traceback of the worker is in `detail`) and no other run is at work, or somebody
            else has taken a folder.
    """
    from tokloss_ray.scoring.pipeline import run as run_graph

    nodes = NodeWatch()

    def check() -> None:
        raise_if_stopped()
        for run in runs:
            if run.lease is not None:
                run.lease.check()
        nodes.check()

    jobs = [replace(run.plan.job, tokens_each=run.plan.estimated_tokens // max(1, actors.high)) for run in runs]
    for result in run_graph(jobs, work, actors, runs[0].config.stall_timeout, again, check):
        if result.record is None:
            failing = [runs[number] for number in result.jobs] or _open(runs)
            _fail(failing, JobFailed(result.failure or "a stage returned nothing", result.detail), runs)
            continue
        nodes.committed()
        yield result.jobs[0], result.record


def check(config: ScoreConfig) -> tuple[Plan, Estimate]:
    """Run the preflight of `score` and estimate size and time. Writes nothing and does not start Ray.

    Args:
        config: the settings, as for `score`.

    Returns:
        The plan, and rates measured by scoring a few rows on this machine.

    Raises:
        Refused: settings, input, model or output are unusable.
        JobFailed: the model does not load.
    """
    with tries(PREFLIGHT_TRIES), before_work():
        run = None if config.overwrite else read_run(config.output)
        check_folder(config.output)
        finished = run is not None and is_finished(config.output)
        located = locate(config)
        base = find_base(config, run, located.files)
        found = preflight(config, located)
        plan = plan_run(config, found, run, False, finished and not (base and base.new), base)
    return plan, estimate(plan, found.model, local_gpu() if config.gpus_per_actor != 0 else None)
