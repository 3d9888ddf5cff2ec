"""Where reviewers disagree, and how often they agree: over the words that several of them decided on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from tokloss_ray.output.decisions import Decision, Row, by_word, standing, tag_of

ByReviewer = Mapping[str, Sequence[Decision]]


class Agreement(NamedTuple):
    """Two reviewers on the words that both decided on.

    words: how many. same: how many of these got the same tag from both. kappa: Cohen's kappa over the tags; None where
    chance alone would have them agree (all words got one tag).
    """

    first: str
    second: str
    words: int
    same: int
    kappa: float | None


def decided_words(decisions: ByReviewer) -> dict[Row, dict[int, dict[str, Decision]]]:
    """For each row and word, the decision of each reviewer that counts (all but skipped)."""
    found: dict[Row, dict[int, dict[str, Decision]]] = defaultdict(lambda: defaultdict(dict))
    for reviewer, own in decisions.items():
        for row, words in by_word(standing(own)).items():
            for word, decision in words.items():
                if decision.counts:
                    found[row][word][reviewer] = decision
    return found


def is_conflict(word: int, by_reviewer: Mapping[str, Decision]) -> bool:
    """Whether reviewers gave a word different tags."""
    return len({tag_of(decision, word) for decision in by_reviewer.values()}) > 1


def conflicts(decisions: ByReviewer) -> dict[Row, list[int]]:
    """The words to which reviewers gave different tags, by row."""
    found = {
        row: [word for word, by_reviewer in sorted(words.items()) if is_conflict(word, by_reviewer)]
        for row, words in decided_words(decisions).items()
    }
    return {row: words for row, words in found.items() if words}


def of_others(decisions: ByReviewer, reviewer: str, row: Row, start: int, stop: int) -> list[Decision]:
    """The standing decisions of all but one reviewer on words of [start, stop) of a row."""
    return [
        decision
        for name, theirs in decisions.items()
        if name != reviewer
        for decision in standing(theirs)
        if decision.row == row and decision.start < stop and start < decision.stop
    ]


def agreement(decisions: ByReviewer) -> list[Agreement]:
    """Each pair of reviewers who share words, by name."""
    pairs: dict[tuple[str, str], Counter[tuple[str | None, str | None]]] = defaultdict(Counter)
    for words in decided_words(decisions).values():
        for word, by_reviewer in words.items():
            for first, second in combinations(sorted(by_reviewer), 2):
                tags = tag_of(by_reviewer[first], word), tag_of(by_reviewer[second], word)
                pairs[first, second][tags] += 1
    return [
        Agreement(*names, counts.total(), sum(n for (a, b), n in counts.items() if a == b), cohens_kappa(counts))
        for names, counts in sorted(pairs.items())
    ]


def cohens_kappa(counts: Mapping[tuple[str | None, str | None], int]) -> float | None:
    """(observed - expected) / (1 - expected) agreement, from how often each pair of answers was given (Cohen 1960)."""
    total = sum(counts.values())
    rows: Counter[str | None] = Counter()
    columns: Counter[str | None] = Counter()
    for (a, b), n in counts.items():
        rows[a] += n
        columns[b] += n
    observed = sum(n for (a, b), n in counts.items() if a == b) / total
    expected = sum(rows[tag] * columns[tag] for tag in rows) / total**2
    return None if expected == 1 else (observed - expected) / (1 - expected)
