"""A device for tests: a thread that does what it is given while the host goes on, with a clock of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from tokloss_ray.scoring.stages.device_queue import Result
from tokloss_ray.scoring.stages.forward import DeviceBatch

IDLE = 1.0
"""Seconds on the device's clock that pass before a micro-batch that found it with nothing to do."""
BUSY = 0.5
"""Seconds on it that a micro-batch takes."""


class StandInDevice:
    """Computes on the CPU what it is given.

    Args:
        room: padded tokens that fit in its memory, of all micro-batches on it together.
        held: it does nothing until `let` allows it.
        seconds: that it really takes for a micro-batch, at least.
        fails: raised by the result of a micro-batch, where this says so of its inputs: as a kernel fails, late.
    """

    def __init__(
        self,
        room: float = float("inf"),
        held: bool = False,
        seconds: float = 0.0,
        fails: Callable[[DeviceBatch], bool] = lambda inputs: False,
    ) -> None:
        self.memory, self.seconds, self.fails = room, seconds, fails
        self.allowed = threading.Semaphore(0) if held else None
        self.tried: list[DeviceBatch] = []
        self.out_of_memory: list[int] = []
        self.released = 0
        self.used = 0
        self.most = 0
        self.under_way = 0
        self.changed = threading.Condition()
        self._given: queue.SimpleQueue[tuple[Callable[..., Any], DeviceBatch, _Launched]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def launch(self, forward: Callable[[Any], torch.Tensor], inputs: DeviceBatch) -> _Launched:
        size = inputs.input_ids.numel()
        with self.changed:
            self.tried.append(inputs)
            self.changed.notify_all()
            if self.used + size > self.memory:
                self.out_of_memory.append(size)
                raise torch.OutOfMemoryError("CUDA out of memory")
            launched = _Launched(0.0 if self.under_way else IDLE)
            self.used += size
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self._given.put((forward, inputs, launched))
        return launched

    def release(self) -> None:
        self.released += 1

    def let(self, count: int = 1) -> None:
        """Allow a device that is held so many micro-batches."""
        assert self.allowed is not None
        self.allowed.release(count)

    def wait_for_tries(self, count: int) -> None:
        """Until so many micro-batches were launched."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.tried) >= count, timeout=60), len(self.tried)

    def _work(self) -> None:
        while True:
            forward, inputs, launched = self._given.get()
            if self.allowed is not None:
                self.allowed.acquire()
            try:
                if self.fails(inputs):
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                launched.words = forward(inputs)
                time.sleep(self.seconds)
            except Exception as error:
                launched.error = error
            with self.changed:
                self.used -= inputs.input_ids.numel()
                self.under_way -= 1
                self.changed.notify_all()
            launched.done.set()


class _Launched:
    def __init__(self, waited: float) -> None:
        self.waited = waited
        self.words: torch.Tensor | None = None
        self.error: Exception | None = None
        self.done = threading.Event()

    def result(self) -> Result:
        self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.words is not None
        return Result(self.words.numpy(), self.waited, BUSY)
