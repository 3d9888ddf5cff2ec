"""A review at work: which issue comes next, what is shown of it, and what becomes of a decision."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tokloss_ray.errors import Refused
from tokloss_ray.output.agreement import agreement, conflicts
from tokloss_ray.output.decisions import (
    ACCEPT,
    ACTIONS,
    EDIT,
    UNDO,
    Decision,
    Row,
    by_word,
    file_stem,
    read_decisions,
    standing,
)
from tokloss_ray.review.corpus import Corpus
from tokloss_ray.review.issues import Filter, Issue, IssueTable
from tokloss_ray.review.journal import Journal
from tokloss_ray.review.learning import EVERY, examples, fit, rates, values
from tokloss_ray.review.places import Places
from tokloss_ray.review.proposal import Change, changed, proposal, scheme_of, spans_in
from tokloss_ray.review.shown import Shown, shown, usage_as_json
from tokloss_ray.tags.sentence_spans import Span
from tokloss_ray.text import visible
from tokloss_ray.threads import in_background, map_in_threads

GROUP_MOST = 200
"""Places of a group that are shown, and so decided, at once."""
LISTED_MOST = 500
"""Decisions that are listed to be looked at again."""
WORDS_MOST, USAGES_MOST = 8, 8
"""Words, and labels of each, that are looked up elsewhere."""
RATE_LEAST = 5
"""Decisions on a pair of tags from which on it is said how often it is changed."""
_RECENT = 20

Key = tuple[str, int, int]
"""Source, source_row and word index."""


def key_of(issue: Issue) -> Key:
    """How the page names an issue."""
    return issue.source, issue.source_row, issue.word_index


class Review:
    """One reviewer's work on the label issues of an output; methods may be called by several threads.

    Raises:
        Refused: there is nothing to review, or the reviewer is at work in another process.
    """

    def __init__(self, output: str, reviewer: str, learn: bool = True) -> None:
        file_stem(reviewer)
        self.output, self.reviewer, self.learn = output, reviewer, learn
        self.corpus = Corpus(output)
        self.table = IssueTable(output, self.corpus.scores.runs[0])
        self.scheme = scheme_of(self.corpus.scores.tags, self.table.scheme)
        self.decisions = read_decisions(output)
        own = self.decisions.setdefault(reviewer, [])
        self.before = len(standing(own))
        self.journal = Journal(output, reviewer, max((d.batch for d in own), default=0))
        self.places = Places(self.corpus.scores)
        self._issued: dict[Key, Issue] = {}
        self._learnt_from = 0
        self._learning = threading.Lock()
        self._lock = threading.Lock()
        self._settle()

    def start(self) -> None:
        """Begin to look for other places of all words, in the background."""
        self.places.start()
        self._learn_if_due()

    def close(self) -> None:
        """End it; nothing is left to be written."""
        self.places.stop()
        with self._lock:
            self.journal.close()

    def _learn_if_due(self) -> None:
        """After every fifty decisions, rank the issues that are left again, in the background."""
        due = sum(decision.counts for decision in self.standing) // EVERY * EVERY
        if self.learn and due and due != self._learnt_from:
            self._learnt_from = due
            in_background(self.rank_again)

    def rank_again(self) -> None:
        """Rank all issues by what was decided so far."""
        with self._learning:
            given = examples(list(self.standing))
            if given:
                self.table.reorder(values(fit(given), self.table.index))

    def _settle(self) -> None:
        """What the reviewer's decisions come to, after some were undone."""
        self.standing = standing(self.decisions[self.reviewer])
        self.words = by_word(self.standing)

    # What is shown.

    def about(self) -> dict[str, Any]:
        """What the page says once, and the types to choose from."""
        return {
            "output": self.output.rstrip("/").rsplit("/", 1)[-1],
            "reviewer": self.reviewer,
            "types": list(self.scheme.tag_set.types),
            "spans": self.scheme.spans,
            "rank": self.table.rank,
            "issues": self.table.rows,
            "by": list(self.table.by),
            "learn": self.learn,
            "progress": self.progress(),
        }

    def choices(self) -> dict[str, Any]:
        """What can be filtered by."""
        pairs = [{"label": a, "suggested": b, "count": n} for a, b, n in self.table.pairs()[:500]]
        return {"pairs": pairs, "slices": self.table.slice_values()}

    def next(self, chosen: Filter, start: int, count: int) -> dict[str, Any]:
        """The next issues that the reviewer has not decided, from a place of the filtered table on.

        Words that were decided on with an issue before them are left out, and suggestions that come to the entities
        that are there already (I-LOC after O for an entity that begins with B-LOC). `ranking` says in which order the
        places are; if it is another one than before, start at 0 again.
        """
        taken: set[Key] = set()
        items: list[dict[str, Any]] = []
        total = self.table.count(chosen)

        def is_open(issue: Issue) -> bool:
            return self._is_open(issue, taken)

        while len(items) < count and start < total:
            issues, start = self.table.walk(chosen, start, count - len(items), is_open)
            for item in map_in_threads(self._shown, issues):
                if item.changes_something and key_of(item.issue) not in taken:
                    items.append(self._issue_out(item))
                    taken |= {(*item.issue[1:3], word) for word in range(item.change.start, item.change.stop)}
        return {"items": items, "next": start, "total": total, "ranking": self.table.ranking}

    def _is_open(self, issue: Issue, taken: set[Key]) -> bool:
        return key_of(issue) not in taken and issue.word_index not in self.words.get(
            (issue.source, issue.source_row), {}
        )

    def _shown(self, issue: Issue) -> Shown:
        sentence = self.corpus.sentence((issue.source, issue.source_row))
        change = proposal(sentence.labels, sentence.predicted, issue.word_index, issue.suggested_label, self.scheme)
        return Shown(issue, sentence, change)

    def _issue_out(self, item: Shown) -> dict[str, Any]:
        """An issue for the page. What others say is shown to those who have decided: until then they see for
        themselves."""
        self._issued[key_of(item.issue)] = item.issue
        row = (item.issue.source, item.issue.source_row)
        own = self.words.get(row, {}).get(item.issue.word_index)
        others = self._others(row, item.change.start, item.change.stop) if own is not None else []
        return shown(item, self.scheme, own, others)

    def _others(self, row: Row, start: int, stop: int) -> list[Decision]:
        return [
            decision
            for reviewer, theirs in self.decisions.items()
            if reviewer != self.reviewer
            for decision in standing(theirs)
            if decision.row == row and decision.start < stop and start < decision.stop
        ]

    def decided(self, which: str) -> dict[str, Any]:
        """Issues that were decided already, the latest first: `decided`, `skipped`, or `conflicts` with others."""
        if which == "conflicts":
            self.refresh()
            there = conflicts(self.decisions)
            chosen = [d for d in self.standing if any(d.start <= w < d.stop for w in there.get(d.row, ()))]
        else:
            chosen = [d for d in self.standing if d.counts == (which == "decided")]
        latest = [d for d in reversed(chosen) if self.words.get(d.row, {}).get(d.word_index, d) is d][:LISTED_MOST]
        issues = [_issue_of(decision) for decision in latest]
        items = [self._issue_out(item) for item in map_in_threads(self._shown, issues)]
        return {"items": items, "next": len(items), "total": len(items)}

    def group(self, key: Key) -> dict[str, Any]:
        """The open issues with the same words, labels and suggestion as one that was shown, itself first."""
        first = self._shown(self._known(key))
        surface = first.surface()
        rows = self.table.group(first.issue.word, first.issue.label, first.issue.suggested_label)
        taken: set[Key] = set()
        issues = [i for i in self.table.take(rows[: 4 * GROUP_MOST]) if self._is_open(i, taken) and key_of(i) != key]
        same = [first]
        for item in map_in_threads(self._shown, issues):
            if item.surface() == surface and len(same) < GROUP_MOST and key_of(item.issue) not in taken:
                same.append(item)
                taken |= {(*item.issue[1:3], word) for word in range(item.change.start, item.change.stop)}
        return {"items": [self._issue_out(item) for item in same], "more": len(rows) > 4 * GROUP_MOST}

    def elsewhere(self, key: Key, examples: bool) -> dict[str, Any]:
        """How the words that an issue is about are labelled in the whole corpus; with a few places of each label."""
        item = self._shown(self._known(key))
        words = dict.fromkeys(item.sentence.words[item.change.start : item.change.stop])
        found = []
        for word in [*words][:WORDS_MOST]:
            usages = self.places.of(word) or []
            shown_usages = [usage_as_json(usage, self.corpus.sentence, examples) for usage in usages[:USAGES_MOST]]
            found.append({"word": visible(word), "usages": shown_usages})
        return {"done": self.places.done, "failed": self.places.failed, "words": found}

    def progress(self) -> dict[str, Any]:
        """What was decided so far, and how fast."""
        counts = Counter(decision.action for decision in self.standing)
        seconds = [d.seconds for d in self.standing[-_RECENT:] if d.seconds]
        pace = 60 * len(seconds) / sum(seconds) if len(seconds) >= 3 else None
        return {
            **{action: counts[action] for action in ACTIONS},
            "decided": sum(counts.values()) - counts["skip"],
            "pace": pace,
            "ranking": self.table.ranking,
            "can_undo": bool(self.standing),
        }

    def learnt(self) -> dict[str, Any]:
        """What the order of the issues follows from, beside their scores."""
        pairs = [rate._asdict() for rate in rates(examples(list(self.standing)))[:20] if rate.decided >= RATE_LEAST]
        return {"on": self.learn, "every": EVERY, "rankings": self.table.ranking, "pairs": pairs}

    def agreement(self) -> dict[str, Any]:
        """Between all reviewers of the output."""
        self.refresh()
        pairs = [pair._asdict() for pair in agreement(self.decisions)]
        return {"pairs": pairs, "conflicts": sum(map(len, conflicts(self.decisions).values()))}

    def refresh(self) -> None:
        """Read again what other reviewers have decided meanwhile."""
        found = read_decisions(self.output)
        with self._lock:
            self.decisions = {**found, self.reviewer: self.decisions[self.reviewer]}

    # What is decided.

    def decide(
        self, action: str, keys: Sequence[Key], spans: Sequence[Span] | None, seconds: float | None
    ) -> dict[str, Any]:
        """Write down a decision on one issue, or the same on several; it is durable when this returns.

        spans: for `edit`, all entities that the sentence should have, as far as it was shown.

        Raises:
            Refused: no such action, an issue that was not shown, or entities that there cannot be.
            StorageFailed: it could not be written; nothing was decided.
        """
        if action not in ACTIONS or not keys or (action == EDIT) != (spans is not None) or (spans and len(keys) > 1):
            raise Refused("not a decision")
        items = list(map_in_threads(lambda key: self._shown(self._known(key)), list(dict.fromkeys(keys))))
        changes = [self._outcome(action, item, spans) for item in items]
        with self._lock:
            batch = self.journal.batches + 1
            new = [
                self._decision(item, change, action, batch, len(items), seconds)
                for item, change in zip(items, changes, strict=True)
            ]
            self.journal.write(new)
            self.decisions[self.reviewer] += new
            self.standing += new
            for row, words in by_word(new).items():
                self.words.setdefault(row, {}).update(words)
        self._learn_if_due()
        ranges = [[d.source, d.source_row, d.start, d.stop] for d in new]
        return {"decided": ranges, "progress": self.progress()}

    def _outcome(self, action: str, item: Shown, spans: Sequence[Span] | None) -> Change:
        start, stop, _ = item.change
        labels = item.sentence.labels
        if action == ACCEPT:
            return item.change
        if action == EDIT:
            first, last = item.window(self.scheme)
            ours = spans_in(labels, self.scheme)
            outside = [span for span in ours if span.end <= first or span.start >= last]
            return changed(labels, [*(spans or ()), *outside], self.scheme, start, stop)
        return Change(start, stop, tuple(labels[start:stop]))

    def _decision(
        self, item: Shown, change: Change, action: str, batch: int, size: int, seconds: float | None
    ) -> Decision:
        issue, sentence = item.issue, item.sentence
        here = slice(change.start, change.stop)
        return Decision(
            reviewer=self.reviewer,
            batch=batch,
            of=size,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            action=action,
            seconds=None if seconds is None else round(seconds, 2),
            example_id=issue.example_id,
            source=issue.source,
            source_row=issue.source_row,
            word_index=issue.word_index,
            suggested_label=issue.suggested_label,
            score=issue.score,
            start=change.start,
            stop=change.stop,
            words=tuple(sentence.words[here]),
            labels=tuple(sentence.labels[here]),
            tags=change.tags,
        )

    def undo(self) -> dict[str, Any]:
        """Take the reviewer's last standing batch back; returns its issues, to be decided again.

        Raises:
            Refused: there is none.
            StorageFailed: it could not be written; the decision stands.
        """
        with self._lock:
            if not self.standing:
                raise Refused("there is nothing to undo")
            last = max(decision.batch for decision in self.standing)
            gone = [decision for decision in self.standing if decision.batch == last]
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            batch = self.journal.batches + 1
            undo = Decision(reviewer=self.reviewer, batch=batch, time=now, action=UNDO, undoes=last)
            self.journal.write([undo])
            self.decisions[self.reviewer].append(undo)
            self._settle()
        items = [self._issue_out(self._shown(_issue_of(decision))) for decision in gone[:GROUP_MOST]]
        return {"items": items, "progress": self.progress()}

    def _known(self, key: Key) -> Issue:
        if key not in self._issued:
            raise Refused("this issue was not shown: load the page again")
        return self._issued[key]


def _issue_of(decision: Decision) -> Issue:
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
        decision.score if decision.score is not None else float("nan"),
        float("nan"),
    )


def parse_filter(given: Mapping[str, str], by: Sequence[str]) -> Filter:
    """A filter from the parameters of a request; empty ones do not count.

    Raises:
        Refused: a score is no number.
    """

    def number(name: str) -> float | None:
        try:
            return float(given[name]) if given.get(name) else None
        except ValueError:
            raise Refused(f"{given[name]!r} is not a score") from None

    slices = {name: given[f"by-{name}"] for name in by if given.get(f"by-{name}")}
    return Filter(
        given.get("label") or None,
        given.get("suggested") or None,
        given.get("word") or None,
        number("min"),
        number("max"),
        slices,
    )
