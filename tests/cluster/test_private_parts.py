"""Ray without the private parts that this package knows: whole jobs succeed, slower perhaps."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support import models
from tokloss_ray import ScoreConfig, score
from tokloss_ray.cluster import one_machine, stream
from tokloss_ray.cluster.private_parts import find, replaced, takes
from tokloss_ray.demo import DATA

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
GONE = "ray.data._internal.not_in_this_version:_Nothing.at_all"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a small job, without an output."""
    folder = tmp_path_factory.mktemp("private")
    table = pq.read_table(DATA).slice(0, 60)
    pq.write_table(table, folder / "in.parquet")
    model = models.build("bert", folder / "model", table["tokens"].to_pylist(), TAGS)
    return {"model": str(model), "input": (str(folder / "in.parquet"),), "shard_tokens": 500}


def test_all_of_them_are_there() -> None:
    """In the version that the project is developed with: else the job only gets slower, and nobody notices."""
    replacements = one_machine._replacements()
    assert {*replacements} == {*one_machine.STATS, one_machine.AUTOSCALER, one_machine.TRACKER, one_machine.LOCATIONS}


@pytest.mark.usefixtures("ray_session")
def test_a_job_without_any_of_them(job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data then starts its actors, and tells nobody of its executors."""
    monkeypatch.setattr(one_machine, "STATS", {GONE: ()})
    for name in ("AUTOSCALER", "AUTOSCALER_BASE", "TRACKER", "LOCATIONS"):
        monkeypatch.setattr(one_machine, name, GONE)
    monkeypatch.setattr(stream, "CALLBACKS", "not_in_this_version")
    with one_machine.one_machine():
        assert not one_machine._replacements()
        summary = score(ScoreConfig(output=str(tmp_path / "out"), **job))
    assert summary.totals.rows == 60
    assert (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_job_with_all_of_them(job: dict[str, Any], tmp_path: Path) -> None:
    with one_machine.one_machine():
        summary = score(ScoreConfig(output=str(tmp_path / "out"), **job))
    assert summary.totals.rows == 60


TOGETHER = [{*one_machine.STATS}, {one_machine.AUTOSCALER}, {one_machine.TRACKER, one_machine.LOCATIONS}]


@pytest.mark.parametrize("path", [path for group in TOGETHER for path in sorted(group)])
def test_one_that_has_changed_is_left_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its companions: half of what concerns an actor is worse than nothing. The others are still replaced."""

    def changed(something_new: int) -> None:
        raise AssertionError("never called")

    before = {*one_machine._replacements()}
    with replaced(path, changed):
        left = before - {*one_machine._replacements()}
    assert left == next(group for group in TOGETHER if path in group)


def test_an_autoscaler_of_which_more_is_asked_is_left_alone() -> None:
    class Asked(find(one_machine.AUTOSCALER_BASE)):  # type: ignore[misc]
        @abstractmethod
        def something_new(self) -> None: ...

    with replaced(one_machine.AUTOSCALER_BASE, Asked):
        assert one_machine.AUTOSCALER not in one_machine._replacements()


def test_where_there_is_no_topology_a_standstill_is_told_without_it() -> None:
    running = stream.Running()
    running.executors.append(SimpleNamespace())
    assert running.stages() == []


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("told", [True, False])
def test_leaving_a_dataset_ends_it(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first result, with many to come. Without its executor what is in flight goes on until the next result."""
    import ray.data

    if not told:
        monkeypatch.setattr(stream, "CALLBACKS", "not_in_this_version")
    dataset = ray.data.range(1000, override_num_blocks=1000)
    dataset.context.enable_progress_bars = False
    stream.watch(dataset.context)
    running = stream.Running()
    batches = stream.stream(dataset.map_batches(_slow), running)
    assert next(batch for batch in batches if batch is not None).num_rows
    assert bool(running.stages()) == told
    batches.close()
    assert not running.alive()
    assert not stream._unnamed()


def _slow(batch: Any) -> Any:
    import time

    time.sleep(0.02)
    return batch


def test_lookups() -> None:
    assert find("ray:init") is not None
    assert find("ray:not_there") is None
    assert find("not_there_at_all:x") is None
    assert find("") is None
    assert takes(takes, "function", "parameters")
    assert not takes(takes, "function")
    assert not takes(None)


class Owner:
    @staticmethod
    def answer() -> str:
        return "before"


def test_a_static_method_comes_back_as_one() -> None:
    path = f"{__name__}:Owner.answer"
    with replaced(path, staticmethod(lambda: "meanwhile")):
        assert Owner.answer() == Owner().answer() == "meanwhile"
    assert Owner.answer() == Owner().answer() == "before"
    with replaced(f"{__name__}:Owner.question", None):
        assert not hasattr(Owner, "question")
