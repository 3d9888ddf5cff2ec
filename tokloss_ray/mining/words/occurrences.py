"""How each word is labelled everywhere: counts of (word, tag), made in a first pass and looked up in the second.

A word is known by a 64-bit number made of its bytes, so a pair takes 18 bytes and counting does not hold the strings.
(Two of ten million different words have the same number with a probability of about 3 in a million.)

Counts of parts add up, whatever the parts, so they are exact. Only `MOST_PAIRS` pairs are held: where a corpus has
more, the rarest words are dropped on the way, which is exact for every word but those seen about as rarely. At the end
words that were seen once go: they have no other place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.words.words import Words

MOST_PAIRS = 16_000_000
"""Pairs of word and tag that are held between parts: 288 MB. A corpus of a billion words seldom has as many."""

_DENSE = 4
"""A table of counts by word and tag is an array if it has no more entries than so many for each word asked for."""

_UNKNOWN = 0  # the number of a word that is null: no word has other places of it
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class WordCounts:
    """P distinct pairs of a word and a tag, sorted by both.

    Attributes:
        word: [P] uint64, the word's number (`word_numbers`).
        tag: [P] int16 codes.
        count: [P] int64, how often the word is labelled so.
        dropped: labels of the most frequent word that was dropped, 0 if none was; words seen no more often may be
            missing or be counted too low.
    """

    word: np.ndarray
    tag: np.ndarray
    count: np.ndarray
    dropped: int = 0

    def __len__(self) -> int:
        """P."""
        return len(self.word)


class Elsewhere(NamedTuple):
    """What is known of the other places of N words.

    Attributes:
        others: [N] int64, other places of the same word; 0 where there is none, or none is known.
        counts: for each array of tag codes asked for, [N] int64, how many of these have that tag.
    """

    others: np.ndarray
    counts: tuple[np.ndarray, ...]


def word_numbers(strings: pa.Array) -> np.ndarray:
    """[n] uint64: a number for each string, the same wherever it is computed; 0 for null.

    A polynomial of the bytes, each replaced by a scrambled number first, modulo 2**64.
    """
    known = pc.fill_null(strings.cast(pa.large_string()), "")
    _, offsets_buffer, data = known.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[known.offset : known.offset + len(known) + 1]
    if not len(known):
        return np.zeros(0, np.uint64)
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    place = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    with np.errstate(over="ignore"):
        powers = np.multiply.accumulate(np.full(max(int(lengths.max()), 1), _ODD))
        terms = np.cumsum(_SCRAMBLED[values] * powers[place], dtype=np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), terms])
    ends = offsets - offsets[0]
    numbers = np.maximum(sums[ends[1:]] - sums[ends[:-1]], np.uint64(_UNKNOWN + 1))
    return np.where(strings.is_valid().to_numpy(zero_copy_only=False), numbers, np.uint64(_UNKNOWN))


def _scrambled() -> np.ndarray:
    """[256] uint64: an arbitrary number for each byte (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = (np.arange(1, 257, dtype=np.uint64)) * _ODD
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_SCRAMBLED = _scrambled()


def count_labels(word: pa.DictionaryArray, label: np.ndarray, tags: int) -> WordCounts:
    """The pairs of some words. word: [N] strings. label: [N] codes below `tags`. Words that are null are left out."""
    if word.null_count:
        known = word.is_valid().to_numpy(zero_copy_only=False)
        word, label = word.drop_null(), label[known]
    keys = word.indices.to_numpy().astype(np.int64) * tags + label
    pairs, count = _distinct(keys, len(word.dictionary) * tags)
    code, tag = np.divmod(pairs, tags)
    used, place = np.unique(code, return_inverse=True)
    numbers = word_numbers(word.dictionary.take(pa.array(used)))
    return _summed(numbers[place], tag.astype(np.int16), count)


def _distinct(keys: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of integers in [0, size), ascending, and how often each occurs."""
    if size > 8 * len(keys) + 1024:
        return np.unique(keys, return_counts=True)
    count = np.bincount(keys, minlength=size)
    distinct = np.flatnonzero(count)
    return distinct, count[distinct]


def _summed(word: np.ndarray, tag: np.ndarray, count: np.ndarray, dropped: int = 0) -> WordCounts:
    """Pairs sorted, those that occur twice as one."""
    order = np.lexsort((tag, word))
    word, tag, count = word[order], tag[order], count[order]
    first = np.ones(len(word), dtype=bool)
    first[1:] = (word[1:] != word[:-1]) | (tag[1:] != tag[:-1])
    at = np.flatnonzero(first)
    sums = np.add.reduceat(count, at) if len(at) else np.zeros(0, np.int64)
    return WordCounts(word[at], tag[at], sums.astype(np.int64), dropped)


def add_counts(parts: Iterable[WordCounts], most: int = MOST_PAIRS) -> WordCounts:
    """The counts of all parts, with no more than `most` pairs.

    Parts are added when they amount to as much as what is there, so that each pair is sorted a few times only, and at
    most twice `most` pairs and one part are held.
    """
    whole = _summed(np.zeros(0, np.uint64), np.zeros(0, np.int16), np.zeros(0, np.int64))
    waiting: list[WordCounts] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= min(max(len(whole), 1 << 20), most):
            whole, waiting = _within(_added([whole, *waiting]), most), []
    return _within(_added([whole, *waiting]), most)


def repeated(counts: WordCounts) -> WordCounts:
    """The counts of words seen more than once: the others have no other place."""
    return _without_rare(counts, 2)


def _added(parts: Sequence[WordCounts]) -> WordCounts:
    word, tag, count = (np.concatenate([getattr(part, name) for part in parts]) for name in ("word", "tag", "count"))
    return _summed(word, tag, count, max(part.dropped for part in parts))


def _within(counts: WordCounts, most: int) -> WordCounts:
    """Where there are too many pairs, without the rarest words, so that half as many again fit in."""
    if len(counts) <= most:
        return counts
    totals = _totals(counts)[1]
    pairs_of = np.bincount(totals)  # pairs whose word was seen so often
    kept = np.cumsum(pairs_of[::-1])[::-1]  # or more often
    least = int(np.flatnonzero(kept <= most * 2 // 3)[0]) if (kept <= most * 2 // 3).any() else len(pairs_of)
    return _without_rare(counts, least, max(counts.dropped, least - 1))


def _without_rare(counts: WordCounts, least: int, dropped: int | None = None) -> WordCounts:
    keep = _totals(counts)[1] >= least
    return WordCounts(
        counts.word[keep], counts.tag[keep], counts.count[keep], counts.dropped if dropped is None else dropped
    )


def _totals(counts: WordCounts) -> tuple[np.ndarray, np.ndarray]:
    """Where the pairs of each word begin, [W]; and of each pair how often its word was seen, [P] int64."""
    if not len(counts):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first = np.flatnonzero(np.append(True, counts.word[1:] != counts.word[:-1]))
    sizes = np.diff(np.append(first, len(counts)))
    return first, np.repeat(np.add.reduceat(counts.count, first), sizes)


def count_words(words: Words) -> WordCounts:
    """The pairs of some words in memory."""
    return add_counts([count_labels(words.word, words.label, len(words.tags))])


def elsewhere(words: Words, counts: WordCounts, asked: Sequence[np.ndarray]) -> Elsewhere:
    """What is known of the other places of each word, its own label left out.

    counts: of a corpus that the words are part of. asked: arrays of tag codes, [N] each; -1 is no tag.
    """
    size = len(words.tags)
    nulls = words.word.null_count > 0
    codes = pc.fill_null(words.word.indices, 0) if nulls else words.word.indices
    codes = codes.to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = word_numbers(words.word.dictionary)
    if not len(numbers):  # all words are null
        none = np.zeros(len(words), np.int64)
        return Elsewhere(none, (none,) * len(asked))
    begin, end = (np.searchsorted(counts.word, numbers, side) for side in ("left", "right"))
    # The pairs of the words at hand, with the word's code in place of its number.
    length = end - begin
    local = np.repeat(np.arange(len(numbers)), length)
    at = np.repeat(begin - np.cumsum(length) + length, length) + np.arange(len(local))
    count = counts.count[at]
    total = np.bincount(local, weights=count, minlength=len(numbers)).astype(np.int64)
    table = _Table(local * size + counts.tag[at], count, len(numbers) * size, len(words))
    out = ~words.word.is_valid().to_numpy(zero_copy_only=False) if nulls else None
    others = np.maximum(total - 1, 0)[codes]
    base = codes * size
    found = []
    for tag in asked:
        number = table.of(base + tag)
        number -= tag == words.label
        number[(tag < 0) | (number < 0)] = 0
        found.append(number)
    if out is not None:
        for values in (others, *found):
            values[out] = 0
    return Elsewhere(others, tuple(found))


class _Table:
    """Counts by key: an array where that is small, otherwise looked up in the sorted keys."""

    def __init__(self, keys: np.ndarray, count: np.ndarray, size: int, asked: int) -> None:
        self.keys, self.count = keys, count
        self.dense: np.ndarray | None = None
        if size <= _DENSE * asked:
            self.dense = np.zeros(size + 1, np.int64)
            self.dense[keys] = count

    def of(self, keys: np.ndarray) -> np.ndarray:
        """[N] counts, 0 where there is none."""
        if self.dense is not None:
            return self.dense[keys]
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.count[at], 0)
