"""Which words become rows of `label_issues`: those with the highest scores, unless a rank has a rule of its own.

The words come in parts, so a selection has three steps: what is held of the words of a part, what is held of several
parts, and what is left at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.tables.grouping import Order, slices, top_rows
from tokloss_ray.mining.words.words import KEY, Words

SCORE = "score"
ORDER: Order = [(SCORE, "descending"), *((name, "ascending") for name in (*KEY, "word_index"))]
"""Of `label_issues` and `sentence_issues`: the most suspicious word first."""

RowsOf = Callable[[np.ndarray | pa.Array], pa.Table]
"""The words at some positions as rows of `label_issues`; all null where a position is."""


class Selection(NamedTuple):
    """The three steps.

    Attributes:
        partial: words, their scores [N] float64, limit, and how they become rows -> what is held of them.
        combine: partials, slice columns, limit -> one partial.
        final: partials, slice columns, limit -> the rows of `label_issues`, in their order, of each slice the first
            `limit`.
    """

    partial: Callable[[Words, np.ndarray, int, RowsOf], pa.Table]
    combine: Callable[[Sequence[pa.Table], Sequence[str], int], pa.Table]
    final: Callable[[Sequence[pa.Table], Sequence[str], int], pa.Table]


def highest_of_words(words: Words, score: np.ndarray, limit: int, rows_of: RowsOf) -> pa.Table:
    """The first `limit` words of each slice."""
    return top_rows(rows_of(candidates(score, words, limit)), list(words.by), ORDER, limit)


def highest(parts: Sequence[pa.Table], by: Sequence[str], limit: int) -> pa.Table:
    """The first `limit` rows of each slice."""
    return top_rows(pa.concat_tables(parts), by, ORDER, limit)


HIGHEST = Selection(highest_of_words, highest, highest)


def candidates(score: np.ndarray, words: Words, limit: int, sequence: np.ndarray | None = None) -> np.ndarray:
    """Positions of the rows that may be among the first `limit` of their slice by score; more where scores are equal.

    sequence: of each row; by default, of each word.
    """
    if len(score) <= limit:
        return np.arange(len(score))
    if not words.by:
        return np.flatnonzero(score >= -np.partition(-score, limit - 1)[limit - 1])
    of_sequence, _ = slices(words)
    part = of_sequence[words.sequence if sequence is None else sequence]
    order = np.lexsort((-score, part))
    begin = np.flatnonzero(np.diff(part[order], prepend=-1))
    size = np.diff(np.append(begin, len(order)))
    least = np.full(part.max() + 1, -np.inf)
    large = size >= limit
    least[part[order[begin[large]]]] = score[order[begin[large] + limit - 1]]
    return np.flatnonzero(score >= least[part])
