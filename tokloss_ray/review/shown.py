"""What the page gets of an issue: plain values for JSON, text made safe to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tokloss_ray.exporting.sentences import Sentence
from tokloss_ray.output.decisions import Decision, Row
from tokloss_ray.review.issues import Issue
from tokloss_ray.review.places import Usage
from tokloss_ray.review.proposal import Change, Scheme, spans_in
from tokloss_ray.tags.sentence_spans import Span
from tokloss_ray.text import visible

WHOLE = 300
"""Words of a sentence that is shown as a whole; of a longer one, this many around the issue."""
WORDS_MOST, USAGES_MOST = 8, 8
"""Words, and labels of each, that are looked up elsewhere."""
AROUND = 7
"""Words before and after another place of a word."""


class Shown(NamedTuple):
    """An issue, its sentence, and what is suggested."""

    issue: Issue
    sentence: Sentence
    change: Change

    @property
    def changes_something(self) -> bool:
        """Whether accepting the suggestion changes a tag."""
        return [*self.change.tags] != self.sentence.labels[self.change.start : self.change.stop]

    def surface(self) -> tuple[Any, ...]:
        """Equal for issues that are the same decision in another place."""
        here = slice(self.change.start, self.change.stop)
        return tuple(self.sentence.words[here]), tuple(self.sentence.labels[here]), self.change.tags

    def after(self) -> list[str | None]:
        """The tags of the sentence if the suggestion is accepted."""
        start, stop, tags = self.change
        return [*self.sentence.labels[:start], *tags, *self.sentence.labels[stop:]]

    def window(self, scheme: Scheme) -> tuple[int, int]:
        """[first, last) of the words that are shown: no entity is cut."""
        length = len(self.sentence.words)
        if length <= WHOLE:
            return 0, length
        first = max(0, min(self.issue.word_index - WHOLE // 2, length - WHOLE))
        last = first + WHOLE
        spans = [*spans_in(self.sentence.labels, scheme), *spans_in(self.after(), scheme)]
        spans.append(Span(self.change.start, self.change.stop, ""))
        grown = True
        while grown:
            cut = [s for s in spans if s.start < first < s.end or s.start < last < s.end]
            new = min([first, *(s.start for s in cut)]), max([last, *(s.end for s in cut)])
            grown, (first, last) = new != (first, last), new
        return first, last


def shown(item: Shown, scheme: Scheme, own: Decision | None, others: Sequence[Decision]) -> dict[str, Any]:
    """An issue as the page draws it. Word indices are those of the row; `first` is that of the first word shown.

    own: the reviewer's decision on it; others: those of other people.
    """
    issue, sentence, change = item
    first, last = item.window(scheme)

    def spans(tags: Sequence[str | None]) -> list[list[Any]]:
        return [[s.start, s.end, s.type] for s in spans_in(tags, scheme) if first <= s.start and s.end <= last]

    after = item.after()
    return {
        "key": [issue.source, issue.source_row, issue.word_index],
        "id": visible(issue.example_id or f"{issue.source}:{issue.source_row}"),
        "words": [visible(word) for word in sentence.words[first:last]],
        "labelled": [label is not None for label in sentence.labels[first:last]],
        "losses": [_figure(loss) for loss in sentence.losses[first:last]],
        "probs": [_figure(prob) for prob in sentence.probs[first:last]],
        "first": first,
        "left_out": len(sentence.words) - (last - first),
        "word": issue.word_index,
        "start": change.start,
        "stop": change.stop,
        "label": issue.label,
        "suggested": issue.suggested_label,
        "predicted": sentence.predicted[issue.word_index],
        "labels": sentence.labels[change.start : change.stop],
        "tags": list(change.tags),
        "label_spans": spans(sentence.labels),
        "suggested_spans": spans(after),
        "score": _figure(issue.score),
        "loss": _figure(sentence.losses[issue.word_index]),
        "why": visible(issue.why),
        "own": None if own is None else _decision(own, item, scheme, spans),
        "others": [_decision(decision, item, scheme, spans) for decision in others],
    }


def _decision(
    decision: Decision, item: Shown, scheme: Scheme, spans: Callable[[Sequence[str | None]], list[list[Any]]]
) -> dict[str, Any]:
    labels = item.sentence.labels
    tags = [*labels[: decision.start], *decision.tags, *labels[decision.stop :]]
    return {
        "reviewer": visible(decision.reviewer),
        "action": decision.action,
        "tags": list(decision.tags),
        "start": decision.start,
        "stop": decision.stop,
        "spans": spans(tags),
    }


def usages_as_json(
    words: Sequence[str],
    usages_of: Callable[[str], Sequence[Usage] | None],
    sentence_of: Callable[[Row], Sentence],
    with_examples: bool,
) -> list[dict[str, Any]]:
    """How some words are labelled elsewhere, the first words and the most frequent labels of each."""
    return [
        {
            "word": visible(word),
            "usages": [
                usage_as_json(usage, sentence_of, with_examples) for usage in (usages_of(word) or [])[:USAGES_MOST]
            ],
        }
        for word in words[:WORDS_MOST]
    ]


def usage_as_json(usage: Usage, sentence_of: Callable[[Row], Sentence], with_examples: bool) -> dict[str, Any]:
    """A label of a word, how often it has it, and if asked for some places in their context."""
    examples = []
    for row, word in usage.examples if with_examples else ():
        sentence = sentence_of(row)
        first, last = max(0, word - AROUND), min(len(sentence.words), word + AROUND + 1)
        examples.append(
            {
                "id": visible(sentence.example_id),
                "before": visible(" ".join(sentence.words[first:word])),
                "word": visible(sentence.words[word]),
                "after": visible(" ".join(sentence.words[word + 1 : last])),
            }
        )
    return {"label": usage.label, "count": usage.times, "examples": examples}


def _figure(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)
