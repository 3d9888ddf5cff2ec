"""Who watches a run is told of every shard, once, and why another pass is made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.records import a_record
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import PassFailed
from tokloss_ray.output.done import Committed
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.scoring import driver
from tokloss_ray.scoring.begin import Begun
from tokloss_ray.scoring.resume import EarlierAttempts
from tokloss_ray.scoring.watcher import Clock, Watcher, Watchers
from tokloss_ray.storage.files import write_whole
from tokloss_ray.storage.sealed import sealed


class Listening(Watcher):
    def __init__(self) -> None:
        self.told: list[str] = []

    def committed(self, record: CommitRecord) -> None:
        self.told.append(record.shard)

    def retrying(self, reason: str) -> None:
        self.told.append(f"again: {reason}")


def test_also_of_shards_whose_result_ray_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their records are on disk after the pass; those of earlier attempts are not new."""
    sums = ("rows", "scored_rows", "error_rows", "sequences", "tokens", "labels", "padded_tokens", "dropped_words")
    figures: dict[str, Any] = dict.fromkeys((*sums, "storage_retries", "memory_splits", "batch_tokens"), 1)
    figures |= {"seconds": {"score": 1.0}, "errors": {}, "loss_by_tag": {}, "files": (), "source": "a.parquet"}
    old, through, lost, last = (a_record(unit, 0, last=True, fingerprint="3f2a9c", **figures) for unit in range(4))
    passes = iter([([through], [through, lost]), ([last], [last])])

    def write(records: list[CommitRecord]) -> None:
        for record in records:
            write_whole(LocalFileSystem(), f"{tmp_path}/_commits/{record.shard}.json", sealed(record.to_json()))

    def one_pass(*_: Any) -> Any:
        yielded, written = next(passes)
        yield 0, yielded[0]
        write(written)
        if written != [last]:
            raise PassFailed("a node was lost")

    monkeypatch.setattr(driver, "_one_pass", one_pass)
    monkeypatch.setattr(
        driver, "_work", lambda runs: [u for u in runs[0].units if not runs[0].committed.done.has(u, 0)]
    )
    monkeypatch.setattr(driver, "count_deaths", lambda output: 0)
    monkeypatch.setattr(driver, "_actors_again", lambda *_: object())
    monkeypatch.setattr(driver, "break_early", lambda *_: None)
    one, other = Listening(), Listening()
    write([old])
    config = ScoreConfig(model="m", input="i", output=str(tmp_path))
    plan, units, there = SimpleNamespace(job=SimpleNamespace(fingerprint="3f2a9c")), [0, 1, 2, 3], object()
    begun = Begun(config, plan, units, EarlierAttempts(Committed([old])), Clock(), there)  # type: ignore[arg-type]
    driver._score_missing([begun], there, False, Watchers(one, other))  # type: ignore[arg-type]
    assert one.told == other.told == [through.shard, lost.shard, "again: a node was lost", last.shard]
    committed = begun.committed
    assert (begun.before, committed.done.shards, committed.done.missing(range(4))) == (1, 4, [])
