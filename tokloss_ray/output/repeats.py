"""How many values of a very long column have come before, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from tokloss_ray.spill import Spill

IN_MEMORY = 1 << 20
"""So many hashes are held; where there are more, all of them go to disk, divided by their first bits."""
_BITS = 8


def count_repeats(hashes: Iterable[np.ndarray]) -> int:
    """How many of some 64-bit hashes are equal to an earlier one.

    hashes: uint64 arrays. Up to `IN_MEMORY` of them are compared in memory; more take 8 bytes each on disk.
    """
    held: list[np.ndarray] = []
    size = 0
    spill: Spill | None = None
    try:
        for some in hashes:
            held.append(some)
            size += len(some)
            if size >= IN_MEMORY:
                spill = spill or Spill(1 << _BITS, 8 * IN_MEMORY)
                _move(held, spill)
                held, size = [], 0
        if spill is None:
            return _repeated(np.concatenate([np.zeros(0, dtype=np.uint64), *held]))
        _move(held, spill)
        return sum(_repeated(rows.column(0).to_numpy()) for rows in spill.read_all())
    finally:
        if spill is not None:
            spill.close()


def _move(held: list[np.ndarray], spill: Spill) -> None:
    together = np.concatenate([np.zeros(0, dtype=np.uint64), *held])
    spill.add(pa.table({"hash": together}), (together >> np.uint64(64 - _BITS)).astype(np.int64))


def _repeated(hashes: np.ndarray) -> int:
    ordered = np.sort(hashes)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))
