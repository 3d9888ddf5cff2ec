"""How sure is a difference between two models: a paired bootstrap over sentences.

Both models are resampled with the same sentences, so that what makes a sentence hard for both cancels out. A sentence
enters as a few sums (spans annotated, predicted and right, words, losses), from which span F1 and mean loss of any
resample follow; no word is looked at again.

Intervals are bias-corrected and accelerated (BCa; Efron 1987, "Better Bootstrap Confidence Intervals", JASA 82).
p-values come from the resamples shifted to no difference (Efron and Tibshirani 1993, chapter 16; for two systems on one
test set: Berg-Kirkpatrick, Burkett and Klein 2012, EMNLP).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2_000
GROUPS = 20_000
_DRAWN_AT_ONCE = 4_000_000

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A figure of all sentences, and how it varies between resamples.

    Attributes:
        estimate: the figure itself.
        low, high: bounds of the BCa interval.
        p_value: how often resamples are as far from the estimate as the estimate is from 0, two-sided; at least
            1 / (resamples + 1).
        share_above: share of the resamples above 0, a resample of exactly 0 counting half.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    share_above: float


def paired_bootstrap(
    sums: np.ndarray,
    statistics: dict[str, Statistic],
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of some statistics, all from the same resamples of the same sentences.

    Args:
        sums: [G, K] float64, the sums of each sentence (or group of sentences, see `add_to_groups`).
        statistics: functions from totals [..., K] to figures [...].
        resamples: how many times G rows are drawn with replacement.
        level: of the intervals, such as 0.95.
        seed: same sums, same seed, same result.
    """
    totals = resampled_totals(sums, resamples, seed)  # [R, K]
    left_out = sums.sum(axis=0) - sums  # [G, K]
    return {
        name: _interval(statistic(sums.sum(axis=0)).item(), statistic(totals), statistic(left_out), level)
        for name, statistic in statistics.items()
    }


def resampled_totals(sums: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """[R, K] float64: column sums of G rows drawn with replacement from [G, K], R times."""
    groups = len(sums)
    rng = np.random.default_rng(seed)
    totals = np.zeros((resamples, sums.shape[1]))
    step = max(1, _DRAWN_AT_ONCE // max(1, groups))
    for start in range(0, resamples if groups else 0, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, groups, (rows, groups), dtype=np.int32) + groups * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        totals[start : start + rows] = counts.astype(np.float64) @ sums
    return totals


def _interval(estimate: float, resampled: np.ndarray, left_out: np.ndarray, level: float) -> Interval:
    normal = NormalDist()
    resampled = np.sort(resampled)
    below = np.mean(resampled < estimate) + np.mean(resampled == estimate) / 2
    deviation = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = np.sum(deviation**2)
    acceleration = np.sum(deviation**3) / (6 * spread**1.5) if spread > 0 else 0.0
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        quantile = tail
        if 0 < below < 1:  # else all resamples lie on one side, and there is nothing to correct with
            bias = normal.inv_cdf(float(below))
            z = bias + normal.inv_cdf(tail)
            if acceleration * z < 1:  # else a single sentence outweighs all others
                quantile = normal.cdf(bias + z / (1 - acceleration * z))
        bounds.append(float(np.quantile(resampled, quantile)))
    extreme = np.sum(np.abs(resampled - estimate) >= abs(estimate))
    return Interval(
        estimate,
        low=bounds[0],
        high=bounds[1],
        p_value=float((extreme + 1) / (len(resampled) + 1)),
        share_above=float(np.mean(resampled > 0) + np.mean(resampled == 0) / 2),
    )


def add_to_groups(groups: np.ndarray, sums: np.ndarray, before: int) -> np.ndarray:
    """Add sentences to groups that are resampled as one, so that memory does not grow with the corpus.

    Sentences are dealt to the groups in turn: up to `GROUPS` sentences each is its own group. Sums over groups of
    equally many sentences vary as sums over sentences do, so the interval stays what it is.

    Args:
        groups: [G, K], the groups so far, G <= GROUPS; sums: [S, K], the new sentences.
        before: how many sentences are in the groups already.

    Returns:
        [min(GROUPS, before + S), K] float64.
    """
    size = min(GROUPS, before + len(sums))
    result = np.zeros((size, sums.shape[1]))
    result[: len(groups)] = groups
    np.add.at(result, (before + np.arange(len(sums))) % GROUPS, sums)
    return result
