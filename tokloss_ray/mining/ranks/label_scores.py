"""How suspicious the label of each word is: the higher, the more. Which rank is how good: docs/label_issues.md.

All assume that the model has not learnt these labels by heart; one that has seen them long enough knows their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tokloss_ray.errors import Refused
from tokloss_ray.mining.ranks.confident import NOISE_RATE, OFF_DIAGONAL, selection_by
from tokloss_ray.mining.ranks.selection import HIGHEST, Selection
from tokloss_ray.mining.words.occurrences import WordCounts, count_words, elsewhere
from tokloss_ray.mining.words.spans import both_spans
from tokloss_ray.mining.words.words import Words
from tokloss_ray.ragged import positions
from tokloss_ray.tags.schemes import Spans, TagSet, read_tag_set

Labels = Mapping[str, int] | None
"""Labelled words of the whole corpus by tag."""

Scores = tuple[np.ndarray, np.ndarray]
"""Of each word the score, [N] float64, and the code of the tag it should have instead, [N] int32 (-1: none)."""


class Places(NamedTuple):
    """The other places of each of N words, and how many of them have one of three tags, [N] int64 each."""

    others: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    second: np.ndarray


PRIOR_WEIGHT = 0.25
"""How much of the log prior is taken off. 0 misses entities that the annotator dropped, 0.5 suspects too many that the
model does not know; docs/label_issues.md has figures."""

SURFACE_WEIGHT, SURFACE_SMOOTHING = 0.5, 4.0
"""How much the other places of the same word count beside the model, and how many places the prior is worth."""

_TINY = 1e-30  # a probability below float32's is taken for this


def log_priors(words: Words, labels: Labels = None) -> np.ndarray:
    """[C]: log of each tag's share of the labels; one is added to each count, so that no tag has none."""
    if labels is None:
        count = np.bincount(words.label, minlength=len(words.tags))
    else:
        count = np.array([labels.get(tag, 0) for tag in words.tags])
    return np.log((count + 1) / (count.sum() + len(count)))


def prior_adjusted(
    words: Words, log_prior: np.ndarray, weight: float = PRIOR_WEIGHT, surface: Sequence[np.ndarray] | None = None
) -> Scores:
    """Prior-adjusted log-odds of the best other tag against the label, [N] float64, and that tag's code, [N] int32.

    With a = weight, the maximum over tags k other than the label of log p(k) - a log prior(k), minus the same for the
    label. Of other tags only the two most probable are known; more were never needed (measured). The label's own
    log p is its loss, negated. Positive where another tag is the better explanation.

    surface: what is added for the label, for the predicted tag and for the second, [N] each (`surface_evidence`).
    """
    for_label, *for_others = surface if surface is not None else (0.0, 0.0, 0.0)
    adjusted = []
    weighted = weight * log_prior
    alternatives = ((words.predicted, words.predicted_prob), (words.second, words.second_prob))
    for (code, prob), more in zip(alternatives, for_others, strict=True):
        odds = np.log(np.maximum(prob.astype(np.float64), _TINY)) - weighted[code] + more
        adjusted.append(np.where((code == words.label) | (code < 0), -np.inf, odds))
    first, second = adjusted
    best = np.maximum(first, second)
    other = np.where(np.isneginf(best), -1, np.where(first >= second, words.predicted, words.second))
    own = -words.loss.astype(np.float64) - weighted[words.label] + for_label
    return np.where(other < 0, -own, best - own), other.astype(np.int32)


def places(words: Words, counts: WordCounts) -> Places:
    """How the same words are labelled elsewhere in a corpus that these words are part of."""
    found = elsewhere(words, counts, (words.label, words.predicted, words.second))
    return Places(found.others, *found.counts)


def surface_evidence(
    words: Words,
    log_prior: np.ndarray,
    at: Places,
    weight: float = SURFACE_WEIGHT,
    smoothing: float = SURFACE_SMOOTHING,
) -> tuple[np.ndarray, ...]:
    """How the word is labelled elsewhere, as evidence for its label, its predicted and its second tag, [N] each.

    weight * (log p(k | word) - log prior(k)), the pointwise information of word and tag, where p(k | word) is the share
    of k in the word's other places, with `smoothing` more of them divided as the prior. 0 where there is no other
    place. Without the prior term frequent tags would be favoured twice, by the model and by the counts.
    """
    per_prior = np.exp(-log_prior)
    of_all = np.log(at.others + smoothing)

    def evidence(tag: np.ndarray, count: np.ndarray) -> np.ndarray:
        # The share over the prior: its denominator is the same for all tags.
        return weight * (np.log(count * per_prior[tag] + smoothing) - of_all)

    pairs = ((words.label, at.label), (words.predicted, at.predicted), (words.second, at.second))
    return tuple(evidence(tag, count) for tag, count in pairs)


def shared_evidence(scores: np.ndarray, words: Words, scheme: str | None = None, share: float = 0.5) -> np.ndarray:
    """Scores [N] in which the wrong words of one entity speak for one another.

    Where label and prediction differ, the mean over all such words of its region (`regions`) takes a `share` of the
    word's own score. A wrong entity is wrong as a whole: its clear words lift those that the model is unsure of. With a
    share of 1 they have one score and stand together in a ranking. Where tags mark no spans, scores stay as they are.
    """
    if (tag_set := read_tag_set(words.tags, scheme)) is None:
        return scores
    region, _ = regions(*both_spans(words, tag_set), len(words))
    at = np.flatnonzero(words.label != words.predicted)
    number = np.bincount(region[at])
    total = np.bincount(region[at], weights=scores[at])
    shared = scores.copy()
    shared[at] = (1 - share) * scores[at] + share * (total / np.maximum(number, 1))[region[at]]
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


def issues_of_words(words: Words, tag_set: TagSet | None, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the words at some positions, [n], the issue that each is part of: the word index at which its region
    (`regions`) begins, and how many words of it have another label than the prediction, [n] each. Where tags mark no
    spans each word is a region."""
    region, begin = regions(*both_spans(words, tag_set), len(words))
    differ = np.bincount(region, weights=words.label != words.predicted, minlength=len(begin))
    return words.word_index[begin[region[at]]], differ[region[at]].astype(np.int32)


def _surface(words: Words, labels: Labels, scheme: str | None, at: Places | None) -> Scores:
    assert at is not None
    log_prior = log_priors(words, labels)
    raw, other = prior_adjusted(words, log_prior, surface=surface_evidence(words, log_prior, at))
    return shared_evidence(raw, words, scheme, share=1.0), other


def _prior_adjusted(words: Words, labels: Labels, scheme: str | None, at: Places | None) -> Scores:
    raw, other = prior_adjusted(words, log_priors(words, labels))
    return shared_evidence(raw, words, scheme), other


def _loss(words: Words, labels: Labels, scheme: str | None, at: Places | None) -> Scores:
    return words.loss.astype(np.float64), _best_other(words)[0]


def _margin(words: Words, labels: Labels, scheme: str | None, at: Places | None) -> Scores:
    other, other_prob = _best_other(words)
    return other_prob - np.exp(-words.loss.astype(np.float64)), other


def _weighted_entropy(words: Words, labels: Labels, scheme: str | None, at: Places | None) -> Scores:
    """cleanlab's confidence-weighted entropy, negated: with x the entropy (1 at most) over the label's probability,
    -log(1 + x) / x. As there, x below 1e-6 counts as suspicious again."""
    assert words.probs is not None
    probs = words.probs.astype(np.float64)
    entropy = -(probs * np.log(np.maximum(probs, np.finfo(np.float64).tiny))).sum(axis=1) / np.log(probs.shape[1])
    x = entropy / np.maximum(probs[np.arange(len(probs)), words.label], 1e-6)
    return -np.log1p(x) / np.maximum(x, 1e-6), _best_other(words)[0]


def _best_other(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """The most probable tag other than the label (-1: none), and its probability."""
    right = words.predicted == words.label
    other = np.where(right, words.second, words.predicted).astype(np.int32)
    return other, np.where(right, words.second_prob, words.predicted_prob).astype(np.float64)


@dataclass(frozen=True)
class Rank:
    """A way to rank labels.

    Attributes:
        name: as `--rank` has it.
        scores: words, labelled words of the whole corpus by tag, scheme, the other places of each word if the rank
            reads them -> the score of each word, and the tag it should have instead.
        selection: which words become rows of `label_issues`.
        reads_probs: it reads the probabilities of all tags, where they were kept.
        needs_probs: it cannot do without them.
        reads_places: it reads how the same words are labelled elsewhere, for which the data are read once more.
    """

    name: str
    scores: Callable[[Words, Labels, str | None, Places | None], Scores]
    selection: Selection = HIGHEST
    reads_probs: bool = False
    needs_probs: bool = False
    reads_places: bool = False


SURFACE, PRIOR_ADJUSTED = "surface", "prior-adjusted"
DEFAULT = SURFACE
RANKS = {
    rank.name: rank
    for rank in (
        Rank(SURFACE, _surface, reads_places=True),
        Rank(PRIOR_ADJUSTED, _prior_adjusted),
        Rank("loss", _loss),
        Rank("margin", _margin),
        Rank("confidence-weighted-entropy", _weighted_entropy, reads_probs=True, needs_probs=True),
        Rank("confident-joint", _loss, selection_by(NOISE_RATE), reads_probs=True),
        Rank("confident-learning", _loss, selection_by(OFF_DIAGONAL), reads_probs=True),
    )
}
"""By name; the first is the default."""


def check_rank(rank: str, probs: bool) -> None:
    """See that there is such a rank, and what it needs. probs: the probabilities of all tags were kept.

    Raises:
        Refused: there is not.
    """
    if rank not in RANKS:
        raise Refused(f"unknown rank {rank}: choose one of {', '.join(RANKS)}")
    if RANKS[rank].needs_probs and not probs:
        raise Refused(
            f"--rank {rank} needs the probabilities of all tags: score with --keep-probs, or choose another rank"
        )


def label_scores(
    words: Words,
    labels: Labels = None,
    rank: str = DEFAULT,
    scheme: str | None = None,
    counts: WordCounts | None = None,
) -> Scores:
    """Score of each word, [N] float64, and the code of the tag it should have instead, [N] int32 (-1: there is none).

    labels: labelled words of the whole corpus by tag, for the prior; without it those of `words`. counts: of the words
    of the whole corpus, for their other places; without it those of `words`.
    """
    ranking = rank_labels(words, labels, rank, scheme, counts)
    return ranking.score, ranking.suggested


@dataclass(frozen=True)
class Ranking:
    """The N words of a part, and how suspicious their labels are: what all tables of issues are made of.

    Attributes:
        words: the words.
        tag_set: how their tags are read; None where tags mark no spans.
        rank: what they are ranked by.
        score: [N] float64, the higher, the more suspicious.
        suggested: [N] int32, the code of the tag that a word should have instead, -1 where there is none.
        places: the other places of each word; None if the rank does not read them.
    """

    words: Words
    tag_set: TagSet | None
    rank: Rank
    score: np.ndarray
    suggested: np.ndarray
    places: Places | None = None


def rank_labels(
    words: Words,
    labels: Labels = None,
    rank: str = DEFAULT,
    scheme: str | None = None,
    counts: WordCounts | None = None,
) -> Ranking:
    """Rank the labels of some words. Arguments as for `label_scores`; `labels` and `counts` must be the same for all
    parts.

    Raises:
        Refused: no such rank, or it needs probabilities that were not kept.
    """
    check_rank(rank, words.probs is not None)
    of = RANKS[rank]
    at = None
    if of.reads_places:
        at = places(words, count_words(words) if counts is None else counts)
    score, suggested = of.scores(words, labels, scheme, at)
    return Ranking(words, read_tag_set(words.tags, scheme), of, score, suggested, at)
