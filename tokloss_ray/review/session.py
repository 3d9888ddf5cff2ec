"""A review at work: which issue comes next, what is shown of it, and what becomes of a decision."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from tokloss_ray.errors import Refused
from tokloss_ray.output.agreement import agreement, conflicts, of_others
from tokloss_ray.output.decisions import (
    ACTIONS,
    EDIT,
    UNDO,
    Decision,
    by_word,
    file_stem,
    read_decisions,
    standing,
)
from tokloss_ray.review.audit import DEFAULT_SHARE, Draw, Key
from tokloss_ray.review.corpus import Corpus
from tokloss_ray.review.deciding import decision_on, drawn_at_random, issue_of, now, outcome
from tokloss_ray.review.issues import Filter, Issue, IssueTable
from tokloss_ray.review.journal import Journal
from tokloss_ray.review.learning import EVERY, examples, fit, values
from tokloss_ray.review.places import Places
from tokloss_ray.review.progress import learnt, progress
from tokloss_ray.review.proposal import proposal, scheme_of
from tokloss_ray.review.sample import Sample
from tokloss_ray.review.shown import Shown, shown, usages_as_json
from tokloss_ray.tags.sentence_spans import Span
from tokloss_ray.threads import in_background, map_in_threads

GROUP_MOST = 200
"""Places of a group that are shown, and so decided, at once."""
LISTED_MOST = 500
"""Decisions that are listed to be looked at again."""


def key_of(issue: Issue) -> Key:
    """How the page names an issue."""
    return issue.source, issue.source_row, issue.word_index


class Review:
    """One reviewer's work on the label issues of an output; methods may be called by several threads.

    learn: rank what is left by what was decided. audit_share: share of issues that are words drawn at random.

    Raises:
        Refused: there is nothing to review, or the reviewer is at work in another process.
    """

    def __init__(self, output: str, reviewer: str, learn: bool = True, audit_share: float = DEFAULT_SHARE) -> None:
        file_stem(reviewer)
        self.output, self.reviewer, self.learn = output, reviewer, learn
        self.corpus = Corpus(output)
        self.table = IssueTable(output, self.corpus.scores.runs[0])
        self.scheme = scheme_of(self.corpus.scores.tags, self.table.scheme)
        self.decisions = read_decisions(output)
        own = self.decisions.setdefault(reviewer, [])
        self.before = len(standing(own))
        self.sample = Sample(audit_share, self.corpus.scores.tags, reviewer, standing(own))
        self.journal = Journal(output, reviewer, max((d.batch for d in own), default=0))
        self.places = Places(self.corpus.scores, self.sample.population.add, self.sample.population.finish)
        self._issued: dict[Key, Issue] = {}
        self._learnt_from = 0
        self.learning: Future[None] | None = None
        self._learning = threading.Lock()
        self._lock = threading.Lock()
        self._settle()

    def start(self) -> None:
        """Begin to look at all words of the corpus, in the background."""
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
            self.learning = in_background(self.rank_again)

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
        self.sample.settle(self.standing)

    # What is shown.

    def about(self) -> dict[str, Any]:
        """What the page says once, and the types to choose from."""
        return {
            "output": self.output.rstrip("/").rsplit("/", 1)[-1], "reviewer": self.reviewer, "learn": self.learn,
            "types": list(self.scheme.tag_set.types), "spans": self.scheme.spans, "rank": self.table.rank,
            "issues": self.table.rows, "by": list(self.table.by), "progress": self.progress(),
        }  # fmt: skip

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
        total, reading = self.table.count(chosen), self.sample.reading
        reading.begin((chosen.key, self.table.ranking), start == 0)

        def is_open(issue: Issue) -> bool:
            own = self._own(key_of(issue))
            if own is None or own.batch in self.sample.audits:
                reading.meet(key_of(issue))
            return own is None and key_of(issue) not in taken

        while len(items) < count and start < total:
            issues, start = self.table.walk(chosen, start, count - len(items), is_open)
            for item in map_in_threads(self._shown, issues):
                if item.changes_something and key_of(item.issue) not in taken:
                    items.append(self._issue_out(item))
                    taken |= {(*item.issue[1:3], word) for word in range(item.change.start, item.change.stop)}
        return {"items": items, "next": start, "total": total, "ranking": self.table.ranking, "drawn": self._drawn()}

    def _is_open(self, issue: Issue, taken: set[Key]) -> bool:
        return key_of(issue) not in taken and self._own(key_of(issue)) is None

    def _own(self, key: Key) -> Decision | None:
        return self.words.get(key[:2], {}).get(key[2])

    def _is_decided(self, key: Key) -> bool:
        own = self._own(key)
        return own is not None and (own.counts or own.stratum is not None)

    def _due(self) -> Draw | None:
        return self.sample.due(self._is_decided)

    def _drawn(self) -> dict[str, Any] | None:
        """The word drawn at random that is to be shown before other issues, if it is time for one."""
        return None if (draw := self._due()) is None else self._issue_out(self._shown(draw.issue))

    def _shown(self, issue: Issue) -> Shown:
        sentence = self.corpus.sentence((issue.source, issue.source_row))
        change = proposal(sentence.labels, sentence.predicted, issue.word_index, issue.suggested_label, self.scheme)
        return Shown(issue, sentence, change)

    def _issue_out(self, item: Shown) -> dict[str, Any]:
        """An issue for the page. What others say is shown to those who have decided on it themselves."""
        self._issued[key_of(item.issue)] = item.issue
        own, (start, stop, _) = self._own(key_of(item.issue)), item.change
        row = key_of(item.issue)[:2]
        others = of_others(self.decisions, self.reviewer, row, start, stop) if own is not None else []
        draw = self._due()
        is_drawn = (draw is not None and draw.issue == item.issue) or (own is not None and own.stratum is not None)
        return shown(item, self.scheme, own, others) | {"drawn": is_drawn}

    def decided(self, which: str) -> dict[str, Any]:
        """Issues that were decided already, the latest first: `decided`, `skipped`, or `conflicts` with others."""
        if which == "conflicts":
            self.refresh()
            there = conflicts(self.decisions)
            chosen = [d for d in self.standing if any(d.start <= w < d.stop for w in there.get(d.row, ()))]
        else:
            chosen = [d for d in self.standing if d.counts == (which == "decided")]
        latest = [d for d in reversed(chosen) if self.words.get(d.row, {}).get(d.word_index, d) is d][:LISTED_MOST]
        issues = [issue_of(decision) for decision in latest]
        items = [self._issue_out(item) for item in map_in_threads(self._shown, issues)]
        return {"items": items, "next": len(items), "total": len(items)}

    def group(self, key: Key) -> dict[str, Any]:
        """The open issues with the same words, labels and suggestion as one that was shown, itself first."""
        first = self.shown(key)
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
        item = self.shown(key)
        words = [*dict.fromkeys(item.sentence.words[item.change.start : item.change.stop])]
        found = usages_as_json(words, self.places.of, self.corpus.sentence, examples)
        return {"done": self.places.done, "failed": self.places.failed, "words": found}

    def progress(self) -> dict[str, Any]:
        """What was decided so far, how fast, and what it says about the corpus."""
        so_far = self.sample.so_far(self.reviewer, self.decisions[self.reviewer])
        return progress(self.standing, self.table.ranking, so_far)

    def learnt(self) -> dict[str, Any]:
        """What the order of the issues follows from, beside their scores."""
        return learnt(self.standing, self.learn, self.table.ranking)

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
        unique = list(dict.fromkeys(keys))
        items = list(map_in_threads(self.shown, unique))
        changes = [outcome(action, item, spans, self.scheme) for item in items]
        with self._lock:
            due, batch = self._due(), self.journal.batches + 1
            new = []
            for item, change in zip(items, changes, strict=True):
                line = decision_on(item, change, action, self.reviewer, batch, len(items), seconds)
                new.append(replace(line, **drawn_at_random(due, self._own(key_of(item.issue)), line)))
                self.sample.know(item.sentence, line)
            if not any(decision.stratum is not None for decision in new):
                new[0] = replace(new[0], passes=self.sample.passed_by(unique[0], self.words))
            self.journal.write(new)
            self.decisions[self.reviewer] += new
            self.standing += new
            self.sample.add(new)
            for row, words in by_word(new).items():
                self.words.setdefault(row, {}).update(words)
        self._learn_if_due()
        ranges = [[d.source, d.source_row, d.start, d.stop] for d in new]
        return {"decided": ranges, "progress": self.progress(), "drawn": self._drawn()}

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
            batch = self.journal.batches + 1
            undo = Decision(reviewer=self.reviewer, batch=batch, time=now(), action=UNDO, undoes=last)
            self.journal.write([undo])
            self.decisions[self.reviewer].append(undo)
            self._settle()
        items = [self._issue_out(self._shown(issue_of(decision))) for decision in gone[:GROUP_MOST]]
        return {"items": items, "progress": self.progress()}

    def shown(self, key: Key) -> Shown:
        """An issue that `next` has given, with its whole sentence."""
        return self._shown(self._known(key))

    def _known(self, key: Key) -> Issue:
        if key not in self._issued:
            raise Refused("this issue was not shown: load the page again")
        return self._issued[key]
