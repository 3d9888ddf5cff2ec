"""The pass over the data as a Ray Data job: each batch of files is a task, its partial tables come back as one row."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data

from tokloss_ray.errors import Interrupted, JobFailed, TokLossError
from tokloss_ray.mining.outputs import ScoreFile
from tokloss_ray.mining.run import Partials, Pass, mine_batch
from tokloss_ray.scoring.session import ray_session

_NUMBER, _RESULT = "number", "result"


@contextmanager
def on_ray(
    batches: Sequence[list[ScoreFile]], job: Pass, address: str | None = None, verbose: bool = False
) -> Iterator[Iterator[Partials | None]]:
    """The partials of each batch, in order, made on the cluster; Ray stays for as long as the context.

    Raises:
        Refused: no cluster answers at the address.
        JobFailed: a task failed.
        Interrupted: by a signal.
    """
    try:
        with ray_session(cast(Any, SimpleNamespace(address=address, verbose=verbose))):
            yield _in_order(_results(batches, job))
    except Interrupted as error:
        raise Interrupted("interrupted; no table was written", error.exit_code) from None


def _results(batches: Sequence[list[ScoreFile]], job: Pass) -> Iterator[tuple[int, Partials | None]]:
    def work(rows: pa.Table) -> pa.Table:
        number = rows.column(_NUMBER)[0].as_py()
        try:
            result: Any = mine_batch(batches[number], job)
        except TokLossError as error:  # as data: Ray would wrap it in a hundred lines
            result = error
        return pa.table({_NUMBER: [number], _RESULT: pa.array([pickle.dumps(result, protocol=5)], pa.large_binary())})

    dataset = ray.data.from_arrow([pa.table({_NUMBER: np.array([i])}) for i in range(len(batches))])
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = True
    done = dataset.map_batches(work, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    try:
        for rows in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for number, result in zip(rows.column(_NUMBER).to_pylist(), rows.column(_RESULT), strict=True):
                made = pickle.loads(result.as_py())
                if isinstance(made, TokLossError):
                    raise made
                yield number, made
    except ray.exceptions.RayError as error:
        raise JobFailed(f"Ray gave up: {str(error).strip().splitlines()[-1]}", str(error)) from error


def _in_order(results: Iterator[tuple[int, Partials | None]]) -> Iterator[Partials | None]:
    """Ray keeps the order when it is asked to; nothing breaks where it does not."""
    early: dict[int, Partials | None] = {}
    following = 0
    for number, part in results:
        early[number] = part
        while following in early:
            yield early.pop(following)
            following += 1
    if early or following == 0:
        raise JobFailed("Ray lost a part of the work: run the same command again")
