"""What a reviewer's decisions say about the issues that are left: a small model, drawn towards the order of the table.

A logistic regression of "the label was changed" on the score and on effects of the label, the suggestion, the pair of
both, the shape of the word, and the word itself. Every effect has a normal prior around 0, and the weight of the score
one around a positive value, so that few decisions move little: without decisions the order is that of the table. It is
fitted by Newton's method to a few hundred effects at most, in milliseconds; the new order of a million issues takes a
few look-ups and a sort.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.output.decisions import Decision, tag_of
from tokloss_ray.review.issues import Index

EVERY = 50
"""Decisions after which issues are ranked again."""
MOST_DECISIONS = 5_000
"""That are learnt from, the latest."""
MOST_WORDS = 300
"""With effects of their own: those that were decided on most often."""

_SCORE, _SCORE_SD, _CONSTANT_SD = 0.5, 0.2, 3.0
_SD = {"label": 0.3, "suggested": 0.3, "pair": 0.42, "shape": 0.3, "word": 0.42}
"""Prior mean and deviation of the score's weight, in log-odds per point, and deviations of effects. Chosen with
`benchmarks/learning.py`: with wider ones more is found in the first 200 words, and less in 2,000."""
_STEPS = 12
SHAPES = ("lower", "title", "upper", "digits", "other")


class Learnt(NamedTuple):
    """Effects in log-odds: `score` per point; the others by name of a kind, for what has been decided on."""

    score: float
    effects: dict[str, dict[tuple[str | None, ...], float]]


class Rate(NamedTuple):
    """Of the issues of one pair of tags: how many were decided, and how often the label was changed."""

    label: str
    suggested: str
    decided: int
    changed: int


Example = tuple[str | None, str, str, float, bool]
"""Word, label, suggestion, score, and whether the label was changed."""


def examples(decisions: Sequence[Decision]) -> list[Example]:
    """What there is to learn from: decisions that count, and have a score."""
    found: list[Example] = []
    for decision in decisions:
        if decision.counts and decision.score is not None and decision.suggested_label is not None:
            at = decision.word_index - decision.start
            label = decision.labels[at]
            changed = tag_of(decision, decision.word_index) != label
            found.append((decision.words[at], label or "", decision.suggested_label, decision.score, changed))
    return found[-MOST_DECISIONS:]


def shapes(words: pa.Array) -> np.ndarray:
    """[n] int8: the shape of each word, an index into `SHAPES`; `other` for null."""
    digits = pc.match_substring_regex(words, r"\d")
    cases = [pc.utf8_is_lower(words), pc.utf8_is_title(words), pc.utf8_is_upper(words)]
    lower, title, upper, digit = (pc.fill_null(c, False).to_numpy(zero_copy_only=False) for c in (*cases, digits))
    return np.select([digit, lower, title, upper], [3, 0, 1, 2], 4).astype(np.int8)


def fit(given: Sequence[Example]) -> Learnt:
    """The most probable effects, given the decisions and the priors. given: at least one."""
    words = Counter(word for word, *_ in given)
    known = {word for word, count in words.most_common(MOST_WORDS) if count > 1}
    shape = shapes(pa.array([word for word, *_ in given], pa.string()))
    columns: dict[tuple[str, tuple[str | None, ...]], int] = {}
    used: list[list[int]] = []
    for (word, label, suggested, _, _), of_shape in zip(given, shape.tolist(), strict=True):
        names: list[tuple[str, tuple[str | None, ...]]] = [
            ("label", (label,)), ("suggested", (suggested,)), ("pair", (label, suggested)),
            ("shape", (SHAPES[of_shape],)), *([("word", (word,))] if word in known else []),
        ]  # fmt: skip
        used.append([columns.setdefault(name, len(columns)) for name in names])
    design = np.zeros((len(given), 2 + len(columns)))
    design[:, 0] = 1.0
    design[:, 1] = [score for _, _, _, score, _ in given]
    for row, at in enumerate(used):
        design[row, [2 + i for i in at]] = 1.0
    mean = np.zeros(design.shape[1])
    mean[1] = _SCORE
    deviation = np.array([_CONSTANT_SD, _SCORE_SD, *(_SD[kind] for kind, _ in columns)])
    weights = _most_probable(design, np.array([changed for *_, changed in given], float), mean, deviation**-2)
    effects: dict[str, dict[tuple[str | None, ...], float]] = {kind: {} for kind in _SD}
    for (kind, name), i in columns.items():
        effects[kind][name] = float(weights[2 + i])
    return Learnt(max(float(weights[1]), 0.05), effects)


def _most_probable(design: np.ndarray, truth: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """[columns]: logistic regression with a normal prior, by Newton's method with halved steps where one overshoots."""

    def loss(weights: np.ndarray) -> float:
        logits = design @ weights
        return float(np.sum(np.logaddexp(0, logits) - truth * logits) + 0.5 * precision @ (weights - mean) ** 2)

    weights, now = mean.copy(), loss(mean)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (p - truth) + precision * (weights - mean)
        curvature = (design.T * (p * (1 - p))) @ design + np.diag(precision)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while (then := loss(weights - size * step)) > now and size > 1e-3:
            size /= 2
        weights, before, now = weights - size * step, now, then
        if before - now < 1e-6:
            break
    return weights


def values(learnt: Learnt, index: Index) -> np.ndarray:
    """[N] float64: the new score of each row of the table, higher is more suspicious; its zero means nothing."""
    label, suggested = index.codes["label"], index.codes["suggested_label"]
    of_label, of_suggested = index.strings["label"].to_pylist(), index.strings["suggested_label"].to_pylist()
    of_word = _by_shape(learnt, index.strings["word"])
    pair = np.zeros((len(of_label), len(of_suggested)))
    for i, a in enumerate(of_label):
        for j, b in enumerate(of_suggested):
            pair[i, j] = learnt.effects["pair"].get((a, b), 0.0)
            pair[i, j] += learnt.effects["label"].get((a,), 0.0) + learnt.effects["suggested"].get((b,), 0.0)
    return learnt.score * index.score + pair[label, suggested] + of_word[index.codes["word"]]


def _by_shape(learnt: Learnt, words: pa.Array) -> np.ndarray:
    """[distinct words]: the effects of each word and of its shape."""
    found = np.array([learnt.effects["shape"].get((name,), 0.0) for name in SHAPES])[shapes(words)]
    own = learnt.effects["word"]
    if own:
        at = pc.index_in(pa.array([name for (name,) in own], words.type), value_set=words)
        known = pc.is_valid(at).to_numpy(zero_copy_only=False)
        found[pc.fill_null(at, 0).to_numpy(zero_copy_only=False)[known]] += np.array([*own.values()])[known]
    return found


def rates(given: Sequence[Example]) -> list[Rate]:
    """How often each pair of tags was changed, the pair that was decided on most often first."""
    decided = Counter((label, suggested) for _, label, suggested, _, _ in given)
    changed = Counter((label, suggested) for _, label, suggested, _, is_changed in given if is_changed)
    return [Rate(*pair, count, changed[pair]) for pair, count in decided.most_common()]
