"""A pass over the data as a Ray Data job: each batch of files is a task, its result comes back as one row."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from tokloss_ray.cluster.session import ray_session
from tokloss_ray.cluster.stream import stream, watch
from tokloss_ray.errors import Interrupted, JobFailed, TokLossError
from tokloss_ray.output.opened import ScoreFile
from tokloss_ray.stopping import raise_if_stopped

_NUMBER, _RESULT = "number", "result"

Work = Callable[[list[ScoreFile], Any], Any]
Over = Callable[[Sequence[list[ScoreFile]], Work, Any], Iterator[Any]]


@contextmanager
def on_ray(address: str | None = None, verbose: bool = False) -> Iterator[Over]:
    """What works on batches of files on a cluster, and gives the results in their order; Ray stays for as long as the
    context.

    It takes the batches, a function of one batch and of what all of them need to know, and that.

    Raises:
        Refused: no cluster answers at the address.
        JobFailed: a task failed.
        Interrupted: by a signal.
    """
    try:
        with ray_session(address, verbose), ExitStack() as open_streams:

            def over(batches: Sequence[list[ScoreFile]], work: Work, shared: Any) -> Iterator[Any]:
                # Closed with the context, and not when the caller's frame goes: Ray must still be there.
                results = open_streams.enter_context(closing(_results(batches, work, shared)))
                return open_streams.enter_context(closing(_in_order(results)))

            yield over
    except Interrupted as error:
        raise Interrupted("interrupted; no table was written", error.exit_code) from None


def _results(batches: Sequence[list[ScoreFile]], work: Work, shared: Any) -> Generator[tuple[int, Any], None, None]:
    kept = ray.put(shared)  # read in place by the tasks of a node, and not sent with each of them

    def do(rows: pa.Table) -> pa.Table:
        number = rows.column(_NUMBER)[0].as_py()
        try:
            result: Any = work(batches[number], ray.get(kept))
        except TokLossError as error:  # as data: Ray would wrap it in a hundred lines
            result = error
        return pa.table({_NUMBER: [number], _RESULT: pa.array([pickle.dumps(result, protocol=5)], pa.large_binary())})

    dataset = ray.data.from_arrow([pa.table({_NUMBER: np.array([i])}) for i in range(len(batches))])
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = True
    watch(dataset.context)
    done = dataset.map_batches(do, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    with closing(stream(done)) as found:
        for rows in found:
            raise_if_stopped()
            if isinstance(rows, ray.exceptions.RayError):
                raise JobFailed(f"Ray stopped the work: {str(rows).strip().splitlines()[-1]}", str(rows)) from rows
            if isinstance(rows, Exception):
                raise rows
            if rows is None:
                continue
            for number, result in zip(rows.column(_NUMBER).to_pylist(), rows.column(_RESULT), strict=True):
                made = pickle.loads(result.as_py())
                if isinstance(made, TokLossError):
                    raise made
                yield number, made


def _in_order(results: Iterator[tuple[int, Any]]) -> Generator[Any, None, None]:
    """Ray keeps the order when it is asked to; nothing breaks where it does not."""
    early: dict[int, Any] = {}
    following = 0
    for number, part in results:
        early[number] = part
        while following in early:
            yield early.pop(following)
            following += 1
    if early or following == 0:
        raise JobFailed("Ray lost part of the work: run the same command again")
