"""How far a reviewer has got, as the page says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokloss_ray.output.decisions import ACTIONS, SKIP, Decision
from tokloss_ray.review.estimate import Estimate
from tokloss_ray.review.learning import EVERY, examples, rates

RATE_LEAST = 5
"""Decisions on a pair of tags from which on it is said how often it is changed."""
_RECENT = 20
_PAIRS = 20


def progress(left: Sequence[Decision], ranking: int, so_far: Estimate | None) -> dict[str, Any]:
    """What was decided so far, how fast, and what it says about the corpus. left: the reviewer's standing decisions."""
    counts = Counter(decision.action for decision in left)
    seconds = [d.seconds for d in left[-_RECENT:] if d.seconds]
    pace = 60 * len(seconds) / sum(seconds) if len(seconds) >= 3 else None
    return {
        **{action: counts[action] for action in ACTIONS},
        "decided": sum(counts.values()) - counts[SKIP],
        "pace": pace,
        "ranking": ranking,
        "can_undo": bool(left),
        "estimate": None if so_far is None else _estimate(so_far),
    }


def _estimate(so_far: Estimate) -> dict[str, Any]:
    every = so_far.all
    return {
        "labels": every.labels, "found": every.found, "drawn": so_far.drawn, "wrong": round(every.total),
        "low": round(every.low), "high": round(every.high),
    }  # fmt: skip


def learnt(left: Sequence[Decision], on: bool, rankings: int) -> dict[str, Any]:
    """What the order of the issues follows from, beside their scores."""
    pairs = [rate._asdict() for rate in rates(examples(left))[:_PAIRS] if rate.decided >= RATE_LEAST]
    return {"on": on, "every": EVERY, "rankings": rankings, "pairs": pairs}
