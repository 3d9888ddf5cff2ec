"""The pass over the data as a Ray Data job: each batch of files is a task, its partial tables come back as one row."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from tokloss_ray.cluster.session import ray_session
from tokloss_ray.cluster.stream import stream, watch
from tokloss_ray.errors import Interrupted, JobFailed, TokLossError
from tokloss_ray.mining.passes import mine_batch
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables.table import Partials
from tokloss_ray.output.opened import ScoreFile
from tokloss_ray.stopping import raise_if_stopped

_NUMBER, _RESULT = "number", "result"


@contextmanager
def on_ray(
    batches: Sequence[list[ScoreFile]], settings: MiningSettings, address: str | None = None, verbose: bool = False
) -> Iterator[Iterator[Partials | None]]:
    """The partials of each batch, in order, made on the cluster; Ray stays for as long as the context.

    Raises:
        Refused: no cluster answers at the address.
        JobFailed: a task failed.
        Interrupted: by a signal.
    """
    try:
        # Closed here, and not when the caller's frame goes: Ray must still be there.
        with (
            ray_session(address, verbose),
            closing(_results(batches, settings)) as results,
            closing(_in_order(results)) as parts,
        ):
            yield parts
    except Interrupted as error:
        raise Interrupted("interrupted; no table was written", error.exit_code) from None


def _results(
    batches: Sequence[list[ScoreFile]], settings: MiningSettings
) -> Generator[tuple[int, Partials | None], None, None]:
    def work(rows: pa.Table) -> pa.Table:
        number = rows.column(_NUMBER)[0].as_py()
        try:
            result: Any = mine_batch(batches[number], settings)
        except TokLossError as error:  # as data: Ray would wrap it in a hundred lines
            result = error
        return pa.table({_NUMBER: [number], _RESULT: pa.array([pickle.dumps(result, protocol=5)], pa.large_binary())})

    dataset = ray.data.from_arrow([pa.table({_NUMBER: np.array([i])}) for i in range(len(batches))])
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = True
    watch(dataset.context)
    done = dataset.map_batches(work, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
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


def _in_order(results: Iterator[tuple[int, Partials | None]]) -> Generator[Partials | None, None, None]:
    """Ray keeps the order when it is asked to; nothing breaks where it does not."""
    early: dict[int, Partials | None] = {}
    following = 0
    for number, part in results:
        early[number] = part
        while following in early:
            yield early.pop(following)
            following += 1
    if early or following == 0:
        raise JobFailed("Ray lost part of the work: run the same command again")
