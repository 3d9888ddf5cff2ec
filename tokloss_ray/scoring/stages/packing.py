"""Sequences of a micro-batch end to end in one row, without padding, and what a model is told of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokloss_ray.ragged import offsets_of, positions

_SHORTEST_BUCKET = 128
"""Tokens of a query that the kernels take at a time: a shorter bound on the longest sequence saves them nothing."""


class Packing(NamedTuple):
    """How a model takes packed sequences.

    Attributes:
        after: padding id behind which it counts positions, as RoBERTa and its kin do; None counts from 0.
    """

    after: int | None = None


class Pack(NamedTuple):
    """Some sequences end to end.

    Attributes:
        rows: their numbers in the shard, [sequences].
        input_ids: int64 [1, tokens].
        position_ids: int64 [1, tokens], each token's position in its sequence, as the model counts.
        starts: int32 [sequences + 1], where each begins, and the number of tokens.
        longest: tokens of the longest sequence, rounded up to one of few values.
        at: flat positions in the shard of the tokens, [tokens].
    """

    rows: np.ndarray
    input_ids: np.ndarray
    position_ids: np.ndarray
    starts: np.ndarray
    longest: int
    at: np.ndarray


def pack(flat_ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, rows: np.ndarray, packing: Packing) -> Pack:
    """Gather some sequences, each of which has at least one token, into a pack."""
    own = lengths[rows]
    at = positions(starts[rows], own)
    ids, offsets = flat_ids[at].astype(np.int64), offsets_of(own)
    position_ids = np.arange(len(at)) - np.repeat(offsets[:-1], own)
    if packing.after is not None:
        # A padding token among the others, as text may have it, has no position and does not count.
        counted = ids != packing.after
        before = offsets_of(counted)
        position_ids = (before[1:] - np.repeat(before[offsets[:-1]], own)) * counted + packing.after
    longest = round_up(int(own.max(initial=1)))
    return Pack(rows, ids[None], position_ids[None], offsets.astype(np.int32), longest, at)


def round_up(length: int) -> int:
    """The next power of two, at least 128: what a compiler sees of the longest sequence takes few values."""
    return max(_SHORTEST_BUCKET, 1 << (length - 1).bit_length())
