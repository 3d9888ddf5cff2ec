"""Rows of two outputs of the same input files, matched by file and row, some at a time.

Some files of A are read, and those of B that begin before the next ones of A; of these, rows that lie behind wait for
the next ones. So every file is read once, whatever the shards, and rows are held only where shards overlap.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.diff.compared import ComparedOutput, Pairs
from tokloss_ray.mining.diff.row_ranges import AFTER, Places, batches_of, place_files
from tokloss_ray.mining.words.words import Words, take_sequences
from tokloss_ray.output.run import input_order


def rows_by_place(a: ComparedOutput, b: ComparedOutput, batch_tokens: int) -> Pairs:
    """The rows of both outputs in the same stretch of the input.

    Raises:
        JobFailed: a file is missing or damaged.
    """
    places, (of_a, of_b) = place_files((a.files, b.files), input_order(a.scores.outputs[0]))
    batches = batches_of(of_a, batch_tokens) or [[]]
    waiting: list[Words] = []
    begun = 0
    for batch, end in zip(batches, [*(batch[0].first for batch in batches[1:]), AFTER], strict=True):
        ours = a.joined(a.read(item.file for item in batch))
        until = begun
        while until < len(of_b) and of_b[until].first < end:
            until += 1
        parts = [*waiting, *b.read(item.file for item in of_b[begun:until])]
        here, waiting = _cut(parts, places, end)
        begun = until
        theirs = b.joined(here)
        yield ours, theirs, (pa.array(places.of(ours)), pa.array(places.of(theirs)))


def _cut(parts: Iterable[Words], places: Places, end: int) -> tuple[list[Words], list[Words]]:
    """The rows before a place, and the others."""
    before: list[Words] = []
    behind: list[Words] = []
    for part in parts:
        here = places.of(part) < end
        for side, rows in ((before, here), (behind, ~here)):
            if rows.all():
                side.append(part)
            elif rows.any():
                side.append(take_sequences(part, np.flatnonzero(rows)))
    return before, behind
