"""Length-sorted, token-budgeted micro-batches, and the way from ragged to padded and back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class MicroBatch(NamedTuple):
    """Sequences that go through the model together.

    Attributes:
        rows: the sequences' numbers in the shard, [batch].
        input_ids: int64 [batch, sequence], padded on the right.
        attention: int64 [batch, sequence], 0 on padding, and where a row's own mask says so.
        where: flat positions in the batch of the rows' tokens, [tokens].
        at: flat positions in the shard of the same tokens, [tokens].
    """

    rows: np.ndarray
    input_ids: np.ndarray
    attention: np.ndarray
    where: np.ndarray
    at: np.ndarray


def plan_batches(
    lengths: np.ndarray, budget: int, equal_length: bool = False, packed: bool = False
) -> list[np.ndarray]:
    """Sequence numbers of each micro-batch, longest sequences first.

    A batch of n sequences, the longest of L tokens, has n * L <= budget padded tokens, or n = 1; with `equal_length`
    all have L; with `packed` it is their sum that the budget is for. Longest first: what does not fit into memory shows
    at once, and the allocator can reuse the largest blocks.
    """
    order = np.argsort(-lengths, kind="stable")
    falling = -lengths[order]
    batches = []
    start = 0
    while start < len(order):
        size = fitting(-falling[start:], budget, packed)
        if equal_length:
            size = min(size, int(np.searchsorted(falling, falling[start], side="right")) - start)
        batches.append(order[start : start + size])
        start += size
    return batches


def fitting(lengths: np.ndarray, budget: int, packed: bool = False) -> int:
    """How many of some sequences, from the longest on, one micro-batch takes: at least one."""
    if packed:
        most = lengths[: budget + 1]  # each has a token at least
        return max(1, int(np.searchsorted(np.cumsum(most), budget, side="right")))
    return max(1, budget // max(1, int(lengths[0])))


def pad(
    flat_ids: np.ndarray,
    flat_mask: np.ndarray | None,
    starts: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    pad_id: int,
) -> MicroBatch:
    """Gather some sequences into a padded micro-batch. `flat_mask` None attends to every token.

    Padding stands on the right whatever side the tokenizer pads on: a model with absolute positions then sees each
    token at the position it has without padding. Whether padding changes anything for the others is known of each model
    (`probe.py`).
    """
    column = np.arange(int(lengths[rows].max(initial=0)))
    inside = column < lengths[rows][:, None]
    at = (starts[rows][:, None] + column)[inside]
    input_ids = np.full(inside.shape, pad_id, dtype=np.int64)
    input_ids[inside] = flat_ids[at]
    attention = inside.astype(np.int64)
    if flat_mask is not None:
        attention[inside] = flat_mask[at]
    return MicroBatch(rows, input_ids, attention, np.flatnonzero(inside), at)
