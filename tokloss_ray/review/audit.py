"""Words that are drawn at random: what a review knows of the labels that nobody would look at.

Issues by rank say nothing of the rest: their rank is not independent of what is wrong with them. So every tenth issue
(`--audit-share`) is a word drawn from all labelled words of the output, by a design that no decision changes:

- Words fall into strata by loss. In each, their order is that of a random number, a hash of row, word and reviewer; the
  first n are a simple random sample of the N words of the stratum, each with probability n / N.
- The strata take turns, so that their shares of the sample are those of the corpus.
- Words that were decided on already are passed over. Those by rank are known exactly, and what is left of the order is
  a random order of the words that are left.

A decision on such a word says its stratum, its place in that order and the stratum's size. A word of the sample would
sometimes have come up by rank, too. The first decision beyond it says so (`passes`), and the word counts as reviewed by
rank: so whether a word was reviewed by rank does not depend on the sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.words.occurrences import word_numbers
from tokloss_ray.mining.words.words import Words
from tokloss_ray.review.issues import Issue

LOSS_FROM = (math.log(2), 0.1, 0.01, 0.001)
"""Where the strata begin, in nats, the highest loss first; below is one more. At ln 2 the label has a probability of
one half."""
STRATA = len(LOSS_FROM) + 1
MOST_DRAWS = 2_000
"""Words of a stratum that can be drawn."""
DEFAULT_SHARE = 0.1

Key = tuple[str, int, int]
"""Source, source_row and word index."""

_ODD = np.uint64(0x9E3779B97F4A7C15)


class Draw(NamedTuple):
    """A word that was drawn: its stratum, its place in the random order of the stratum from 1, the size of the
    stratum, and the word as an issue."""

    stratum: int
    place: int
    population: int
    issue: Issue


def strata(loss: np.ndarray) -> np.ndarray:
    """[n] int8: the stratum of words with these losses, 0 for the highest."""
    found = np.zeros(len(loss), np.int8)
    for bound in LOSS_FROM:
        found += loss < np.float32(bound)
    return found


def seed_of(reviewer: str) -> np.uint64:
    """What the random order of a reviewer follows from."""
    return np.uint64(int.from_bytes(hashlib.sha256(reviewer.encode("utf-8", "replace")).digest()[:8], "little"))


def _mixed(x: np.ndarray) -> np.ndarray:
    """[n] uint64, scrambled (splitmix64, Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = x + _ODD
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def numbers_of(source: pa.Array, row: np.ndarray, word: np.ndarray) -> np.ndarray:
    """[n] uint64: a number for each word of a corpus, the same wherever it is computed."""
    return _mixed(_mixed(word_numbers(source) ^ _mixed(row.astype(np.uint64))) ^ word.astype(np.uint64))


def numbers_of_keys(keys: Iterable[Key]) -> np.ndarray:
    """The same of words by their keys."""
    given = list(keys)
    row, word = (np.array([key[i] for key in given], np.int64) for i in (1, 2))
    return numbers_of(pa.array([key[0] for key in given], pa.string()), row, word)


class Population:
    """All labelled words of an output: how many there are, the first ones in random order, and some that are known.

    Made by a pass over the corpus (`add`); then it does not change, but for `know`.

    Attributes:
        tags: by code.
        counts: [STRATA, tags] int64, labelled words.
        draws: of each stratum, its first words by random order.
        known: stratum and label of words that were asked for, by `numbers_of`.
        ready: the pass is over.
    """

    def __init__(self, tags: tuple[str, ...], seed: np.uint64, asked: Iterable[Key] = ()) -> None:
        self.tags, self.ready = tags, False
        self.counts = np.zeros((STRATA, len(tags)), np.int64)
        self.draws: list[list[Draw]] = [[] for _ in range(STRATA)]
        self.known: dict[int, tuple[int, int]] = {}
        self._seed, self._asked = seed, np.unique(numbers_of_keys(asked))
        self._held = [(np.zeros(0, np.uint64), pa.table({})) for _ in range(STRATA)]

    def add(self, words: Words) -> None:
        """Count some words, each once in all calls."""
        stratum = strata(words.loss)
        size = len(self.tags)
        self.counts += np.bincount(stratum * np.int64(size) + words.label, minlength=STRATA * size).reshape(-1, size)
        of_row = word_numbers(words.source) ^ _mixed(words.source_row.astype(np.uint64))
        number = _mixed(_mixed(of_row)[words.sequence] ^ words.word_index.astype(np.uint64))
        asked = np.flatnonzero(np.isin(number, self._asked))
        self.known |= {int(number[i]): (int(stratum[i]), int(words.label[i])) for i in asked}
        order = _mixed(number ^ self._seed)
        for which in range(STRATA):
            first, table = self._held[which]
            below = first[-1] if len(first) == MOST_DRAWS else np.uint64(np.iinfo(np.uint64).max)
            at = np.flatnonzero((stratum == which) & (order <= below))
            if len(at) > MOST_DRAWS:
                at = at[np.argpartition(order[at], MOST_DRAWS)[:MOST_DRAWS]]
            if len(at):
                self._held[which] = _smallest(first, table, order[at], _rows(words, at))

    def finish(self) -> None:
        """There are no more words: make the draws."""
        for which, (_, table) in enumerate(self._held):
            population = int(self.counts[which].sum())
            self.draws[which] = [
                Draw(which, place, population, _issue(row, self.tags)) for place, row in enumerate(table.to_pylist(), 1)
            ]
        self._held.clear()
        self.ready = True

    def know(self, keys: list[Key], losses: list[float | None], labels: list[str | None]) -> None:
        """Note the strata and labels of some words that were decided on; those without a label are none."""
        code = {tag: i for i, tag in enumerate(self.tags)}
        of = strata(np.array([math.nan if loss is None else loss for loss in losses], np.float32))
        for number, stratum, label in zip(numbers_of_keys(keys), of, labels, strict=True):
            if label is not None:
                self.known[int(number)] = int(stratum), code[label]

    def next(self, taken: Mapping[int, int], is_decided: Callable[[Key], bool]) -> Draw | None:
        """The next word of the sample; None if all were taken. taken: how many of each stratum were."""
        sizes = self.counts.sum(axis=1)
        turn = sizes / max(sizes.sum(), 1) * (sum(taken.values()) + 1) - [taken.get(i, 0) for i in range(STRATA)]
        for which in np.argsort(-turn, kind="stable").tolist():
            for draw in self.draws[which]:
                if not is_decided((draw.issue.source, draw.issue.source_row, draw.issue.word_index)):
                    return draw
        return None


def _smallest(first: np.ndarray, table: pa.Table, order: np.ndarray, rows: pa.Table) -> tuple[np.ndarray, pa.Table]:
    both = np.concatenate([first, order])
    at = np.argsort(both, kind="stable")[:MOST_DRAWS]
    return both[at], (pa.concat_tables([table, rows]) if len(first) else rows).take(pa.array(at))


def _rows(words: Words, at: np.ndarray) -> pa.Table:
    sequence = pa.array(words.sequence[at])
    predicted, label = words.predicted[at], words.label[at]
    return pa.table(
        {
            "example_id": words.example_id.take(sequence).cast(pa.string()),
            "source": words.source.take(sequence).cast(pa.string()),
            "source_row": words.source_row[words.sequence[at]],
            "word_index": words.word_index[at],
            "word": words.word.take(pa.array(at)).cast(pa.string()),
            "label": label,
            "predicted": predicted,
            "other": np.where(predicted != label, predicted, words.second[at]),
            "loss": words.loss[at],
        }
    )


def _issue(row: Mapping[str, object], tags: tuple[str, ...]) -> Issue:
    label, predicted, other = (int(str(row[name])) for name in ("label", "predicted", "other"))
    return Issue(
        str(row["example_id"] or ""), str(row["source"]), int(str(row["source_row"])), int(str(row["word_index"])),
        None if row["word"] is None else str(row["word"]), tags[label], tags[predicted],
        tags[other] if other >= 0 else tags[label], math.nan, float(str(row["loss"])),
    )  # fmt: skip


class Reading:
    """What one reading of the ranked issues has come to, in order: which words of the sample it has passed."""

    def __init__(self) -> None:
        self._of: object = None
        self._order: list[Key] = []
        self._at: dict[Key, int] = {}

    def begin(self, of: object, again: bool) -> None:
        """Go on, or begin anew if `again`, or if it is of other issues, or in another order."""
        if again or of != self._of:
            self._of, self._order, self._at = of, [], {}

    def meet(self, key: Key) -> None:
        """Come to a word."""
        if key not in self._at:
            self._at[key] = len(self._order)
            self._order.append(key)

    def before(self, key: Key) -> list[Key]:
        """The words before one; none if it was not met."""
        return self._order[: self._at.get(key, 0)]
