"""What a dataset yields, through a thread; and an end to all that Ray Data has running for it, at any moment.

An exception that a signal raises in the middle of Ray's code can get lost there: the main thread only waits. Ray Data
works in threads of its own (a scheduling loop, one that iterates, one that fetches metadata), and none of them ends
because somebody stops listening. What ends them is the executor's shutdown; until all have ended, Ray must stay: they
would ask a Ray that is gone, and print what they get.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from typing import Any, ClassVar

import pyarrow as pa
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from tokloss_ray import stopping

TICK = 0.5
PATIENCE = 10.0
"""Seconds that threads have to end. Their steps are short, unless the machine is busy or the cluster gone."""
RESULTS = "tokloss-results"
_THREADS = (RESULTS, "StreamingExecutor", "iter_threaded", "ray-data-metadata-prefetch")
"""How the names of ours and of Ray Data's begin. (Not its "Prefetcher": it waits for ever, and does nothing.)"""


class Running(ExecutionCallback):
    """Knows the executor of the run, to stop it, and to say what its stages do."""

    executors: ClassVar[list[Any]] = []
    leaving: ClassVar[threading.Event] = threading.Event()

    def before_execution_starts(self, executor: Any) -> None:
        """Called by Ray Data."""
        self.executors.append(executor)
        if self.leaving.is_set():
            raise _Left


class _Left(Exception):
    """Nobody waits for the results any more: execution does not start."""


def watch(context: ray.data.DataContext) -> None:
    """Have datasets with these settings make their executors known."""
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Running]


def stream(dataset: ray.data.Dataset) -> Generator[pa.Table | Exception | None, None, None]:
    """The batches of a dataset as they come; None every half second without one; in the end what Ray raised, if it did.

    Close it, or use it up: then nothing of it runs any more. The dataset's settings must have gone through `watch`.
    """
    Running.executors.clear()
    Running.leaving.clear()
    others = set(threading.enumerate())
    results: queue.SimpleQueue[pa.Table | Exception | None] = queue.SimpleQueue()
    leaving = Running.leaving

    def pump() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                results.put(batch)
                if leaving.is_set():
                    return
            results.put(None)
        except Exception as error:
            results.put(error)

    threading.Thread(target=pump, name=RESULTS, daemon=True).start()
    try:
        while True:
            try:
                batch = results.get(timeout=TICK)
            except queue.Empty:
                yield None
                continue
            if batch is None:
                return
            yield batch
            if isinstance(batch, Exception):
                return
    except BaseException:
        stopping.unwinding()
        raise
    finally:
        with stopping.held():
            _end(others)


def _end(others: set[threading.Thread]) -> None:
    """Stop the executor and wait for the threads that are there because of it.

    Again and again: an executor that is only just about to start lets a shutdown pass without effect. Without it, what
    is in flight would go on, and commit, until the next result comes through.
    """
    Running.leaving.set()
    deadline = time.monotonic() + PATIENCE
    while True:
        for executor in Running.executors:
            executor.shutdown(force=True)
        alive = [t for t in threading.enumerate() if t not in others and t.name.startswith(_THREADS)]
        if not alive or time.monotonic() > deadline:
            break
        alive[0].join(0.1)
    Running.executors.clear()
