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
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any

import pyarrow as pa
import ray.data

from tokloss_ray import stopping

TICK = 0.5
PATIENCE = 10.0
"""Seconds that threads have to end. Their steps are short, unless the machine is busy or the cluster gone."""
RESULTS = "tokloss-results"
CALLBACKS = "custom_execution_callback_classes"
"""The setting of Ray Data's that makes executors known. Without it a run ends when its next result is through."""
_THREADS = (RESULTS, "StreamingExecutor", "iter_threaded", "ray-data-metadata-prefetch")
"""How the names of ours and of Ray Data's begin. (Not its "Prefetcher": it waits for ever, and does nothing.)"""


class Running:
    """One dataset that is executed: knows its executors, to stop them, and to say what their stages do."""

    def __init__(self) -> None:
        self.executors: list[Any] = []
        self.leaving = threading.Event()
        self.thread: threading.Thread | None = None

    def stages(self) -> list[tuple[str, int, int]]:
        """Name, running tasks and waiting blocks of each stage; nothing where Ray Data does not tell."""
        try:
            return [
                (op.name, op.num_active_tasks(), state.total_enqueued_input_blocks())
                for executor in self.executors
                for op, state in executor._topology.items()
            ]
        except Exception:  # a private part of Ray Data's, for a sentence that can do without
            return []

    def shut_down(self) -> None:
        """End what is in flight."""
        for executor in self.executors:
            executor.shutdown(force=True)

    def alive(self) -> list[threading.Thread]:
        """Threads that are known to be of this run and have not ended."""
        own = [self.thread, *(e for e in self.executors if isinstance(e, threading.Thread))]
        return [thread for thread in own if thread is not None and thread.is_alive()]


_here: ContextVar[Running | None] = ContextVar("tokloss_running", default=None)
"""Of the thread that asks Ray Data to execute a dataset."""
_lock = threading.RLock()
_all: list[Running] = []
"""What is executed in this process, and the threads that were there before any of it."""
_others: set[threading.Thread] = set()


class _Callback:
    """What Ray Data calls: it has one made for each execution, in the thread that asked for it."""

    def before_execution_starts(self, executor: Any) -> None:
        """Make the executor known to its run."""
        running = _here.get()
        if running is not None:
            running.executors.append(executor)
            if running.leaving.is_set():
                raise _Left

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Any other event means nothing to us: after a step, at the end, and what later versions may tell."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class _Left(Exception):
    """Nobody waits for the results any more: execution does not start."""


def watch(context: ray.data.DataContext) -> None:
    """Have datasets with these settings make their executors known."""
    if hasattr(context, CALLBACKS):
        setattr(context, CALLBACKS, [*getattr(context, CALLBACKS), _Callback])


def stream(
    dataset: ray.data.Dataset, running: Running | None = None
) -> Generator[pa.Table | Exception | None, None, None]:
    """The batches of a dataset as they come; None every half second without one; in the end what Ray raised, if it did.

    Close it, or use it up: then nothing of it runs any more. The dataset's settings must have gone through `watch`.
    running: made known to the caller, who wants to ask it what its stages do.
    """
    running = running or Running()
    results: queue.SimpleQueue[pa.Table | Exception | None] = queue.SimpleQueue()
    leaving = running.leaving

    def pump() -> None:
        _here.set(running)
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                results.put(batch)
                if leaving.is_set():
                    return
            results.put(None)
        except Exception as error:
            results.put(error)

    running.thread = threading.Thread(target=pump, name=RESULTS, daemon=True)
    try:
        with _lock:
            if not _all:
                _others.clear()
                _others.update(threading.enumerate())
            _all.append(running)
        running.thread.start()
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
            _end(running)


def _end(running: Running) -> None:
    """Stop the executor and wait for the threads that are there because of it.

    Again and again: an executor that is only just about to start lets a shutdown pass without effect. Without it, what
    is in flight would go on, and commit, until the next result comes through.
    """
    running.leaving.set()
    with _lock:
        _all[:] = [other for other in _all if other is not running]
    deadline = time.monotonic() + PATIENCE
    while True:
        running.shut_down()
        alive = running.alive() or _unnamed()
        if not alive or time.monotonic() > deadline:
            break
        alive[0].join(0.1)
    running.executors.clear()


def _unnamed() -> list[threading.Thread]:
    """Threads of Ray Data's that do not tell which run they belong to. Only the last run waits for them: as long as
    another is at work, Ray stays."""
    if _all:
        return []
    return [t for t in threading.enumerate() if t not in _others and t.name.startswith(_THREADS)]
