"""Everything before the first shard: preflight, Ray, plan, lease, what earlier attempts have left, the folder."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, replace

from tokloss_ray import stopping
from tokloss_ray.cluster.session import joins_cluster, ray_session
from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused, TokLossError
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.model.quick_imports import no_collection
from tokloss_ray.output.done import Committed
from tokloss_ray.output.run import Run, is_finished, read_run, run_file
from tokloss_ray.pairing import EACH
from tokloss_ray.scoring.additions import Base, find_base
from tokloss_ray.scoring.folder import add_generation, check_folder, check_same_run, clear, read_plan, start_run
from tokloss_ray.scoring.lease import Lease
from tokloss_ray.scoring.on_ray.hardware import (
    Actors,
    Hardware,
    cluster_hardware,
    gpu_has_bfloat16,
    local_gpu,
    plan_actors,
    uses_gpus,
    weights_of,
)
from tokloss_ray.scoring.on_ray.nodes import check_nodes
from tokloss_ray.scoring.plan import Plan, make_plan
from tokloss_ray.scoring.preflight import Located, Preflight, locate, preflight
from tokloss_ray.scoring.resume import EarlierAttempts, find_committed, take_back, unfinished
from tokloss_ray.scoring.sample import sample_rows
from tokloss_ray.scoring.supply import core_rate, gpu_rate, too_few_cores
from tokloss_ray.scoring.watcher import Clock, Watcher
from tokloss_ray.storage.failures import display
from tokloss_ray.storage.files import open_location
from tokloss_ray.threads import in_background

MAY_DIFFER = (*EACH, "tags")


@dataclass(eq=False)
class Begun:
    """A run of which nothing can be refused any more, and how far it has come.

    Attributes:
        units: of the plan that was recorded when the run began.
        found: what earlier attempts have committed.
        clock: started with the run.
        lease: None where the output was complete before.
        committed: what is committed now.
        before: how many shards were when the run began.
        error: why the run has failed, while others in the same pass may go on.
    """

    config: ScoreConfig
    plan: Plan
    units: list[ReadUnit]
    found: EarlierAttempts
    clock: Clock
    lease: Lease | None = None
    committed: Committed = field(init=False)
    before: int = field(init=False)
    error: TokLossError | None = None

    def __post_init__(self) -> None:
        self.committed = self.found.committed
        self.before = self.committed.done.shards

    def lacking(self) -> list[ReadUnit]:
        """The units that lack a shard; none of a run that has failed or was complete before."""
        return [] if self.lease is None or self.error else unfinished(self.units, self.committed.done)


@dataclass(frozen=True)
class _Look:
    """What is found at first, and quickly."""

    config: ScoreConfig
    run: Run | None
    located: Located
    base: Base | None
    found: EarlierAttempts
    clock: Clock

    @property
    def finished(self) -> bool:
        new = self.base is not None and bool(self.base.new)
        return self.found.complete and not self.found.damaged and not new


def check_together(configs: Sequence[ScoreConfig]) -> None:
    """See that one pass can make some runs: they share what is read and where, and each has a folder of its own.

    Raises:
        Refused: they do not.
    """
    first = configs[0]
    for config in configs[1:]:
        for name in ScoreConfig.model_fields:
            if name not in MAY_DIFFER and getattr(config, name) != getattr(first, name):
                raise Refused(f"runs in one pass share their --{name.replace('_', '-')}: score one after the other")
    folders = [(config.output, display(*open_location(posixpath.join(config.output, "")))) for config in configs]
    for number, (output, folder) in enumerate(folders):
        for other, inside in folders[:number] + folders[number + 1 :]:
            if inside.rstrip("/") == folder.rstrip("/"):
                raise Refused(f"two runs would write to {output}: give one --output for each")
            if inside.startswith(f"{folder.rstrip('/')}/"):
                raise Refused(
                    f"--output {other} is inside {output}, which another run writes to: choose another folder"
                )
    if len(configs) > 1:
        for parent in dict.fromkeys(posixpath.dirname(config.output.rstrip("/")) or "." for config in configs):
            if read_run(parent) is not None:
                raise Refused(
                    f"{parent} is the output of one model: choose another --output for several, or name one for each"
                )


def begin(
    configs: Sequence[ScoreConfig], watcher: Watcher, stack: ExitStack
) -> tuple[list[Begun], Actors | None, bool]:
    """Begin some runs: those that are not complete can go to work.

    Ray and the leases are held by `stack`. Ray starts while input and models are checked.

    Returns:
        The runs; the model actors, None where there is nothing left to score; and whether the work is done by a cluster
        that was not started here.

    Raises:
        Refused: nothing was done.
    """
    watcher.stage("checking input and model")
    clock = Clock()
    check_together(configs)
    looks: list[_Look] = []
    for config in configs:
        looks.append(_look(config, copy(clock), looks[0].located if looks else None))
    joins, finished = joins_cluster(configs[0].address), all(look.finished for look in looks)
    checked = in_background(lambda: _preflight(looks))
    if not finished:
        watcher.stage("connecting to the cluster" if joins else "starting Ray")
        stack.enter_context(ray_session(configs[0].address, configs[0].verbose))
    plans: list[Plan] = []
    for look, ready in zip(looks, checked.result(), strict=True):
        plans.append(plan_run(look.config, ready, look.run, joins and not finished, look.finished, look.base, plans))
    if not finished:
        _warn_of_few_cores(configs[0], checked.result()[0], plans[0], cluster_hardware(may_grow=joins))
    leases = [
        None if look.finished else stack.enter_context(Lease(look.config.output, plan.job.fingerprint))
        for look, plan in zip(looks, plans, strict=True)
    ]
    for look, lease in zip(looks, leases, strict=True):
        if lease is not None:
            lease.confirm()
            # From here on nobody else writes; what was read before may be out of date.
            if not look.config.overwrite and read_run(look.config.output) != look.run:
                raise Refused(f"another run was at work in {look.config.output} just now: run the same command again")
    runs = [_claimed(*each, watcher) for each in zip(looks, plans, leases, strict=True)]
    lacks = any(run.lacking() for run in runs)
    weights = weights_of(plan.job.model for plan in plans)
    actors = plan_actors(configs[0], cluster_hardware(may_grow=joins), weights) if lacks else None
    new = [begun for begun, look in zip(runs, looks, strict=True) if begun.lease is not None and look.run is None]
    for run in runs:
        if run.lease is not None:
            take_back(run.config.output, run.found)
        if run in new:
            clear(run.config.output)
            start_run(run.plan, run.config.model_dump(mode="json", exclude_defaults=True))
    if lacks and joins:
        watcher.stage("checking the nodes")
        try:
            for run in filter(lambda run: run.lease, runs):
                check_nodes(run.plan, run_file(run.plan.job.output))
        except Refused:
            for run in new:  # nothing was done: the folder is free for the next command
                clear(run.config.output)
            raise
    if not finished:
        watcher.stage("starting the model" if lacks else "computing totals")
    return runs, actors, joins


def _warn_of_few_cores(config: ScoreConfig, found: Preflight, plan: Plan, hardware: Hardware) -> None:
    """Add to the plan's warnings where the cluster's cores will not keep up with its GPUs."""
    gpus = sum(hardware.gpus)
    if not gpus or not uses_gpus(config, hardware):
        return
    if config.actors is not None:
        each = config.gpus_per_actor
        gpus = min(gpus, config.actors[1] * (each if isinstance(each, (int, float)) else 1))
    rate = gpu_rate(found.model, plan.job.dtype, hardware.gpu)
    of_core = core_rate(plan.job, sample_rows(plan.job, plan.units)) if rate else None
    if rate and of_core and (warning := too_few_cores(rate, of_core, sum(hardware.cpus), gpus)):
        plan.warnings.append(warning)


def _look(config: ScoreConfig, clock: Clock, like: Located | None) -> _Look:
    run = None if config.overwrite else read_run(config.output)
    check_folder(config.output)
    located = locate(config, like)
    base, found = find_base(config, run, located.files), EarlierAttempts()
    if run is not None and is_finished(config.output):
        found = find_committed(config.output, run)
    return _Look(config, run, located, base, found, clock)


def _preflight(looks: Sequence[_Look]) -> list[Preflight]:
    with no_collection(ours=stopping.is_command()):
        found = [preflight(look.config, look.located) for look in looks]
        import tokloss_ray.scoring.pipeline  # noqa: F401  (Ray Data takes a moment to import)
    return found


def plan_run(
    config: ScoreConfig,
    found: Preflight,
    run: Run | None,
    cluster: bool,
    finished: bool,
    base: Base | None = None,
    others: Sequence[Plan] = (),
) -> Plan:
    """The plan of a run, held against what its folder has; `others` are those of the same input.

    Raises:
        Refused: the folder is another run's.
    """
    recorded = None if run is None else run.identity
    gpu = uses_gpus(config, cluster_hardware()) if cluster else local_gpu() is not None and config.gpus_per_actor != 0
    asks = gpu and config.dtype == "auto" and not (recorded or {}).get("dtype")
    bfloat16 = asks and gpu_has_bfloat16(not cluster, config.stall_timeout)
    plan = make_plan(found, gpu, bfloat16, recorded, base, others)
    if run is not None:
        check_same_run(run, plan, config.output, finished)
    return plan


def _claimed(look: _Look, plan: Plan, lease: Lease | None, watcher: Watcher) -> Begun:
    """A run whose folder is ours, with all that earlier attempts have left there."""
    if lease is None:
        return Begun(look.config, plan, plan.units, look.found, look.clock)
    run = look.run
    if run is not None and look.base is not None and look.base.new:
        run = add_generation(plan, run)
    found = EarlierAttempts() if run is None else find_committed(look.config.output, run, owned=True)
    units = plan.units if run is None else read_plan(plan, run)
    watcher.planned(plan if run is None else _of_all(plan, units, run), found.committed.tally.totals(), found.redo)
    return Begun(look.config, plan, units, found, look.clock, lease)


def _of_all(plan: Plan, units: list[ReadUnit], run: Run) -> Plan:
    """The plan with the units and the figures of all generations of a run."""
    tokens, rows = (sum(getattr(g, f"estimated_{what}") for g in run.generations) for what in ("tokens", "rows"))
    return replace(plan, units=units, rows=run.rows, estimated_tokens=tokens, estimated_rows=rows)
