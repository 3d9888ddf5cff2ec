"""What becomes of an answer: the words and tags that a decision is about, and the line that is written of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tokloss_ray.output.decisions import ACCEPT, EDIT, Decision
from tokloss_ray.review.audit import Draw
from tokloss_ray.review.issues import Issue
from tokloss_ray.review.proposal import Change, Scheme, changed, spans_in
from tokloss_ray.review.shown import Shown
from tokloss_ray.tags.sentence_spans import Span


def now() -> str:
    """The time of a decision."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def outcome(action: str, item: Shown, spans: Sequence[Span] | None, scheme: Scheme) -> Change:
    """The words that an answer decides on, and their tags from now on.

    Raises:
        Refused: the spans are not ones that there can be.
    """
    start, stop, _ = item.change
    labels = item.sentence.labels
    if action == ACCEPT:
        return item.change
    if action == EDIT:
        first, last = item.window(scheme)
        outside = [span for span in spans_in(labels, scheme) if span.end <= first or span.start >= last]
        return changed(labels, [*(spans or ()), *outside], scheme, start, stop)
    return Change(start, stop, tuple(labels[start:stop]))


def decision_on(
    item: Shown, change: Change, action: str, reviewer: str, batch: int, of: int, seconds: float | None
) -> Decision:
    """The line for one issue of a batch."""
    issue, sentence = item.issue, item.sentence
    here = slice(change.start, change.stop)
    return Decision(
        reviewer=reviewer,
        batch=batch,
        of=of,
        time=now(),
        action=action,
        seconds=None if seconds is None else round(seconds, 2),
        example_id=issue.example_id,
        source=issue.source,
        source_row=issue.source_row,
        word_index=issue.word_index,
        suggested_label=issue.suggested_label,
        score=None if math.isnan(issue.score) else issue.score,
        start=change.start,
        stop=change.stop,
        words=tuple(sentence.words[here]),
        labels=tuple(sentence.labels[here]),
        tags=change.tags,
    )


def drawn_at_random(due: Draw | None, before: Decision | None, decision: Decision) -> dict[str, Any]:
    """The fields of a decision that say that its word was drawn: now, or when it was decided on before."""
    here = (decision.row, decision.word_index)
    if due is not None and ((due.issue.source, due.issue.source_row), due.issue.word_index) == here:
        return {"stratum": due.stratum, "draw": due.place, "population": due.population}
    if before is not None and before.stratum is not None and (before.row, before.word_index) == here:
        return {"stratum": before.stratum, "draw": before.draw, "population": before.population}
    return {}


def issue_of(decision: Decision) -> Issue:
    """The issue that a decision was about, as far as the decision tells."""
    at = decision.word_index - decision.start
    return Issue(
        decision.example_id,
        decision.source,
        decision.source_row,
        decision.word_index,
        decision.words[at],
        decision.labels[at] or "",
        "",
        decision.suggested_label or "",
        decision.score if decision.score is not None else math.nan,
        math.nan,
    )
