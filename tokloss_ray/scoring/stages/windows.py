"""Overlapping windows over a sequence that is too long for the model."""

from __future__ import annotations

import numpy as np


def window_starts(n: int, capacity: int, overlap: int) -> list[int]:
    """Where windows of `capacity` tokens over `n` tokens start; neighbours share `overlap`, the last may be short."""
    return [0, *range(capacity - overlap, max(n - overlap, 1), capacity - overlap)]


def window_owners(unit_of_token: np.ndarray, begins: list[int], capacity: int, n: int) -> np.ndarray:
    """For each token, the window in which its word is scored; -1 for a token of no window.

    That is the window where the smaller of the word's left and right context is largest; on a tie one that holds the
    whole word, and of these the first.
    `unit_of_token` is non-decreasing: the word of each token, or the token itself where words are not known.
    """
    _, first, inverse = np.unique(unit_of_token, return_index=True, return_inverse=True)
    last = np.append(first[1:], len(unit_of_token)) - 1
    best = np.full(len(first), np.iinfo(np.int64).min)
    owner = np.full(len(first), -1)
    for k, a in enumerate(begins):
        b = min(a + capacity, n)
        low, high = np.searchsorted(first, [a, b], side="left")
        right = b - 1 - last[low:high]
        # A word that the window cuts has no context on its right. Doubled, so that being whole can decide a tie.
        context = 2 * np.minimum(first[low:high] - a, np.maximum(right, 0)) + (right >= 0)
        better = context > best[low:high]
        best[low:high][better] = context[better]
        owner[low:high][better] = k
    return owner[inverse]
