"""The interval of a total that is estimated from a stratified sample with few errors in it, often none.

Each error in the sample stands for many words, so the total is a weighted sum of counts that are about Poisson. The
interval is that of Fay and Feuer (1997) for such a sum: from gamma distributions with its mean and its variance, for
the upper end with one more count of the largest weight; in the mid-p version of Fay and Kim (2017). With no error among
n words it ends at 3 / n of the words that are left, the rule of three. Where fewer than about three errors are expected
in the sample, an interval cannot miss upwards, and covers more often than it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

LEVEL = 0.95
_STEPS = 80


def groups(left: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """[H]: strata of which nothing was drawn go with the next one below, the last with the one above."""
    found, number = np.zeros(len(left), np.int64), 0
    some = np.flatnonzero(drawn)
    for i in range(len(left)):
        found[i] = number
        if drawn[i] and i != some[-1]:
            number += 1
    return found


def expanded(
    weight: np.ndarray, drawn: np.ndarray, errors: np.ndarray, there: np.ndarray, level: float = LEVEL
) -> tuple[float, float, float]:
    """Errors beyond those in the sample: estimate and interval.

    weight, drawn, errors: [G] words that each drawn one stands for, itself included, words drawn, and wrong ones of
    these. there: [G] bool, strata that have such words at all.
    """
    beyond = weight - 1
    mean = float(beyond @ errors)
    # A binomial count varies less than a Poisson one, by the share of errors; a few errors do not tell how much less.
    surely = np.maximum(errors - 2 * np.sqrt(errors), 0) / np.maximum(drawn, 1)
    variance = float((weight * beyond * errors) @ (1 - surely))
    largest = float(np.max(beyond[there], initial=0.0))
    if largest <= 0:
        return mean, mean, mean
    one = largest * (largest + 1)
    tail = (1 - level) / 2

    def below(value: float) -> float:
        first = 1.0 if mean <= 0 else gamma_below(value * mean / variance, mean**2 / variance)
        sum_, spread = mean + largest, variance + one
        return (first + gamma_below(value * sum_ / spread, sum_**2 / spread)) / 2

    return mean, _where(below, tail, mean + largest), _where(below, 1 - tail, mean + largest)


def _where(below: Callable[[float], float], share: float, guess: float) -> float:
    """The value at which an increasing function reaches a share, 0 if it begins above."""
    if below(0.0) >= share:
        return 0.0
    low, high = 0.0, guess
    while below(high) < share:
        low, high = high, high * 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return high


def gamma_below(x: float, shape: float) -> float:
    """P(X <= x) for a gamma distribution with scale 1: the regularised lower incomplete gamma function.

    Its series below the mean, its continued fraction above (Abramowitz and Stegun 6.5.29 and 6.5.31).
    """
    if x <= 0:
        return 0.0
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        n = shape
        while term > total * 1e-14:
            n += 1
            term *= x / n
            total += term
        return min(front * total, 1.0)
    tiny = 1e-300
    b = x + 1 - shape
    c, d = 1 / tiny, 1 / b
    fraction = d
    for i in range(1, 100_000):
        a = -i * (i - shape)
        b += 2
        d = 1 / (a * d + b or tiny)
        c = b + a / c or tiny
        fraction *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return max(0.0, 1.0 - front * fraction)
