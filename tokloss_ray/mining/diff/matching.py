"""The same words in two outputs, side by side, some rows at a time.

Rows are matched by file and row where both outputs are of the same input files, else by example_id. Two runs may have
cut the input into different shards, so neither the files nor the rows in them correspond. By file and row: both
outputs have the rows of an input file in order, and it is looked up first which rows a file has, so that for some files
of A those of B are known. By example_id: each pass takes the ids with one remainder of a hash, as many passes as
keep memory bounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import Refused
from tokloss_ray.mining.diff.row_ranges import AFTER, BEFORE, batches_of, row_ranges
from tokloss_ray.mining.words.load import BATCH_TOKENS, read_tokens
from tokloss_ray.mining.words.words import Words, concat_words, first_tokens, no_words, take_sequences, take_words
from tokloss_ray.output.opened import Condition, ScoreFile, Scores, files_where
from tokloss_ray.output.run import read_run, same_input_files


@dataclass
class Matched:
    """How the rows and words of two outputs matched.

    Attributes:
        rows, words: those that both outputs have.
        only_a, only_b: rows that only one output has.
        words_only_a, words_only_b: words that only one model saw.
        label_conflicts, word_conflicts: words of both outputs with different labels, or that are different words.
        example: describes the first conflict.
        example_only: id of a row that only one output has.
    """

    rows: int = 0
    words: int = 0
    only_a: int = 0
    only_b: int = 0
    words_only_a: int = 0
    words_only_b: int = 0
    label_conflicts: int = 0
    word_conflicts: int = 0
    example: str = ""
    example_only: str = ""


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
        """Their labelled words, some rows at a time."""
        for tokens in read_tokens(files, self.scores.tags, self.by, self.where):
            yield first_tokens(tokens)


def matching_words(
    a: ComparedOutput, b: ComparedOutput, matched: Matched, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[Words, Words]]:
    """The words that both outputs label, some rows at a time: same sequences, same words, in the same order.

    The slices are those of A. `matched` gets the counts, also of what differs and is for the caller to refuse.

    Raises:
        Refused: an id stands for two rows.
        JobFailed: a file is gone or damaged.
    """
    chunks = _by_position(a, b, batch_tokens) if same_files(a.scores, b.scores) else _by_id(a, b, batch_tokens)
    for ours, theirs, keys in chunks:
        ours, theirs = _same_rows(ours, theirs, keys, matched)
        ours, theirs = _same_words(ours, theirs, matched)
        yield ours, theirs


def same_files(a: Scores, b: Scores) -> bool:
    """Whether two outputs were made from files of the same names and sizes, so that rows can be told by their place."""

    runs = [read_run(scores.outputs[0]) for scores in (a, b)]
    assert runs[0] is not None
    assert runs[1] is not None
    return same_input_files(runs[0], runs[1])


Keys = tuple[pa.Array, pa.Array]
Chosen = Callable[[Words], np.ndarray | None]
_PIECES = 1024


def _by_position(a: ComparedOutput, b: ComparedOutput, batch_tokens: int) -> Iterator[tuple[Words, Words, Keys]]:
    """Rows of the same stretch of a file; short stretches together, for a corpus may be of many small files."""
    pieces: list[tuple[Words, Words]] = []
    size = 0
    for ours, theirs in _stretches(a, b, batch_tokens):
        pieces.append((ours, theirs))
        size += len(ours) + len(theirs)
        if size >= batch_tokens // 2 or len(pieces) == _PIECES:
            yield _joined(pieces)
            pieces, size = [], 0
    if pieces:
        yield _joined(pieces)


def _joined(pieces: list[tuple[Words, Words]]) -> tuple[Words, Words, Keys]:
    def keys(side: int) -> pa.Array:
        return pa.array(np.concatenate([(i << 48) + piece[side].source_row for i, piece in enumerate(pieces)]))

    ours, theirs = (concat_words([piece[side] for piece in pieces]) for side in (0, 1))
    return ours, theirs, (keys(0), keys(1))


def _stretches(a: ComparedOutput, b: ComparedOutput, batch_tokens: int) -> Iterator[tuple[Words, Words]]:
    """For some files of A, the rows in them and the rows of B in the same place."""
    ranges_a, ranges_b = row_ranges(a.files), row_ranges(b.files)
    for source in dict.fromkeys([*ranges_a, *ranges_b]):
        theirs = ranges_b.get(source, [])
        batches = batches_of(ranges_a.get(source, []), batch_tokens)
        starts = [BEFORE, *(batch[0][0] for batch in batches[1:]), AFTER]
        for batch, (low, high) in zip(batches or [[]], pairwise(starts), strict=True):
            other = [file for first, last, file in theirs if first < high and last >= low]

            def within(words: Words, low: int = low, high: int = high) -> np.ndarray:
                return (words.source_row >= low) & (words.source_row < high)

            yield _rows_of(a.read(file for _, _, file in batch), a), _rows_of(b.read(other), b, within)


def _by_id(a: ComparedOutput, b: ComparedOutput, batch_tokens: int) -> Iterator[tuple[Words, Words, Keys]]:
    tokens = sum(file.tokens for side in (a, b) for file in side.files)
    passes = max(1, -(-tokens // (8 * batch_tokens)))
    for remainder in range(passes):

        def chosen(words: Words, remainder: int = remainder) -> np.ndarray | None:
            if passes == 1:
                return None
            hashes = [zlib.crc32(name.encode()) for name in words.example_id.to_pylist()]
            return np.array(hashes, dtype=np.int64) % passes == remainder

        ours, theirs = (_rows_of(side.read(side.files), side, chosen) for side in (a, b))
        yield ours, theirs, (ours.example_id, theirs.example_id)


def _rows_of(parts: Iterable[Words], output: ComparedOutput, chosen: Chosen = lambda words: None) -> Words:
    """The chosen rows of some parts as one; `chosen` gives None for all."""
    kept = []
    for part in parts:
        keep = chosen(part)
        kept.append(part if keep is None or keep.all() else take_sequences(part, np.flatnonzero(keep)))
    return concat_words(kept) if kept else no_words(output.scores.tags, output.by)


def _same_rows(a: Words, b: Words, keys: Keys, matched: Matched) -> tuple[Words, Words]:
    """The sequences of both sides, in the order of A."""
    both = pc.dictionary_encode(pa.concat_arrays(list(keys)))
    codes = both.indices.to_numpy()
    of_a, of_b = codes[: len(keys[0])], codes[len(keys[0]) :]
    for side in (of_a, of_b):
        counts = np.bincount(side, minlength=1)
        if len(side) and counts.max() > 1:
            name = both.dictionary[int(counts.argmax())].as_py()
            raise Refused(f"two rows have the example_id {name}, so rows cannot be told apart: score with unique ids")
    where_b = np.full(len(both.dictionary), -1)
    where_b[of_b] = np.arange(len(of_b))
    at_b = where_b[of_a]
    found = np.flatnonzero(at_b >= 0)
    matched.rows += len(found)
    matched.only_a += len(of_a) - len(found)
    matched.only_b += len(of_b) - len(found)
    if not matched.example_only and len(found) < len(of_a):
        matched.example_only = a.example_id[int(np.flatnonzero(at_b < 0)[0])].as_py()
    elif not matched.example_only and len(found) < len(of_b):
        matched.example_only = b.example_id[int(np.setdiff1d(np.arange(len(of_b)), at_b)[0])].as_py()
    return take_sequences(a, found), take_sequences(b, at_b[found])


def _same_words(a: Words, b: Words, matched: Matched) -> tuple[Words, Words]:
    """The words of both sides; what differs is counted."""
    width = 1 + max((int(w.word_index.max()) for w in (a, b) if len(w)), default=0)
    key_a, key_b = (w.sequence * width + w.word_index for w in (a, b))
    _, at_a, at_b = np.intersect1d(key_a, key_b, assume_unique=True, return_indices=True)
    matched.words += len(at_a)
    matched.words_only_a += len(a) - len(at_a)
    matched.words_only_b += len(b) - len(at_b)
    a, b = _take(a, at_a), _take(b, at_b)
    other_word = ~np.asarray(pc.equal(_texts(a.word), _texts(b.word)).fill_null(True))
    other_label = np.array(a.tags, dtype=object)[a.label] != np.array(b.tags, dtype=object)[b.label]
    matched.word_conflicts += int(other_word.sum())
    matched.label_conflicts += int(other_label.sum())
    if not matched.example and (conflicts := np.flatnonzero(other_word | other_label)).size:
        i = int(conflicts[0])
        name, index = a.example_id[int(a.sequence[i])].as_py(), int(a.word_index[i])
        left, right = ((w.word[i].as_py(), w.tags[w.label[i]]) for w in (a, b))
        matched.example = (
            f"word {index} of {name} is {left[0]!r} {left[1]} in one and {right[0]!r} {right[1]} in the other"
        )
    return a, b


def _take(words: Words, at: np.ndarray) -> Words:
    return words if len(at) == len(words) else take_words(words, at)


def _texts(words: pa.DictionaryArray) -> pa.Array:
    return words.cast(pa.string())
