"""Ray Data without what it starts for clusters and dashboards, for a Ray that the job started on its own machine.

Ray Data brings up an actor that collects statistics for the dashboard, one that shares a growing cluster among jobs,
and one that knows on which node an actor is. Each is a process of its own, started at the very time when the model is
to be loaded, waited for, and asked again and again from then on. On one machine without a dashboard nobody needs them.

There is no setting for it, so private functions of Ray Data's are replaced, each only where it is there and takes what
it is known to take. Where one has changed, its actor is started as Ray Data would have it: the job takes a little
longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import ray

from tokloss_ray.cluster.private_parts import find, replaced, takes

STATS = {
    "ray.data._internal.stats:_StatsManager.gen_dataset_id_from_stats_actor": (),
    "ray.data._internal.stats:_StatsManager.register_dataset_to_stats_actor": (
        "dataset_tag", "operator_tags", "topology", "data_context"
    ),
    "ray.data._internal.stats:_StatsManager.update_execution_metrics": (
        "dataset_tag", "op_metrics", "operator_tags", "state"
    ),
    "ray.data._internal.stats:_StatsManager.update_iteration_metrics": ("stats", "dataset_tag", "split_index"),
}  # fmt: skip
"""All that talks to the actor with the statistics, with the parameters that are known of it."""
AUTOSCALER = "ray.data._internal.execution.streaming_executor:create_cluster_autoscaler"
AUTOSCALER_BASE = "ray.data._internal.cluster_autoscaler:ClusterAutoscaler"
RESOURCES = "ray.data:ExecutionResources"
TRACKER = "ray.data._internal.execution.operators.actor_pool_map_operator:get_or_create_actor_location_tracker"
LOCATIONS = "ray.data._internal.execution.operators.actor_pool_map_operator:get_actor_locations"


@contextmanager
def one_machine() -> Iterator[None]:
    """While it lasts, datasets that are executed in this process do without these three."""
    with ExitStack() as stack:
        for path, value in _replacements().items():
            stack.enter_context(replaced(path, value))
        yield


def _replacements() -> dict[str, Any]:
    """What stands in for which function: for each actor all of its functions or none."""
    found: dict[str, Any] = {}
    if all(takes(find(path), *parameters) for path, parameters in STATS.items()):
        found |= dict.fromkeys(STATS, staticmethod(_an_id))
    scaler = _fixed_size()
    if scaler is not None and takes(find(AUTOSCALER), "topology", "resource_manager", "data_context", "execution_id"):
        found[AUTOSCALER] = scaler
    if takes(find(TRACKER)) and takes(find(LOCATIONS), "logical_actor_ids"):
        found |= {TRACKER: _Nowhere, LOCATIONS: _no_locations}
    return found


def _an_id(*args: Any, **kwargs: Any) -> str:
    return uuid4().hex


def _no_locations(logical_actor_ids: tuple[str, ...]) -> dict[str, str]:
    return {}


class _Nowhere:
    """In place of the actor that is told where actors are, whatever it is told; travels to the workers."""

    def __getattr__(self, name: str) -> _Nobody:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nobody()


class _Nobody:
    """In place of an actor's method."""

    def remote(self, *args: Any, **kwargs: Any) -> None:
        """Nobody asks."""


def _fixed_size() -> Any:
    """What makes the autoscaler of a cluster that has what it has; None where Ray Data asks more of one."""
    base, resources = find(AUTOSCALER_BASE), find(RESOURCES)
    known = {"try_trigger_scaling", "on_executor_shutdown", "get_total_resources"}
    if getattr(base, "__abstractmethods__", None) != known or not hasattr(resources, "from_resource_dict"):
        return None

    class FixedSize(base):  # type: ignore[misc, valid-type]
        """Nothing to start, nothing to give back, and the resources that Ray found on this machine."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.total = resources.from_resource_dict(ray.cluster_resources())

        def try_trigger_scaling(self) -> None:
            """Nothing to start."""

        def on_executor_shutdown(self) -> None:
            """Nothing to give back."""

        def get_total_resources(self) -> Any:
            """What Ray found."""
            return self.total

    return FixedSize
