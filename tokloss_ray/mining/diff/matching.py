"""The same words in two outputs, side by side, some rows at a time.

Rows are matched by file and row where both outputs are of the same input files (`by_place`), else by example_id
(`by_id`). Two runs may have cut the input into different shards, so neither the files nor the rows in them correspond.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import Refused
from tokloss_ray.mining.diff.by_id import rows_by_id
from tokloss_ray.mining.diff.by_place import rows_by_place
from tokloss_ray.mining.diff.compared import ComparedOutput
from tokloss_ray.mining.words.load import BATCH_TOKENS
from tokloss_ray.mining.words.words import Words, take_sequences, take_words
from tokloss_ray.output.opened import Scores
from tokloss_ray.output.run import read_run, recorded_inputs, same_input_files


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


def matching_words(
    a: ComparedOutput, b: ComparedOutput, matched: Matched, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[Words, Words]]:
    """The words of both outputs, some rows at a time: same sequences, same words, in the same order.

    The slices are those of A. `matched` gets the counts, also of what differs and is for the caller to refuse.

    Raises:
        Refused: an id stands for two rows.
        JobFailed: a file is gone or damaged.
    """
    rows = rows_by_place if same_files(a.scores, b.scores) else rows_by_id
    for ours, theirs, keys in rows(a, b, batch_tokens):
        ours, theirs = _same_rows(ours, theirs, keys, matched)
        ours, theirs = _same_words(ours, theirs, matched)
        yield ours, theirs


def same_files(a: Scores, b: Scores) -> bool:
    """Whether two outputs were made from files of the same names and sizes, so that rows can be told by their place."""
    outputs = a.outputs[0], b.outputs[0]
    runs = [run for output in outputs if (run := read_run(output)) is not None]
    if not any(run.additions for run in runs):
        return same_input_files(*runs)
    inputs = [recorded_inputs(output, run) for output, run in zip(outputs, runs, strict=True)]
    names = [{(f["source"], f["size"]) for f in table.to_pylist()} if table is not None else None for table in inputs]
    return names[0] is not None and names[0] == names[1]


def _same_rows(a: Words, b: Words, keys: tuple[pa.Array, pa.Array], matched: Matched) -> tuple[Words, Words]:
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
    other_label &= (a.label >= 0) & (b.label >= 0)  # one run may have read no labels
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
