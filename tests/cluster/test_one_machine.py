"""A Ray that the job starts for itself runs nothing but the job, and leaves the process as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp.web  # noqa: F401  (what imports leave, they leave)
import pyarrow.parquet as pq
import pytest
import torch  # noqa: F401
from ray.util import list_named_actors

import tokloss_ray.scoring.pipeline  # noqa: F401
from tests.support import models, warm
from tests.support.process_state import process_state
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.scoring.driver import score
from tokloss_ray.scoring.watcher import Watcher

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


class Look(Watcher):
    """Which named actors there are when a shard is committed."""

    def __init__(self) -> None:
        self.actors: list[str] | None = None

    def committed(self, record: dict[str, Any]) -> None:
        self.actors = [actor["name"] for actor in list_named_actors(all_namespaces=True)]


def look(model: str, source: str, output: str) -> None:
    before, watcher = process_state(), Look()
    score(ScoreConfig(model=model, input=(source,), output=output), watcher)
    after = process_state()
    changed = [name for name in before if before[name] != after[name]]
    print(json.dumps({"actors": watcher.actors, "changed": changed}))


@pytest.mark.slow
def test_no_actors_for_clusters_and_dashboards(tmp_path: Path) -> None:
    table = pq.read_table(DATA).slice(0, 50)
    pq.write_table(table, tmp_path / "in.parquet")
    model = models.build("bert", tmp_path / "model", table["tokens"].to_pylist(), TAGS)
    done = warm.run(look, str(model), str(tmp_path / "in.parquet"), str(tmp_path / "out"), timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["actors"] == []
    assert found["changed"] == []
