"""Work on all cores of this machine.

Threads and not processes: Arrow and numpy work outside of the interpreter's lock, and a process takes longer to start
than the demo takes to mine.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST = 16


def in_context(function: Callable[..., R]) -> Callable[..., R]:
    """The function with a copy of the context variables that are set here, in whichever thread it is called."""
    context = copy_context()
    return lambda *args: context.copy().run(function, *args)


def in_background(work: Callable[[], R]) -> Future[R]:
    """Begin some work in a thread of its own. It dies with the process: no signal has to wait for its end."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=in_context(run), name="tokloss-begin", daemon=True).start()
    return future


def map_in_threads(function: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """The result for each item, in order, made by one thread a core, or by so many; at most a few results wait.

    Each call has a copy of the caller's context variables.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(cores, _MOST)
    call = in_context(function)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
