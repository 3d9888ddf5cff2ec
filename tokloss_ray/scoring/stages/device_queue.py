"""Keeps a device that computes by itself, such as a GPU, supplied with micro-batches of several shards.

One thread pads the next micro-batch, copies it to the device and starts the model on it while earlier ones are still
being computed; when a shard has no more of them, it goes on with the next shard. Another thread waits for results, in
order, and puts them into their shards. So the device has something to do as long as there is a shard, and nothing waits
for one micro-batch but the thread that does nothing else. How many are under way at a time is bounded, so that the
device's memory is.

What a device is, is in `Device`: `cuda.py` has the real one, and the tests one that is played by a thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from tokloss_ray.faults import fault_point
from tokloss_ray.scoring.stages.budget import Budget, is_out_of_memory
from tokloss_ray.scoring.stages.work import Prepared, Work

UNDER_WAY = 3
"""Micro-batches on the device at a time: one that is computed, one behind it, one whose results are on their way."""


class Result(NamedTuple):
    """What came of a micro-batch.

    Attributes:
        words: its tokens' scores, on the host (`loss.to_words`).
        waited: seconds for which the device had nothing to do before it.
        busy: seconds for which it computed.
    """

    words: np.ndarray
    waited: float
    busy: float


class Launched(Protocol):
    """A micro-batch on its way through the device."""

    def result(self) -> Result:
        """Wait for it. Called once, and in the order in which they were launched.

        Raises:
            RuntimeError: the device failed.
        """


class Device(Protocol):
    """Something that does what it is given in the order in which it is given it, while the host goes on."""

    def launch(self, forward: Callable[[Any], Any], inputs: Any) -> Launched:
        """Start a micro-batch: copy its arrays, call `forward` with them there, copy back what that gives.

        Raises:
            RuntimeError, MemoryError: the call failed, for want of memory or otherwise; nothing of it is left behind.
        """

    def release(self) -> None:
        """Give back memory that is kept for later."""


class Spent(NamedTuple):
    """Seconds of the device's time for a shard: `waited` it had nothing to do, `busy` it computed."""

    waited: float
    busy: float


class _Task:
    """A shard in the queue."""

    def __init__(self, work: Work, note: Callable[[np.ndarray], None] | None) -> None:
        self.work, self.note = work, note
        self.open = 0  # micro-batches that were taken from the work and have not come to anything yet
        self.waited = self.busy = 0.0
        self.error: BaseException | None = None
        self.over = threading.Event()


class DeviceQueue:
    """The queue of one device.

    Args:
        device: what computes.
        forward: what it does with a micro-batch's inputs; see `forward.py`.
        budget: how large a micro-batch may be; told what fitted and what did not.
        under_way: micro-batches that may be on the device at a time.
    """

    def __init__(
        self, device: Device, forward: Callable[[Any], Any], budget: Budget, under_way: int = UNDER_WAY
    ) -> None:
        self.device, self.forward, self.budget, self.under_way = device, forward, budget, under_way
        self._tasks: list[_Task] = []
        self._launched: deque[tuple[_Task, Prepared, Launched]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._broken: BaseException | None = None
        for loop in (self._feed, self._collect):
            threading.Thread(target=self._guard, args=(loop,), name=f"tokloss{loop.__name__}", daemon=True).start()

    def score(self, work: Work, note: Callable[[np.ndarray], None] | None = None) -> Spent:
        """Score all micro-batches of a shard; may be called by several threads at once, each with its shard.

        note: called with the sequences of each micro-batch before it is launched, and nothing else is then under way.

        Raises:
            Exception: what a micro-batch of this shard raised; other shards are not touched by it.
        """
        task = _Task(work, note)
        with self._changed:
            if self._broken is not None:
                raise self._broken
            self._tasks.append(task)
            self._settle(task)
            self._changed.notify_all()
        task.over.wait()
        if task.error is not None:
            raise task.error
        return Spent(task.waited, task.busy)

    def close(self) -> None:
        """End the threads. Shards that are not done fail."""
        self._end(RuntimeError("the queue of the device was closed"))

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._broken, self._closed = error, True
            for task in list(self._tasks):
                self._fail(task, error)
            self._changed.notify_all()

    def _guard(self, loop: Callable[[], None]) -> None:
        """A thread that ends for a mistake of ours must not leave its shards waiting forever."""
        try:
            loop()
        except BaseException as error:
            self._end(error)

    # The thread that prepares and launches.

    def _feed(self) -> None:
        while (taken := self._take()) is not None:
            task, rows = taken
            try:
                batch = task.work.prepare(rows)
                self._wait_until_under_way(self.under_way - 1)
                if task.note is not None:
                    self._wait_until_under_way(0)
                    task.note(rows)
                fault_point("score.batch", task.work.names(rows))
                launched = self._launch(batch)
            except Exception as error:
                with self._changed:
                    self._fail(task, error)
                continue
            if launched is None:
                task.work.not_fitting(rows)
            with self._changed:
                if launched is None:
                    task.open -= 1
                    self._settle(task)
                else:
                    self._launched.append((task, batch, launched))
                    self._changed.notify_all()

    def _take(self) -> tuple[_Task, np.ndarray] | None:
        """The next micro-batch's sequences, of the shard that came first; waits for one. None when all is over."""
        with self._changed:
            while not self._closed:
                for task in list(self._tasks):
                    if (rows := task.work.next(self.budget.tokens)) is not None:
                        task.open += 1
                        return task, rows
                    self._settle(task)
                self._changed.wait()
        return None

    def _launch(self, batch: Prepared) -> Launched | None:
        """Launch a micro-batch; None if memory does not suffice even if nothing else is under way."""
        while True:
            try:
                return self.device.launch(self.forward, batch.inputs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Out here, where the exception no longer holds on to the call's tensors.
            alone = self._wait_until_under_way(0)
            self.device.release()
            if len(batch.rows) > 1:
                self.budget.failed(batch.size)
            if alone:
                return None

    def _wait_until_under_way(self, count: int) -> bool:
        """Wait until no more than so many micro-batches are under way; returns whether it was so already."""
        with self._changed:
            so_already = len(self._launched) <= count
            while len(self._launched) > count and self._broken is None:
                self._changed.wait()
        return so_already

    # The thread that waits for results.

    def _collect(self) -> None:
        while True:
            with self._changed:
                while not self._launched:
                    if self._closed:
                        return
                    self._changed.wait()
                task, batch, launched = self._launched[0]
            error: Exception | None = None
            try:
                result = launched.result()
                if task.error is None:
                    task.work.keep(batch, result.words)
                self.budget.fitted(batch.size)
                task.waited += result.waited
                task.busy += result.busy
            except Exception as failure:
                error = failure
            del launched
            with self._changed:
                self._launched.popleft()
                if error is not None:
                    self._fail(task, error)
                task.open -= 1
                self._settle(task)
                self._changed.notify_all()

    # Called with the lock held.

    def _settle(self, task: _Task) -> None:
        """A shard of which nothing is left and nothing under way is done."""
        if task in self._tasks and not task.open and not task.work.left:
            self._tasks.remove(task)
            task.over.set()

    def _fail(self, task: _Task, error: BaseException) -> None:
        """A shard's failure ends that shard: what of it is still under way is not waited for."""
        if task in self._tasks:
            self._tasks.remove(task)
            task.error = error
            task.over.set()
