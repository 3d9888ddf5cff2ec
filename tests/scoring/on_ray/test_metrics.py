"""The figures of a run as Prometheus gets them from a running Ray."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.inline import write_jsonl
from tests.support.records import a_record
from tests.support.tiny import row
from tokloss_ray import ScoreConfig, score
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.records import read_records
from tokloss_ray.output.run import read_run
from tokloss_ray.output.totals import Totals, total
from tokloss_ray.scoring.on_ray.metrics import COUNTERS, GAUGES, REASON, RUN, STAGE, RunMetrics, exported

PAGE = Path(__file__).parents[3] / "docs" / "production.md"
REPORTED = 60.0
"""Seconds to wait at most: Ray reports every ten."""
Samples = dict[tuple[str, str], float]


def scraped(run: str) -> Samples:
    """What the nodes export of a run: (name, reason or stage or nothing) -> sum over the nodes."""
    import ray

    samples: Samples = {}
    for node in ray.nodes():
        with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get(RUN) == run:
                    key = sample.name, sample.labels.get(REASON) or sample.labels.get(STAGE) or ""
                    samples[key] = samples.get(key, 0.0) + sample.value
    return samples


def expected(records: list[CommitRecord], totals: Totals) -> Samples:
    """The same from the records on disk; what is 0 is not exported."""
    values: Samples = {
        ("tokloss_shards", ""): totals.shards,
        ("tokloss_done_tokens", ""): totals.tokens,
        **{(f"tokloss_{name}", ""): getattr(totals, name) for name in ("rows", "tokens", "padded_tokens")},
        **{("tokloss_error_rows", reason): count for reason, count in totals.errors.items()},
    }
    for stage in ("encode", "wait", "score", "decode"):
        values["tokloss_stage_seconds", stage] = sum(record.seconds[stage] for record in records)
    return {(exported(name), label): float(value) for (name, label), value in values.items()}


def test_a_run_is_exported(model: Path, tmp_path: Path, ray_session: None) -> None:
    """Every figure is the sum over the records that the run has written."""
    rows = [row("Anna", "wohnt", tags=["B-PER", "O"]), row("Anna", tags=["no such tag"]), row(tags=[])] * 40
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    output = str(tmp_path / "out")
    score(ScoreConfig(model=str(model), input=str(source), output=output, shard_tokens=60, max_error_rate=1.0))
    records, run = list(read_records(output).values()), read_run(output)
    assert run is not None
    assert len(records) > 1
    wanted, deadline = expected(records, total(records)), time.monotonic() + REPORTED
    while (found := scraped(run.short_fingerprint)).get((exported("tokloss_shards"), "")) != len(records):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert found.pop((exported("tokloss_planned_tokens"), "")) > 0
    assert found == pytest.approx(wanted, rel=1e-6)
    assert {label for _, label in found} >= {"unknown_tag", "empty", "wait"}


class Plan:
    """As much of one as metrics look at."""

    class job:
        fingerprint = "3f2a9c"

    estimated_tokens = 500


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, dict[str, str]]]:
    """What Ray's metrics are told, without Ray."""
    import ray.util.metrics

    said: list[tuple[str, float, dict[str, str]]] = []

    def fake(name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        def take(value: float, tags: dict[str, str]) -> None:
            assert description
            assert set(tags) == set(tag_keys)
            assert value > 0 or name in GAUGES
            said.append((name, value, tags))

        return type("Fake", (), {"inc": staticmethod(take), "set": staticmethod(take)})

    monkeypatch.setattr(ray.util.metrics, "Counter", fake)
    monkeypatch.setattr(ray.util.metrics, "Gauge", fake)
    return said


def shard(**figures: Any) -> CommitRecord:
    known = {"rows": 5, "tokens": 40, "padded_tokens": 50, "memory_splits": 3, "storage_retries": 4}
    seconds = {"wait": 0.5, "score": 1.0}
    return a_record(0, 0, fingerprint="3f2a9c", **{**known, "errors": {"empty": 2}, "seconds": seconds, **figures})


def test_each_metric_is_told(told: list[tuple[str, float, dict[str, str]]]) -> None:
    metrics = RunMetrics()
    metrics.planned(Plan, Totals(tokens=100), {})  # type: ignore[arg-type]
    metrics.committed(shard())
    metrics.retrying("a node was lost")
    assert {name for name, _, _ in told} == COUNTERS.keys() | GAUGES.keys()
    assert {tags[RUN] for _, _, tags in told} == {"3f2a9c"}
    values = {name: value for name, value, _ in told}
    assert (values["tokloss_memory_splits"], values["tokloss_storage_retries"]) == (3, 4)
    assert (values["tokloss_planned_tokens"], values["tokloss_done_tokens"]) == (500, 140)
    assert [value for name, value, _ in told if name == "tokloss_done_tokens"] == [100, 140]


def test_nothing_is_no_figure(told: list[tuple[str, float, dict[str, str]]]) -> None:
    """Ray's counters refuse a 0."""
    metrics = RunMetrics()
    metrics.planned(Plan, Totals(), {})  # type: ignore[arg-type]
    told.clear()
    metrics.committed(shard(tokens=0, padded_tokens=0, memory_splits=0, storage_retries=0, errors={}))
    assert {name for name, _, _ in told} == {
        "tokloss_shards", "tokloss_rows", "tokloss_stage_seconds", "tokloss_planned_tokens", "tokloss_done_tokens"
    }  # fmt: skip


@pytest.mark.parametrize("moment", ["made", "told"])
def test_a_job_does_without(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's metrics are gone or have changed: the job goes on."""
    import ray.util.metrics

    def broken(*args: Any) -> Any:
        raise TypeError("not any more")

    class Told:
        inc = set = broken

    made: Callable[..., Any] = broken if moment == "made" else lambda *args: Told()
    monkeypatch.setattr(ray.util.metrics, "Counter", made)
    monkeypatch.setattr(ray.util.metrics, "Gauge", made)
    metrics = RunMetrics()
    metrics.planned(Plan, Totals(), {})  # type: ignore[arg-type]
    metrics.committed(shard())
    assert metrics.metrics == {}


def test_the_page_lists_every_metric() -> None:
    section = PAGE.read_text(encoding="utf-8").split("\n## Metrics")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(ray_\w+)` \|([^|]*)\|", section, re.MULTILINE)
    labels = {exported(name): [*tags] for name, (_, tags) in COUNTERS.items()} | {exported(name): [] for name in GAUGES}
    assert {name: re.findall(r"`(\w+)`", text) for name, text in rows} == labels


def test_before_the_plan_nothing_is_exported() -> None:
    """The job was refused, or the output was complete before: Ray may not even be there."""
    metrics = RunMetrics()
    metrics.committed(shard())
    metrics.retrying("nothing")
    assert metrics.metrics == {}
