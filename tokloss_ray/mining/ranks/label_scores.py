"""How suspicious the label of each word is: the higher, the more. Which rank is how good: docs/label_issues.md.

All assume that the model was not trained on these labels; a model that was has learnt their errors too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tokloss_ray.errors import Refused
from tokloss_ray.mining.words.spans import both_spans
from tokloss_ray.mining.words.words import Words
from tokloss_ray.ragged import positions
from tokloss_ray.tags.schemes import DEFAULT, Spans, read_tag_set

PRIOR_ADJUSTED, BY_LOSS, MARGIN, ENTROPY = "prior-adjusted", "loss", "margin", "confidence-weighted-entropy"
CONFIDENT_JOINT, CONFIDENT_LEARNING = "confident-joint", "confident-learning"
RANKS = (PRIOR_ADJUSTED, BY_LOSS, MARGIN, ENTROPY, CONFIDENT_JOINT, CONFIDENT_LEARNING)

PRIOR_WEIGHT = 0.25
"""How much of the log prior is taken off. 0 misses entities that the annotator dropped, 0.5 suspects too many that the
model does not know; docs/label_issues.md has figures."""

_TINY = 1e-30  # a probability below float32's is taken for this


def check_rank(rank: str, probs: bool) -> None:
    """See that there is such a rank, and what it needs. probs: the probabilities of all tags were kept.

    Raises:
        Refused: there is not.
    """
    if rank not in RANKS:
        raise Refused(f"there is no rank {rank}: name one of {', '.join(RANKS)}")
    if rank == ENTROPY and not probs:
        raise Refused(f"--rank {rank} needs the probabilities of all tags: score with --keep-probs, or take another")


def label_scores(
    words: Words, labels: Mapping[str, int] | None = None, rank: str = PRIOR_ADJUSTED, scheme: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Score of each word, [N] float64, and the code of the tag it should have instead, [N] int32 (-1: there is none).

    labels: labelled words of the whole corpus by tag, for the prior; without it those of `words`. The confident ranks
    score as `loss` does; which words they take is a matter of all words together (`confident`).
    """
    if rank == PRIOR_ADJUSTED:
        raw, other = prior_adjusted(words, log_priors(words, labels))
        return shared_evidence(raw, words, scheme), other
    other, other_prob = _best_other(words)
    if rank == MARGIN:
        return other_prob - np.exp(-words.loss.astype(np.float64)), other
    if rank == ENTROPY:
        return _weighted_entropy(words), other
    return words.loss.astype(np.float64), other


def log_priors(words: Words, labels: Mapping[str, int] | None = None) -> np.ndarray:
    """[C]: log of each tag's share of the labels; one is added to each count, so that no tag has none."""
    if labels is None:
        count = np.bincount(words.label, minlength=len(words.tags))
    else:
        count = np.array([labels.get(tag, 0) for tag in words.tags])
    return np.log((count + 1) / (count.sum() + len(count)))


def prior_adjusted(words: Words, log_prior: np.ndarray, weight: float = PRIOR_WEIGHT) -> tuple[np.ndarray, np.ndarray]:
    """Prior-adjusted log-odds of the best other tag against the label, [N] float64, and that tag's code, [N] int32.

    With a = weight, the maximum over tags k other than the label of log p(k) - a log prior(k), minus the same for the
    label. Of other tags only the two most probable are known; more were never needed (measured). The label's own
    log p is its loss, negated. Positive where another tag is the better explanation.
    """
    adjusted = []
    weighted = weight * log_prior
    for code, prob in ((words.predicted, words.predicted_prob), (words.second, words.second_prob)):
        odds = np.log(np.maximum(prob.astype(np.float64), _TINY)) - weighted[code]
        adjusted.append(np.where((code == words.label) | (code < 0), -np.inf, odds))
    first, second = adjusted
    best = np.maximum(first, second)
    other = np.where(np.isneginf(best), -1, np.where(first >= second, words.predicted, words.second))
    own = -words.loss.astype(np.float64) - weighted[words.label]
    return np.where(other < 0, -own, best - own), other.astype(np.int32)


def shared_evidence(scores: np.ndarray, words: Words, scheme: str | None = None) -> np.ndarray:
    """Scores [N] in which the wrong words of one entity speak for one another.

    Where label and prediction differ, the mean of a word's own score and of the mean over all such words of its region
    (`regions`). A wrong entity is wrong as a whole: its clear words lift those that the model is unsure of. Where tags
    mark no spans, scores stay as they are.
    """
    if (tag_set := read_tag_set(words.tags, scheme)) is None:
        return scores
    region, _ = regions(*both_spans(words, tag_set, DEFAULT), len(words))
    at = np.flatnonzero(words.label != words.predicted)
    number = np.bincount(region[at])
    total = np.bincount(region[at], weights=scores[at])
    shared = scores.copy()
    shared[at] = (scores[at] + (total / np.maximum(number, 1))[region[at]]) / 2
    return shared


def regions(label: Spans, predicted: Spans, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Label spans and predicted spans that share words, directly or by way of others, are one region.

    Returns: the region of each of `length` words, [N] int64, ascending (a word in no span is one by itself); and where
    the regions begin, [R] int64.
    """
    joined = np.zeros(length, dtype=bool)  # with the word before
    for spans in (label, predicted):
        joined[positions(spans.start + 1, spans.stop - spans.start - 1)] = True
    return np.cumsum(~joined) - 1, np.flatnonzero(~joined)


def _best_other(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """The most probable tag other than the label (-1: none), and its probability."""
    right = words.predicted == words.label
    other = np.where(right, words.second, words.predicted).astype(np.int32)
    return other, np.where(right, words.second_prob, words.predicted_prob).astype(np.float64)


def _weighted_entropy(words: Words) -> np.ndarray:
    """cleanlab's confidence-weighted entropy, negated: with x the entropy (1 at most) over the label's probability,
    -log(1 + x) / x. As there, x below 1e-6 counts as suspicious again."""
    assert words.probs is not None
    probs = words.probs.astype(np.float64)
    entropy = -(probs * np.log(np.maximum(probs, np.finfo(np.float64).tiny))).sum(axis=1) / np.log(probs.shape[1])
    x = entropy / np.maximum(probs[np.arange(len(probs)), words.label], 1e-6)
    return -np.log1p(x) / np.maximum(x, 1e-6)
