"""A Ray that the job starts for itself runs nothing but the job, and gives Ray Data back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.operators import actor_pool_map_operator as operator
from ray.data._internal.stats import _StatsManager
from ray.util import list_named_actors

from tests.support import models, warm
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.scoring.driver import Watcher, score

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


class Look(Watcher):
    """Which named actors there are when a shard is committed."""

    def __init__(self) -> None:
        self.actors: list[str] | None = None

    def committed(self, record: dict[str, Any]) -> None:
        self.actors = [actor["name"] for actor in list_named_actors(all_namespaces=True)]


def patched() -> tuple[Any, ...]:
    return (
        streaming_executor.create_cluster_autoscaler,
        _StatsManager.update_execution_metrics,
        operator.get_actor_locations,
        operator.get_or_create_actor_location_tracker,
    )


def look(model: str, source: str, output: str) -> None:
    before, watcher = patched(), Look()
    score(ScoreConfig(model=model, input=(source,), output=output), watcher)
    print(json.dumps({"actors": watcher.actors, "restored": before == patched()}))


def test_no_actors_for_clusters_and_dashboards(tmp_path: Path) -> None:
    table = pq.read_table(DATA).slice(0, 50)
    pq.write_table(table, tmp_path / "in.parquet")
    model = models.build("bert", tmp_path / "model", table["tokens"].to_pylist(), TAGS)
    done = warm.run(look, str(model), str(tmp_path / "in.parquet"), str(tmp_path / "out"), timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["actors"] == []
    assert found["restored"]
