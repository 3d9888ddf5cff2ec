"""`score` as a library: it leaves the process as it found it, and two calls at once do not disturb each other."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support import models
from tests.support.process_state import process_state
from tokloss_ray import RunSummary, ScoreConfig, score, stopping
from tokloss_ray.cluster import one_machine, stream
from tokloss_ray.cluster.session import ray_session as session
from tokloss_ray.demo import DATA
from tokloss_ray.errors import StorageFailed
from tokloss_ray.output.verify import verify
from tokloss_ray.storage import failures
from tokloss_ray.storage.files import RangeFile
from tokloss_ray.threads import map_in_threads

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each returns, all of them but the first in threads of their own; what one raises is raised."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, len(works))]
    for thread in threads:
        thread.start()
    run(0)
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two jobs that differ in their input, and in how long they take."""
    folder = tmp_path_factory.mktemp("two-runs")
    table = pq.read_table(DATA)
    pq.write_table(table.slice(0, 40), folder / "few.parquet")
    pq.write_table(table.slice(40, 200), folder / "many.parquet")
    model = models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS)
    common = {"model": str(model), "id_column": "id", "shard_tokens": 400}
    return {name: common | {"input": (str(folder / f"{name}.parquet"),)} for name in ("few", "many")}


def run(settings: dict[str, Any], output: Path) -> RunSummary:
    return score(ScoreConfig(output=str(output), **settings))


@pytest.mark.usefixtures("ray_session")
def test_one_after_the_other_and_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    import tokloss_ray.scoring.pipeline  # noqa: F401  (what an import leaves, it leaves)

    run(settings["few"], tmp_path / "first")
    before = process_state()
    few, many = at_once(
        lambda: run(settings["few"], tmp_path / "few"), lambda: run(settings["many"], tmp_path / "many")
    )
    after = process_state()
    assert {name for name in before if before[name] != after[name]} == set()
    assert (few.totals.rows, many.totals.rows) == (40, 200)
    for name in ("first", "few", "many"):
        assert not verify(str(tmp_path / name)).problems
    names = [sorted(p.name for p in (tmp_path / name / "scores").rglob("*.parquet")) for name in ("first", "few")]
    assert names[0] == names[1]


def test_tries_and_retries_are_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each storage operation fails often enough to tell whose patience it is; some of them in threads of a run's."""
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(failures, "is_local", lambda fs: False)
    monkeypatch.setattr(failures, "display", lambda fs, path: path)
    both = threading.Barrier(2, timeout=30)

    def operation(fails: int) -> Callable[[], str]:
        left = iter(range(fails))

        def attempt() -> str:
            if next(left, None) is not None:
                raise TimeoutError
            return "done"

        return attempt

    def work(patience: int, fails: int) -> tuple[list[str], int]:
        with failures.tries(patience) as effort:
            both.wait()
            done = list(
                map_in_threads(lambda i: failures.attempt(None, str(i), "read", operation(fails)), list(range(6)))
            )
            both.wait()
            done.append(failures.attempt(None, "x", "read", operation(fails)))
            with pytest.raises(StorageFailed, match=f"tried {patience} times"):
                failures.attempt(None, "x", "read", operation(patience))
            return done, effort.take()

    before = failures.take_retries()
    found = at_once(lambda: work(2, 1), lambda: work(6, 4))
    assert found == [(["done"] * 7, 7 + 1), (["done"] * 7, 28 + 5)]
    assert (before, failures.take_retries()) == (0, 0)


def test_reads_in_threads_of_arrows_are_tried_as_the_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is read by columns is read by threads that know nothing of the run which opened it."""
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: None)
    left = iter(range(3))

    def cat_file(path: str, start: int, end: int) -> bytes:
        if next(left, None) is not None:
            raise TimeoutError
        return b"1234"[start:end]

    with failures.tries(4) as effort:
        file = RangeFile(SimpleNamespace(cat_file=cat_file, protocol="memory"), "bucket/file", 4)
        assert at_once(lambda: None, file.read) == [None, b"1234"]
        assert effort.take() == 3


@pytest.mark.usefixtures("ray_session")
def test_a_dataset_that_is_left_does_not_end_another() -> None:
    import ray.data

    def slow(batch: Any) -> Any:
        import time

        time.sleep(0.05)
        return batch

    def dataset(blocks: int) -> ray.data.Dataset:
        made = ray.data.range(blocks, override_num_blocks=blocks)
        made.context.enable_progress_bars = False
        stream.watch(made.context)
        return made.map_batches(slow)

    running = stream.Running()
    first = stream.stream(dataset(40), running)
    rows = sum(batch.num_rows for batch in iter_some(first))
    second = stream.stream(dataset(40))
    next(iter_some(second))
    second.close()
    assert running.executors
    assert running.stages()
    rows += sum(batch.num_rows for batch in first if batch is not None)
    assert rows == 40
    assert not stream._unnamed()


def iter_some(batches: Iterator[Any]) -> Iterator[Any]:
    """The first one that is one."""
    yield next(batch for batch in batches if batch is not None)


def test_signals_are_for_the_main_thread() -> None:
    """What runs in another thread keeps none waiting, is not stopped by one, and does not call one off."""
    inside, out = threading.Event(), threading.Event()

    def other() -> bool:
        with session_free(), stopping.held():
            inside.set()
            assert out.wait(30)
        stopping.raise_if_stopped()
        stopping.unwinding()
        return stopping.received()

    @contextlib.contextmanager
    def session_free() -> Iterator[None]:
        with stopping.handled():
            yield

    def main() -> bool:
        assert inside.wait(30)
        with stopping.handled():
            with pytest.raises(stopping.Stopped):
                signal.raise_signal(signal.SIGTERM)
            out.set()
            return stopping.received()

    assert at_once(main, other) == [True, False]


def test_the_last_run_ends_ray_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that start at once start one Ray; the first to end leaves it to the other."""
    from tokloss_ray.cluster import session as module

    up: list[str] = []
    monkeypatch.setattr(module.ray, "is_initialized", lambda: bool(up))
    monkeypatch.setattr(module, "_start", lambda address, verbose: up.append("up"))
    monkeypatch.setattr(module, "_shut_down", lambda alone: up.clear())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    both, first_out = threading.Barrier(2, timeout=30), threading.Event()
    replaced = {path: one_machine.find(path) for path in one_machine.STATS}

    def first() -> list[str]:
        with session():
            both.wait()
        first_out.set()
        return list(up)

    def last() -> list[str]:
        with session():
            both.wait()
            assert first_out.wait(30)
            assert all(one_machine.find(path) is not before for path, before in replaced.items())
        return list(up)

    assert at_once(first, last) == [["up"], []]
    assert {path: one_machine.find(path) for path in one_machine.STATS} == replaced
