"""Who watches a run is told of every shard, once, and why another pass is made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.records import a_record
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import PassFailed
from tokloss_ray.output.records import CommitRecord, Scan
from tokloss_ray.scoring import driver
from tokloss_ray.scoring.watcher import Clock, Watcher, Watchers


class Listening(Watcher):
    def __init__(self) -> None:
        self.told: list[str] = []

    def committed(self, record: CommitRecord) -> None:
        self.told.append(record.shard)

    def retrying(self, reason: str) -> None:
        self.told.append(f"again: {reason}")


def test_also_of_shards_whose_result_ray_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their records are on disk after the pass; those of earlier attempts are not new."""
    figures: dict[str, Any] = {"rows": 1, "tokens": 1, "error_rows": 0, "seconds": {"score": 1.0}}
    old, through, lost, last = (a_record(unit, 0, last=True, **figures) for unit in range(4))
    on_disk = {record.shard: record for record in (old,)}
    passes = iter([([through], [through, lost]), ([last], [last])])

    def one_pass(*_: Any) -> Any:
        yielded, written = next(passes)
        yield yielded[0]
        on_disk.update({record.shard: record for record in written})
        if len(on_disk) < 4:
            raise PassFailed("a node was lost")

    monkeypatch.setattr(driver, "_one_pass", one_pass)
    monkeypatch.setattr(driver, "scan_records", lambda *_: Scan(dict(on_disk)))
    monkeypatch.setattr(
        driver, "unfinished", lambda units, records: [u for u in units if f"{u:06d}-000" not in records]
    )
    monkeypatch.setattr(driver, "count_deaths", lambda output: 0)
    monkeypatch.setattr(driver, "_actors_again", lambda *_: object())
    monkeypatch.setattr(driver, "break_early", lambda *_: None)
    one, other = Listening(), Listening()
    begun: Any = SimpleNamespace(
        plan=SimpleNamespace(job=SimpleNamespace(fingerprint="3f2a9c")), units=[0, 1, 2, 3], records={old.shard: old},
        actors=object(), joins=False,
    )  # fmt: skip
    lease: Any = None
    records = driver._score_missing(
        ScoreConfig(model="m", input="i", output="o"), begun, lease, Watchers(one, other), Clock()
    )
    assert one.told == other.told == [through.shard, lost.shard, "again: a node was lost", last.shard]
    assert records == on_disk
