"""Confident learning: which labels are issues by the rule of cleanlab (Northcutt, Jiang and Chuang 2021, JAIR 70).

Figure by figure what `cleanlab.filter.find_label_issues` 2.9 does, so that its issues are the same. The threshold of a
class is its mean probability over the words labelled with it. A word counts for the class whose threshold it reaches;
of several, for the most probable class. That gives the confident joint, counts of words by label and counted class,
scaled to the number of words of each label. Two rules:

- `off_diagonal` takes the words that count for another class than their label: `filter_by="confident_learning"`.
- `noise_rate` takes of each label and other class as many words as the joint says, those with the largest difference
  of the two probabilities: `filter_by="prune_by_noise_rate"`, cleanlab's default.

A word whose label is its most probable class is never an issue.

The rules are a matter of all words together. So the label and the probabilities of every word are held to the end, 4
bytes per word and tag, and memory grows with the corpus (280 MB for 10 million words of 7 tags). With `probs` the
issues are exactly those of cleanlab; without, from the probabilities of the label and of the two best tags, the others
taken for 0. They are found over all words, slices or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.ranks.selection import RowsOf, Selection, highest
from tokloss_ray.mining.words.words import Words
from tokloss_ray.ragged import one_array

_SLACK = 1e-6  # how far below a threshold still reaches it
_LEAST = 2e-6  # a threshold is never less
_NO_SUCH_LABEL = 2.0  # the threshold that no probability reaches

_CODE, _PROBS = "label_code", "probs"

OFF_DIAGONAL, NOISE_RATE = "off_diagonal", "noise_rate"


def thresholds(label: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """[C]: mean probability of each class over the words labelled with it. label: [N] codes. probs: [N, C]."""
    means = [
        probs[:, code][label == code].mean() if (label == code).any() else _NO_SUCH_LABEL
        for code in range(probs.shape[1])
    ]
    return np.clip(means, _LEAST, None)


def counted_class(probs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """[N]: the class that a word counts for, -1 for none."""
    reached = probs >= limits - _SLACK
    number = reached.sum(axis=1)
    best = np.where(number > 1, probs.argmax(axis=1), reached.argmax(axis=1))
    return np.where(number > 0, best, -1)


def confident_joint(label: np.ndarray, counted: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] integers: words by label and counted class, scaled so that each row sums to the label's words."""
    some = counted >= 0
    joint = np.bincount(label[some].astype(np.int64) * classes + counted[some], minlength=classes**2)
    joint = joint.reshape(classes, classes)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    words = np.bincount(label, minlength=classes)
    scaled = (joint.T / joint.sum(axis=1) * words).T
    return _rounded(scaled / max(scaled.sum(), 1e-100) * words.sum())


def issues(label: np.ndarray, probs: np.ndarray, rule: str = NOISE_RATE) -> np.ndarray:
    """[N] bool: which labels are issues. label: [N] codes. probs: [N, C] probabilities; predictions out of sample."""
    classes = probs.shape[1]
    if not len(label):
        return np.zeros(0, dtype=bool)
    counted = counted_class(probs, thresholds(label, probs))
    if rule == OFF_DIAGONAL:
        found = (counted >= 0) & (counted != label)
    else:
        found = _most_unlike(label, probs, _removable(confident_joint(label, counted, classes)))
    favoured = probs.copy()
    favoured[np.arange(len(label)), label] += _SLACK
    return found & (favoured.argmax(axis=1) != label)


def _most_unlike(label: np.ndarray, probs: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Of each label and other class, the given number of words with the largest difference of probabilities."""
    found = np.zeros(len(label), dtype=bool)
    for given in range(len(number)):
        at = np.flatnonzero(label == given)
        if len(at) <= 1:
            continue
        for other in np.flatnonzero(number[:, given] > 0):
            if other != given:
                order = np.argsort(-(probs[at, other] - probs[at, given]))
                found[at[order[: number[other, given]]]] = True
    return found


def _removable(joint: np.ndarray) -> np.ndarray:
    """[other, given]: how many words to remove, when at least one of each label has to stay."""
    number = joint.T
    kept = np.maximum(number.diagonal(), 1)
    others = np.maximum(np.count_nonzero(number, axis=0) - 1.0, 1.0)
    reduced = np.maximum(number - (kept - number.diagonal()) / others, 0)
    np.fill_diagonal(reduced, kept)
    return _rounded(reduced.astype(np.int64))


def _rounded(matrix: np.ndarray) -> np.ndarray:
    """To integers, each row with its sum: where rounding changes it, the entries it changed most give way."""
    rows = []
    for row in matrix.astype(np.float64):
        whole = row.round()
        while missing := int(row.sum().round() - whole.sum()):
            step = 1 if missing > 0 else -1
            whole[np.argsort(row - whole)[::-step][: min(abs(missing), len(row))]] += step
        rows.append(whole.astype(np.int64))
    return np.array(rows)


def selection_by(rule: str) -> Selection:
    """The issues of a rule become rows of `label_issues`, and no other words."""
    return Selection(_every_word, _all_parts, partial(_issues_among, rule))


def _every_word(words: Words, score: np.ndarray, limit: int, rows_of: RowsOf) -> pa.Table:
    # A word whose label is the prediction is no issue: of these nothing but the probabilities is needed.
    none = words.label == words.predicted
    table = rows_of(pa.array(np.arange(len(words)), mask=none))
    probs = pa.FixedSizeListArray.from_arrays(pa.array(_all_probs(words).ravel()), len(words.tags))
    return table.append_column(_CODE, pa.array(words.label, pa.int32())).append_column(_PROBS, probs)


def _all_parts(parts: Sequence[pa.Table], by: Sequence[str], limit: int) -> pa.Table:
    return pa.concat_tables(parts)


def _issues_among(rule: str, parts: Sequence[pa.Table], by: Sequence[str], limit: int) -> pa.Table:
    table = pa.concat_tables(parts)
    size = table.schema.field(_PROBS).type.list_size
    probs = one_array(table.column(_PROBS)).flatten().to_numpy().reshape(-1, size)
    found = issues(table.column(_CODE).to_numpy(), probs, rule)
    return highest([table.drop_columns([_CODE, _PROBS]).take(pa.array(np.flatnonzero(found)))], by, limit)


def _all_probs(words: Words) -> np.ndarray:
    """[N, C] float32: the probabilities of all tags, or those that are known, without `--keep-probs`."""
    if words.probs is not None:
        return words.probs
    probs = np.zeros((len(words), len(words.tags)), dtype=np.float32)
    row = np.arange(len(words))
    has = words.second >= 0
    probs[row[has], words.second[has]] = words.second_prob[has]
    probs[row, words.label] = np.exp(-words.loss)
    probs[row, words.predicted] = words.predicted_prob
    return probs
