"""How many padded tokens a micro-batch may have: found on a GPU, fewer when memory runs out, more again later."""

from __future__ import annotations

import threading
from collections.abc import Callable

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "_STATUS_ALLOC_FAILED")
"""How CUDA, torch's allocator on Linux and macOS, the same on Windows, C++ and NVIDIA's libraries say it."""
PATIENCE, GROWTH = 64, 1.25
"""Micro-batches of about the budget that fit before more is tried, at first, and how much more."""
SMALL = 2048
"""Padded tokens of the smaller of the two micro-batches from which a GPU's budget is found; the other has four times as
many."""
KEPT_FREE = 0.2
"""Part of the memory that is not planned for: it is lost between blocks, and kernels take some for themselves."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or on the CPU, for which torch has a plain RuntimeError."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


class Budget:
    """The budget of an actor; several threads may report to it.

    What did not fit may have been too much at that moment only: another process had the memory, or the sequences were
    longer than most. So after many micro-batches that fitted a little more is tried, up to the limit. If that does not
    fit, it is the last size that did again, and the patience is doubled: a budget that is right is hardly ever tried.

    Attributes:
        limit: padded tokens to begin with, never exceeded.
        tokens: padded tokens a micro-batch may have now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = self.tokens = limit
        self._proven = 0  # what has fitted for long, if a larger one is being tried
        self._patience, self._fitted = PATIENCE, 0
        self._lock = threading.Lock()

    def fitted(self, size: int) -> None:
        """A micro-batch of so many padded tokens went through."""
        with self._lock:
            # Small ones say nothing about the budget.
            if self.tokens < self.limit and 2 * size > self.tokens:
                self._fitted += 1
                if self._fitted >= self._patience:
                    self._proven, self._fitted = self.tokens, 0
                    self.tokens = min(self.limit, max(self.tokens + 1, int(self.tokens * GROWTH)))

    def failed(self, size: int) -> None:
        """A micro-batch of so many padded tokens did not fit."""
        with self._lock:
            if size > self.tokens:  # planned before another that failed, which has said it all
                return
            self._fitted = 0
            if 0 < self._proven < size:
                self.tokens, self._proven = self._proven, 0
                self._patience *= 2
            else:
                self.tokens = max(1, size // 2)


def find_budget(measure: Callable[[int], int | None], room: int, most: int) -> int:
    """The largest budget for which memory is expected to suffice.

    Memory grows with the padded tokens as a straight line, which two measurements give.

    Args:
        measure: bytes that a micro-batch of about so many padded tokens takes at its peak, beside what is there
            always; None if they are not to be had.
        room: bytes there are for a micro-batch.
        most: padded tokens beyond which there is no gain.

    Returns:
        Padded tokens, at least 1 and at most `most`. If not even a small micro-batch fits, half of it.
    """
    small, large = min(SMALL, most), min(4 * SMALL, most)
    at_small = measure(small)
    if at_small is None:
        return max(1, small // 2)
    at_large = measure(large) if large > small else at_small
    if at_large is None:
        return small
    # The difference may be lost in what libraries take for themselves: no less than a part of all there was.
    per_token = max((at_large - at_small) / max(1, large - small), at_large / large / 16)
    always = max(0.0, at_small - per_token * small)
    fitting = int((room * (1 - KEPT_FREE) - always) / per_token) if per_token else most
    return max(1, min(most, max(fitting, small)))
