"""One side of a comparison: an output, what of it is compared, and its words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from tokloss_ray.mining.words.load import read_tokens
from tokloss_ray.mining.words.words import Words, concat_words, first_tokens, no_words
from tokloss_ray.output.opened import Condition, ScoreFile, Scores, files_where


@dataclass(frozen=True)
class ComparedOutput:
    """One of the two outputs: its files, those that pass the conditions, and what to read of them."""

    scores: Scores
    by: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()

    @property
    def files(self) -> tuple[ScoreFile, ...]:
        """The files to read."""
        return files_where(self.scores.files, self.where)

    def read(self, files: Iterable[ScoreFile]) -> Iterator[Words]:
        """Their words, labelled or not, some rows at a time."""
        for tokens in read_tokens(files, self.scores.tags, self.by, self.where, unlabelled=True):
            yield first_tokens(tokens)

    def joined(self, parts: Iterable[Words]) -> Words:
        """Some parts as one; no words if there are none."""
        kept = list(parts)
        return concat_words(kept) if kept else no_words(self.scores.tags, self.by)


Pairs = Iterator[tuple[Words, Words, tuple[pa.Array, pa.Array]]]
"""Rows of A, rows of B, and the keys of each: rows with equal keys are the same row of the input."""
