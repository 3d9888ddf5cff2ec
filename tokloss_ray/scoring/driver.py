"""One run from settings to `_SUCCESS`: preflight, plan, resume, pipeline, totals."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from tokloss_ray import stopping
from tokloss_ray.cluster.session import joins_cluster, raise_if_stopped, ray_session
from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import JobFailed, PassFailed, Refused, before_work
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.model.quick_imports import no_collection
from tokloss_ray.output.done import Committed, Done, read_committed
from tokloss_ray.output.records import CommitRecord, RowRange
from tokloss_ray.output.run import Run, is_finished, read_run, run_file
from tokloss_ray.output.segments import RollUp
from tokloss_ray.output.totals import RunSummary
from tokloss_ray.scoring.additions import Base, find_base
from tokloss_ray.scoring.estimate import Estimate, estimate
from tokloss_ray.scoring.finish import break_early, complete
from tokloss_ray.scoring.folder import add_generation, check_folder, check_same_run, clear, read_plan, start_run
from tokloss_ray.scoring.lease import Lease
from tokloss_ray.scoring.on_ray.hardware import (
    Actors,
    cluster_hardware,
    gpu_has_bfloat16,
    local_gpu,
    plan_actors,
    uses_gpus,
)
from tokloss_ray.scoring.on_ray.metrics import RunMetrics
from tokloss_ray.scoring.on_ray.nodes import NodeWatch, check_nodes
from tokloss_ray.scoring.plan import Plan, make_plan
from tokloss_ray.scoring.preflight import Located, Preflight, locate, preflight
from tokloss_ray.scoring.resume import EarlierAttempts, find_committed, take_back, unfinished
from tokloss_ray.scoring.stages.journal import count_deaths
from tokloss_ray.scoring.watcher import Clock, Watcher, Watchers
from tokloss_ray.storage.failures import PREFLIGHT_TRIES, tries
from tokloss_ray.storage.sealed import sealed
from tokloss_ray.threads import in_background

IDLE_PASSES = 2
"""Shards that Ray lost (their worker died again and again) are tried in further passes, until so many in a row have
committed nothing."""


def score(config: ScoreConfig, watcher: Watcher | None = None) -> RunSummary:
    """Score a corpus and write losses and predictions to `config.output`.

    If an earlier call with the same settings was interrupted, this one resumes after its committed shards. Uses the Ray
    instance this process is connected to, otherwise `config.address`, otherwise starts a local one for the run.

    Args:
        config: the settings.
        watcher: called with the plan, each commit and each stage; for progress displays.

    Returns:
        The totals of the whole output, including shards from earlier attempts; losses are in nats.

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
    clock, watcher = Clock(), Watchers(watcher or Watcher(), RunMetrics())
    with ExitStack() as stack:
        effort = stack.enter_context(tries(PREFLIGHT_TRIES))
        with before_work():
            begun = _begin(config, watcher, stack)
        output, warnings = config.output, tuple(begun.plan.warnings)
        if begun.lease is None:
            totals = begun.found.committed.tally.totals()
            return RunSummary(output, totals, 0, clock.elapsed(), None, None, True, warnings)
        effort.tries = config.storage_tries
        before = begun.found.committed.done.shards
        committed = _score_missing(config, begun, begun.lease, watcher, clock)
        nothing_new = committed is begun.found.committed
        listing = begun.found.listing if nothing_new else None
        totals = complete(config, begun.plan, begun.units, committed, listing)
        totals.storage_retries += effort.take()
    new = committed.done.shards - before
    return RunSummary(output, totals, new, clock.elapsed(), clock.first, clock.rate(), False, warnings)


@dataclass(frozen=True)
class _Begun:
    """A run of which nothing can be refused any more.

    Attributes:
        units: of the plan that was recorded when the run began.
        found: what earlier attempts have committed.
        actors: None where there is nothing left to score.
        joins: it works on a cluster that it has not started.
        lease: None where the output was complete before.
    """

    plan: Plan
    units: list[ReadUnit]
    found: EarlierAttempts
    actors: Actors | None = None
    joins: bool = False
    lease: Lease | None = None


def _begin(config: ScoreConfig, watcher: Watcher, stack: ExitStack) -> _Begun:
    """Everything before the first shard: preflight, Ray, plan, lease, what earlier attempts have left, the folder.

    Ray and the lease are held by `stack`. Ray starts while input and model are checked.

    Raises:
        Refused: nothing was done.
    """
    watcher.stage("checking input and model")
    run = None if config.overwrite else read_run(config.output)
    check_folder(config.output)
    located = locate(config)
    base = find_base(config, run, located.files)
    checked = in_background(lambda: _preflight(config, located))
    found, joins = EarlierAttempts(), joins_cluster(config.address)
    if run is not None and is_finished(config.output):
        found = find_committed(config.output, run)
    finished = found.complete and not found.damaged and not (base and base.new)
    if not finished:
        watcher.stage("connecting to the cluster" if joins else "starting Ray")
        stack.enter_context(ray_session(config.address, config.verbose))
    plan = _plan(config, checked.result(), run, joins and not finished, finished, base)
    if finished:
        return _Begun(plan, plan.units, found)
    lease = stack.enter_context(Lease(config.output, plan.job.fingerprint))
    lease.confirm()
    # From here on nobody else writes; what was read before may be out of date.
    if not config.overwrite and read_run(config.output) != run:
        raise Refused(f"another run was at work in {config.output} just now: run the same command again")
    if run is not None and base is not None and base.new:
        run = add_generation(plan, run)
    found = EarlierAttempts() if run is None else find_committed(config.output, run, owned=True)
    units = plan.units if run is None else read_plan(plan, run)
    watcher.planned(plan if run is None else _of_all(plan, units, run), found.committed.tally.totals(), found.redo)
    todo = unfinished(units, found.committed.done)
    actors = plan_actors(config, cluster_hardware(may_grow=joins)) if todo else None
    take_back(config.output, found)
    if run is None:
        clear(config.output)
        start_run(plan, config.model_dump(mode="json", exclude_defaults=True))
    if todo and joins:
        watcher.stage("checking the nodes")
        try:
            check_nodes(plan, run_file(plan.job.output))
        except Refused:
            if run is None:  # nothing was done: the folder is free for the next command
                clear(config.output)
            raise
    watcher.stage("starting the model" if todo else "computing totals")
    return _Begun(plan, units, found, actors, joins, lease)


def _score_missing(config: ScoreConfig, begun: _Begun, lease: Lease, watcher: Watcher, clock: Clock) -> Committed:
    """Passes over what is missing, until nothing is or passes commit nothing; returns all that is committed then.

    Meanwhile records are rolled up. What is kept of them grows with the units at work, not with the shards done.

    Raises:
        PassFailed: the last passes failed.
        JobFailed: a stage failed, or the cluster has no node left.
        TooManyBadRows: the rows are mostly bad from the start.
    """
    committed, actors, fingerprint = begun.found.committed, begun.actors, begun.plan.job.fingerprint
    todo = unfinished(begun.units, committed.done)
    idle, again, deaths = 0, False, 0
    while todo and idle < IDLE_PASSES:
        failure, known = None, (committed.done.shards, deaths)
        try:
            actors = actors or _actors_again(config, begun.joins)
            roll_up = RollUp(config.output, fingerprint, committed.next_segment)
            for record in _one_pass(begun.plan, todo, committed.done.held(), actors, config, again, lease):
                clock.committed(record)
                watcher.committed(record)
                if committed.done.add(record):
                    committed.tally.add(record)
                    break_early(committed.tally, config)
                    roll_up.add(record.shard, sealed(record.to_json()))
        except PassFailed as error:
            failure = error
        gc.collect()  # actors of this pass live, and hold their CPUs, until the last reference to them is gone
        # What is on disk counts, not what Ray said.
        tell = partial(_tell_new, committed.done, watcher)
        committed, actors = read_committed(config.output, fingerprint, roll_up=True, each=tell), None
        todo = unfinished(begun.units, committed.done)
        # Shards that were lost may have killed their workers: the next pass looks for the rows that do.
        again, deaths = True, count_deaths(config.output) if todo else 0
        idle = idle + 1 if (committed.done.shards, deaths) == known else 0
        if todo and failure is not None and idle == IDLE_PASSES:
            raise failure
        if todo:
            watcher.retrying(str(failure or "Ray gave some shards up"))
    return committed


def _tell_new(told: Done, watcher: Watcher, record: CommitRecord) -> None:
    """Tell of a shard that was committed and that Ray did not tell of."""
    if not told.has(record.unit, record.index):
        watcher.committed(record)


def _preflight(config: ScoreConfig, located: Located) -> Preflight:
    with no_collection(ours=stopping.is_command()):
        found = preflight(config, located)
        import tokloss_ray.scoring.pipeline  # noqa: F401  (Ray Data takes a moment to import)
    return found


def _of_all(plan: Plan, units: list[ReadUnit], run: Run) -> Plan:
    """The plan with the units and the figures of all generations of a run."""
    tokens, rows = (sum(getattr(g, f"estimated_{what}") for g in run.generations) for what in ("tokens", "rows"))
    return replace(plan, units=units, rows=run.rows, estimated_tokens=tokens, estimated_rows=rows)


def _plan(
    config: ScoreConfig, found: Preflight, run: Run | None, cluster: bool, finished: bool, base: Base | None = None
) -> Plan:
    recorded = None if run is None else run.identity
    gpu = uses_gpus(config, cluster_hardware()) if cluster else local_gpu() and config.gpus_per_actor != 0
    asks = gpu and config.dtype == "auto" and not (recorded or {}).get("dtype")
    bfloat16 = asks and gpu_has_bfloat16(not cluster, config.stall_timeout)
    plan = make_plan(found, gpu, bfloat16, recorded, base)
    if run is not None:
        check_same_run(run, plan, config.output, finished)
    return plan


def _actors_again(config: ScoreConfig, joins: bool) -> Actors:
    """The actors for one more pass, on the nodes that are left, or that come up in place of those that were lost.

    Raises:
        JobFailed: there are none.
    """
    deadline = time.monotonic() + (config.stall_timeout if joins else 0)
    while True:
        try:
            return plan_actors(config, cluster_hardware(may_grow=joins))
        except Refused as error:
            if time.monotonic() > deadline:
                raise JobFailed(str(error)) from None
            raise_if_stopped()
            time.sleep(1)


def _one_pass(
    plan: Plan,
    units: list[ReadUnit],
    held: Mapping[int, Mapping[int, RowRange]],
    actors: Actors,
    config: ScoreConfig,
    again: bool,
    lease: Lease,
) -> Iterator[CommitRecord]:
    """Commit records as they come.

    Raises:
        PassFailed: Ray gave the pass up, or lost a node and hangs.
        JobFailed: a stage failed (the traceback of the worker is in `detail`), or another run has taken the folder.
    """
    from tokloss_ray.scoring.pipeline import run

    nodes = NodeWatch()

    def check() -> None:
        raise_if_stopped()
        lease.check()
        nodes.check()

    for result in run(plan.job, units, held, actors, config.stall_timeout, again, check):
        if result.failure is not None or result.record is None:
            raise JobFailed(result.failure or "a stage returned nothing", result.detail)
        nodes.committed()
        yield result.record


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
        plan = _plan(config, preflight(config, located), run, False, finished and not (base and base.new), base)
    return plan, estimate(plan, gpu=local_gpu() and config.gpus_per_actor != 0)
