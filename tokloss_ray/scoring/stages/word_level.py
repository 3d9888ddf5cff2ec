"""One label, prediction, probability and loss for each word, made of those of its tokens.

Each word of a row is in one of its windows: where it has its label, else where it would have it. So whatever the
windows, the lists of a row together have each word of which there is a token once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.output.windows import standing_tokens
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array
from tokloss_ray.schema import IGN, IGNORE_INDEX
from tokloss_ray.scoring.stages.row_tokenizer import NO_WORD

FIRST, MEAN, MAX, SUM, VOTE = "first", "mean", "max", "sum", "vote"


class WordLevel(NamedTuple):
    """How the values of tokens become that of their word.

    Attributes:
        loss: of the tokens that have a label, the first, mean, max or sum.
        tag: the prediction of the first token, or the one that most tokens have (vote).
    """

    loss: str
    tag: str


def word_columns(level: WordLevel, tags: tuple[str, ...], sequences: pa.Table) -> dict[str, pa.Array]:
    """The columns `schema.WORD_FIELDS` of scored sequences, which have word_ids.

    `word_index` has the words that a sequence stands for, ascending; the other lists have an entry for each. The
    probability of a voted tag is the mean of the probabilities that its tokens gave it.
    """
    lists = one_array(sequences.column(schema.WORD_IDS))
    lengths = list_lengths(lists)
    ids = pc.fill_null(lists.flatten(), NO_WORD).to_numpy(zero_copy_only=False)
    label, predicted, loss, prob = (
        one_array(sequences.column(name)).flatten().to_numpy(zero_copy_only=False)
        for name in (schema.LABEL_IDS, schema.PREDICTED_IDS, schema.LOSS, schema.PREDICTED_PROB)
    )
    first = one_array(sequences.column(schema.WINDOW)).to_numpy() == 0
    stands = standing_tokens(ids, label != IGNORE_INDEX, lengths, first) & (ids != NO_WORD)
    at = np.flatnonzero(stands)
    row = np.repeat(np.arange(len(lengths)), lengths)[at]
    begins = np.ones(len(at), dtype=bool)
    begins[1:] = (ids[at][1:] != ids[at][:-1]) | (row[1:] != row[:-1])
    start = np.flatnonzero(begins)
    word = np.cumsum(begins) - 1
    labelled = label[at] != IGNORE_INDEX
    count = np.bincount(word, weights=labelled, minlength=len(start))
    of_word = np.full(len(start), IGNORE_INDEX)
    np.maximum.at(of_word, word, label[at])  # all tokens of a word that have a label have the same
    losses = _losses(level.loss, loss[at].astype(np.float64), labelled, word, start, count)
    if level.tag == VOTE:
        tag, certain = _voted(predicted[at], prob[at].astype(np.float64), word, len(tags))
    else:
        tag, certain = predicted[at][start], prob[at][start]
    names = pa.array([*tags, IGN], pa.string())
    offsets = offsets_of(np.bincount(row[start], minlength=len(lengths)))
    flat = {
        schema.WORD_INDEX: pa.array(ids[at][start], pa.int32()),
        schema.WORD_LABEL: names.take(pa.array(np.where(count > 0, of_word, len(tags)))),
        schema.WORD_PREDICTED: names.take(pa.array(tag)),
        schema.WORD_PROB: pa.array(certain.astype(np.float32)),
        schema.WORD_LOSS: pa.array(losses.astype(np.float32), mask=count == 0),
    }
    return {name: list_array(values, offsets) for name, values in flat.items()}


def _losses(
    how: str, loss: np.ndarray, labelled: np.ndarray, word: np.ndarray, start: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """[words] float64, 0 where no token of the word has a label. word: of each token; start: first token of each."""
    if how == FIRST:
        return np.where(labelled, loss, 0)[start]
    if how == MAX:
        most = np.zeros(len(start))
        np.maximum.at(most, word, np.where(labelled, loss, 0))
        return most
    total = np.bincount(word, weights=np.where(labelled, loss, 0), minlength=len(start))
    return total / np.maximum(count, 1) if how == MEAN else total


def _voted(predicted: np.ndarray, prob: np.ndarray, word: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each word the tag that most of its tokens have, of several the one that comes first; and its mean probability
    over these tokens."""
    pairs, first, group, votes = np.unique(
        word * classes + predicted, return_index=True, return_inverse=True, return_counts=True
    )
    sums = np.bincount(group, weights=prob, minlength=len(pairs))
    of_word, tag = np.divmod(pairs, classes)
    order = np.lexsort((first, -votes, of_word))
    best = order[np.append(True, of_word[order][1:] != of_word[order][:-1])[: len(order)]]
    return tag[best], sums[best] / votes[best]
