"""A review without a page: issues and decisions in Python."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokloss_ray.errors import Refused
from tokloss_ray.output.decisions import ACCEPT, EDIT, KEEP, SKIP
from tokloss_ray.review.audit import DEFAULT_SHARE, Key
from tokloss_ray.review.issues import Filter
from tokloss_ray.review.proposal import spans_in
from tokloss_ray.review.session import Review


@dataclass(frozen=True)
class ReviewIssue:
    """A label that is probably wrong, or one that was drawn at random.

    Attributes:
        example_id, source, source_row: the row, as in `scores/`.
        word_index: the word that is the issue.
        words, labels, predicted: of the whole row; a label is None where a word has none.
        start, stop: the words that a decision is about, stop exclusive: all entities around the word.
        suggested: the tags suggested for these words.
        score: its score in the table of label issues; NaN for a word drawn at random.
        why: what speaks against the label, in words; "" where it is not known.
        drawn: it was drawn at random.
    """

    example_id: str
    source: str
    source_row: int
    word_index: int
    words: tuple[str, ...]
    labels: tuple[str | None, ...]
    predicted: tuple[str | None, ...]
    start: int
    stop: int
    suggested: tuple[str | None, ...]
    score: float
    why: str
    drawn: bool

    @property
    def key(self) -> Key:
        """Which one it is."""
        return self.source, self.source_row, self.word_index


class OpenReview:
    """A review that is going on, as `tokloss review` would have it: made by `open_review`; close it at the end, or use
    it in a `with` statement. Decisions are durable when a method returns."""

    def __init__(self, output: str, reviewer: str, learn: bool, audit_share: float) -> None:
        self._review = Review(output, reviewer, learn, audit_share)
        self._review.start()
        if audit_share > 0:
            self._review.places.wait()

    def __enter__(self) -> OpenReview:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the review; another process may go on."""
        self._review.close()

    def issues(
        self,
        limit: int | None = None,
        *,
        label: str | None = None,
        suggested: str | None = None,
        word: str | None = None,
        min_score: float | None = None,
        max_score: float | None = None,
    ) -> Iterator[ReviewIssue]:
        """The issues without a decision, the most suspicious first, each once; words drawn at random among them.

        Decisions count at once: later issues follow what was learnt from them. With a filter, none are drawn.

        limit: how many at most. label, suggested: only with this tag, and this suggestion. word: only this word.
        min_score, max_score: bounds of the score, both inclusive.
        """
        chosen = Filter(label, suggested, word, min_score, max_score)
        given: set[Key] = set()
        start, ranking = 0, -1
        while limit is None or len(given) < limit:
            if self._review.learning is not None:
                self._review.learning.result()  # the order must not depend on how fast decisions come
            answer = self._review.next(chosen, start, 1)
            if answer["ranking"] != ranking:
                again, ranking = start > 0, answer["ranking"]
                if again:
                    start = 0
                    continue
            drawn = answer["drawn"] if chosen.is_empty else None
            if drawn is not None and _key(drawn) not in given:
                item = drawn
            elif answer["items"]:
                item, start = answer["items"][0], answer["next"]
                if _key(item) in given:
                    continue
            else:
                return
            given.add(_key(item))
            yield self._issue(_key(item), item["drawn"])

    def keep(self, issue: ReviewIssue) -> None:
        """The labels are right."""
        self._review.decide(KEEP, [issue.key], None, None)

    def accept(self, issue: ReviewIssue) -> None:
        """The suggested tags are right."""
        self._review.decide(ACCEPT, [issue.key], None, None)

    def edit(self, issue: ReviewIssue, tags: Sequence[str]) -> None:
        """Other tags are right. tags: for the words [start, stop) of the issue.

        Raises:
            Refused: they are not as many as the words, or not the model's.
        """
        if len(tags) != issue.stop - issue.start:
            raise Refused(f"{len(tags)} tags for {issue.stop - issue.start} words: pass one for each")
        known = self._review.scheme.tag_set.tags
        if unknown := [tag for tag in tags if tag not in known]:
            raise Refused(f"{unknown[0]} is no tag of the model: choose from {', '.join(known)}")
        after = [*issue.labels[: issue.start], *tags, *issue.labels[issue.stop :]]
        self._review.decide(EDIT, [issue.key], spans_in(after, self._review.scheme), None)

    def skip(self, issue: ReviewIssue) -> None:
        """Decide nothing, and do not ask again."""
        self._review.decide(SKIP, [issue.key], None, None)

    def undo(self) -> None:
        """Take back the last decision.

        Raises:
            Refused: there is none.
        """
        self._review.undo()

    def _issue(self, key: Key, drawn: bool) -> ReviewIssue:
        item = self._review.shown(key)
        issue, sentence, change = item
        return ReviewIssue(
            example_id=issue.example_id,
            source=issue.source,
            source_row=issue.source_row,
            word_index=issue.word_index,
            words=tuple(sentence.words),
            labels=tuple(sentence.labels),
            predicted=tuple(sentence.predicted),
            start=change.start,
            stop=change.stop,
            suggested=change.tags,
            score=issue.score,
            why=issue.why,
            drawn=drawn,
        )


def _key(item: dict[str, list[str | int]]) -> Key:
    source, row, word = item["key"]
    return str(source), int(row), int(word)


def open_review(
    output: str, reviewer: str | None = None, *, learn: bool = True, audit_share: float = DEFAULT_SHARE
) -> OpenReview:
    """Go through the label issues of an output and decide on them, as `tokloss review` does on a page.

    Args:
        output: output folder or address of a run that was mined.
        reviewer: whose decisions these are; by default, the login name.
        learn: rank what is left again after every 50 decisions, by what was decided.
        audit_share: share of issues that are words drawn at random, for `estimate`; above 0, the corpus is read once
            before the first issue.

    Returns:
        The review: `issues` gives the issues, `keep`, `accept`, `edit`, `skip` and `undo` decide on them.

    Raises:
        Refused: there is nothing to review, or the reviewer is at work in another process.

    Example:
        >>> import tokloss_ray
        >>> with tokloss_ray.open_review("tokloss-demo", "anna", audit_share=0) as review:
        ...     for issue in review.issues(limit=2):
        ...         print(issue.words[issue.start:issue.stop], issue.labels[issue.start:issue.stop], issue.suggested)
        ...         review.keep(issue)
        ('das', 'Titellied') ('B-ORG', 'I-ORG') ('O', 'O')
        ('den', 'Ärzten') ('B-ORG', 'I-ORG') ('O', 'O')
    """
    if reviewer is None:
        try:
            reviewer = getpass.getuser()
        except (OSError, KeyError):  # a container's user may have no name
            reviewer = "reviewer"
    return OpenReview(output, reviewer, learn, audit_share)
