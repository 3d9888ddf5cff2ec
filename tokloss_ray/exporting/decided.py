"""Decisions of `tokloss review` as corrections: what `apply-fixes` writes into a dataset, and `export` into a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.sentences import Correction
from tokloss_ray.output.agreement import decided_words, is_conflict
from tokloss_ray.output.decisions import Decision, Row, read_folder, review_folder, tag_of
from tokloss_ray.storage.files import kind_of, open_location

REFUSE, LEAVE, LATEST = "refuse", "leave", "latest"
CONFLICTS = (REFUSE, LEAVE, LATEST)
"""What to do where reviewers disagree: end with an error; leave the labels of all words in question as they are; take
the latest decision."""


def is_folder_of_decisions(given: str) -> bool:
    """Whether what was given for a corrected file is an output that was reviewed, or its folder of decisions."""
    return kind_of(*open_location(given)) == "directory"


def read_decided(given: str, reviewers: Sequence[str] = ()) -> dict[str, list[Decision]]:
    """The decisions about an output, or in its folder `review`; with `reviewers`, only theirs.

    Raises:
        Refused: there are none, none of a reviewer, or a line is damaged.
    """
    inside = review_folder(given)
    folder = inside if kind_of(*open_location(inside)) == "directory" else given
    found = read_folder(folder)
    if not found:
        raise Refused(f"{given} has no decisions: run tokloss review {given}")
    if lacking := [name for name in reviewers if name not in found]:
        raise Refused(f"--reviewer {lacking[0]}: no decisions by this name; there are some by {', '.join(found)}")
    return {name: found[name] for name in reviewers or found}


def corrections(decisions: Mapping[str, Sequence[Decision]], on_conflict: str = REFUSE) -> Iterator[Correction]:
    """One correction for each row that somebody decided on; words that were kept are in it, without a change.

    Raises:
        Refused: reviewers disagree, and `on_conflict` does not say what to do; or it is none of `CONFLICTS`.
    """
    if on_conflict not in CONFLICTS:
        raise Refused(f"--conflicts {on_conflict}: choose one of {', '.join(CONFLICTS)}")
    rows = decided_words(decisions)
    disputed = {row: {w for w, by in words.items() if is_conflict(w, by)} for row, words in rows.items()}
    if on_conflict == REFUSE:
        _refuse_conflicts(rows, disputed)
    for row, words in rows.items():
        left = _whole_decisions(words, disputed[row]) if on_conflict == LEAVE else set()
        yield _correction(row, {word: by for word, by in words.items() if word not in left})


Words = dict[int, dict[str, Decision]]


def _refuse_conflicts(rows: Mapping[Row, Words], disputed: Mapping[Row, set[int]]) -> None:
    first = next((row for row, words in disputed.items() if words), None)
    if first is None:
        return
    word = min(disputed[first])
    by_reviewer = rows[first][word]
    said = " but ".join(f"{tag_of(d, word)} by {name}" for name, d in by_reviewer.items())
    decision = next(iter(by_reviewer.values()))
    count = sum(map(len, disputed.values()))
    more = f"; {count:,} words are disputed in all" if count > 1 else ""
    raise Refused(
        f"word {word} of {decision.name} ({decision.words[word - decision.start]!r}) was tagged {said}{more}: settle "
        f"that in tokloss review, or pass --conflicts {LEAVE} or {LATEST}, or --reviewer NAME"
    )


def _whole_decisions(words: Words, disputed: set[int]) -> set[int]:
    """Disputed words, and all others that belong to the same decisions: half of one may be malformed."""
    left = set(disputed)
    for word in disputed:
        for decision in words[word].values():
            left |= set(range(decision.start, decision.stop))
    return left


def _correction(row: Row, words: Words) -> Correction:
    example_id = next((d.example_id for by in words.values() for d in by.values()), "")
    correction = Correction(example_id, *row)
    for word, by_reviewer in words.items():
        decision = max(by_reviewer.values(), key=lambda d: d.time)
        at = word - decision.start
        correction.words[word] = decision.words[at]
        label, tag = decision.labels[at], decision.tags[at]
        if tag is not None and tag != label:
            correction.changes[word] = (label, tag)
    return correction
