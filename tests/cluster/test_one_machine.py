"""A Ray that the job starts for itself runs nothing but the job, and gives Ray Data back as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tests.support import models
from tokloss_ray.demo import DATA

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SCRIPT = """
import json, sys
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.operators import actor_pool_map_operator as operator
from ray.data._internal.stats import _StatsManager
from ray.util import list_named_actors
from tokloss_ray import ScoreConfig
from tokloss_ray.scoring.driver import Watcher, score

class Look(Watcher):
    seen = None
    def committed(self, record):
        Look.seen = [actor["name"] for actor in list_named_actors(all_namespaces=True)]

def patched():
    return (streaming_executor.create_cluster_autoscaler, _StatsManager.update_execution_metrics,
            operator.get_actor_locations, operator.get_or_create_actor_location_tracker)

before = patched()
score(ScoreConfig(model=sys.argv[1], input=(sys.argv[2],), output=sys.argv[3]), Look())
print(json.dumps({"actors": Look.seen, "restored": before == patched()}))
"""


def test_no_actors_for_clusters_and_dashboards(tmp_path: Path) -> None:
    table = pq.read_table(DATA).slice(0, 50)
    pq.write_table(table, tmp_path / "in.parquet")
    model = models.build("bert", tmp_path / "model", table["tokens"].to_pylist(), TAGS)
    command = [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / "in.parquet"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["actors"] == []
    assert found["restored"]
