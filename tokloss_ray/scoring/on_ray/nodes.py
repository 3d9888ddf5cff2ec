"""The other nodes of a cluster: whether they see input, model and output, and whether they are still there."""

from __future__ import annotations

import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokloss_ray.errors import PassFailed, Refused, TokLossError
from tokloss_ray.model.store import ModelFolder, see_model
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.storage.files import exists, open_location

MOST_NODES = 64
LOOK_SECONDS = 5.0
NODE_LOSS_PATIENCE = 60.0
PATIENCE = 120.0
"""Seconds for a node to start a worker and to look. A node that does not answer is left to Ray's own time-outs."""


def check_nodes(plan: Plan, run_file: str) -> None:
    """Ask each node that runs tasks whether it finds what this process finds. The run's file must have been written.

    Raises:
        Refused: with what one of them does not see.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here and n["Resources"].get("CPU", 0) > 0]
    ends = [plan.units[0].parts[0].path, plan.units[-1].parts[-1].path] if plan.units else []
    look = ray.remote(num_cpus=0, max_retries=1)(what_is_missing)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            plan.job.model, ends, run_file
        )
        for node in nodes[:MOST_NODES]
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=PATIENCE) if asked else ([], [])
    for answer in answered:
        try:
            missing = ray.get(answer)
        except ray.exceptions.RayError:
            continue  # the node has gone: Ray works around it, now as later
        if missing:
            raise Refused(missing)


class NodeWatch:
    """Notices when a node has gone and the pass hangs on it.

    Ray Data works around most losses by itself. But an actor of a fixed pool waits for ever for a GPU that is no more,
    and the shards that were given to it wait with it.
    """

    def __init__(self) -> None:
        self.alive = _alive()
        self.lost = False
        self.looked = self.moved = time.monotonic()
        self.longest = 0.0

    def committed(self) -> None:
        """A shard has been committed."""
        now = time.monotonic()
        self.longest, self.moved = max(self.longest, now - self.moved), now

    def check(self) -> None:
        """Look, every few seconds.

        Raises:
            PassFailed: a node has gone, and nothing has been committed for much longer than it used to take.
        """
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        alive = _alive()
        self.lost = self.lost or bool(self.alive - alive)
        self.alive |= alive
        quiet = now - self.moved
        # Before the first commit of a pass the model is loaded, which may take its time.
        patience = max(NODE_LOSS_PATIENCE, 3 * self.longest) if self.longest else 10 * NODE_LOSS_PATIENCE
        if self.lost and quiet > patience:
            raise PassFailed(f"a node was lost, and nothing was committed for {quiet:.0f} s")


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def what_is_missing(model: ModelFolder, inputs: list[str], run_file: str) -> str | None:
    """What this node does not see, in one sentence with the remedy, or None. Runs on each node."""
    node = ray.util.get_node_ip_address()
    try:
        for path in inputs:
            if not exists(*open_location(path)):
                return (
                    f"node {node} does not see the input {path}: "
                    f"put it on storage that all nodes can reach, such as s3://"
                )
        if not exists(*open_location(run_file)):
            return (
                f"node {node} does not see --output {run_file.rpartition('/')[0]}: "
                f"choose a folder that all nodes can reach, such as s3://"
            )
        if not see_model(model):
            return (
                f"node {node} does not see --model {model.name}: "
                f"put it where all nodes can reach it, such as s3://, or use a Hub id"
            )
    except TokLossError as error:
        return f"node {node}: {error}"
    return None
