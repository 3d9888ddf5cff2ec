"""Ray Data without what it starts for clusters and dashboards, for a Ray that the job started on its own machine.

Ray Data brings up an actor that collects statistics for the dashboard, one that shares a growing cluster among jobs,
and one that knows on which node an actor is. Each is a process of its own, started at the very time when the model is
to be loaded, waited for, and asked again and again from then on. On one machine without a dashboard nobody needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import ray
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.interfaces import ExecutionResources
from ray.data._internal.execution.operators import actor_pool_map_operator
from ray.data._internal.stats import _StatsManager

_REPORTS = (
    "gen_dataset_id_from_stats_actor",
    "register_dataset_to_stats_actor",
    "update_execution_metrics",
    "update_iteration_metrics",
)


@contextmanager
def one_machine() -> Iterator[None]:
    """While it lasts, datasets that are executed in this process do without these three."""
    with ExitStack() as stack:
        for name in _REPORTS:
            stack.enter_context(patch.object(_StatsManager, name, staticmethod(_an_id)))
        stack.enter_context(patch.object(streaming_executor, "create_cluster_autoscaler", _FixedSize))
        stack.enter_context(patch.object(actor_pool_map_operator, "get_or_create_actor_location_tracker", _Nowhere))
        stack.enter_context(patch.object(actor_pool_map_operator, "get_actor_locations", _no_locations))
        yield


def _an_id(*args: Any, **kwargs: Any) -> str:
    return uuid4().hex


def _no_locations(logical_actor_ids: tuple[str, ...]) -> dict[str, str]:
    return {}


class _Nowhere:
    """In place of the actor that is told where actors are; travels to the workers."""

    class update_actor_location:
        """Told where an actor is."""

        @staticmethod
        def remote(*args: str) -> None:
            """Nobody asks."""


class _FixedSize(ClusterAutoscaler):
    """A cluster that has what it has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.total = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        """Nothing to start."""

    def on_executor_shutdown(self) -> None:
        """Nothing to give back."""

    def get_total_resources(self) -> ExecutionResources:
        """What Ray found on this machine."""
        return self.total
