"""`score` as it is, with the stages called one after the other in this process in place of Ray.

For tests of what the driver does with several runs; those that look at one run use `inline.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from tokloss_ray.scoring import begin, driver, pipeline
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.on_ray import workers
from tokloss_ray.scoring.on_ray.hardware import Actors, Hardware
from tokloss_ray.scoring.watcher import Watcher
from tokloss_ray.scoring.work import Work


def take_ray_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on `score` starts no Ray."""
    monkeypatch.setattr(begin, "joins_cluster", lambda address: False)
    monkeypatch.setattr(begin, "ray_session", lambda *_: nullcontext())
    for module in (begin, driver):
        monkeypatch.setattr(module, "cluster_hardware", lambda may_grow=False: Hardware((2.0,), (0.0,)))
    monkeypatch.setattr(driver, "NodeWatch", _NoNodes)
    monkeypatch.setattr(driver, "RunMetrics", Watcher)
    monkeypatch.setattr(workers, "_jobs", lambda jobs: jobs)
    monkeypatch.setattr(workers, "_tokenizer", workers._tokenizer.__wrapped__)
    monkeypatch.setattr(pipeline, "run", _run)


class _NoNodes:
    def check(self) -> None:
        pass

    def committed(self) -> None:
        pass


def _run(
    jobs: Sequence[Job],
    work: list[Work],
    actors: Actors,
    stall_timeout: float,
    again: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[pipeline.Result]:
    ref: Any = tuple(jobs)
    actor = workers.ScoreActor(ref, 1, 0, again)
    for block in pipeline._source(work):
        for encoded in workers.read_and_encode(block, ref):
            for scored in actor(encoded):
                for text in workers.decode_and_commit(scored, ref).column("result").to_pylist():
                    check()
                    yield pipeline._result(json.loads(text))
