"""How many labels are wrong, from what a review decided: an estimate with an interval, in all and by tag.

What was reviewed by rank is counted. What was not is estimated from the words that were drawn at random (`audit`):
the errors among the n drawn words of a stratum, times N / n, where N words of it are left. That is the estimator of
Horvitz and Thompson (1952) for a stratified sample. What is known without sampling is taken as it is and only the
rest estimated, as in the difference estimator (Särndal, Swensson and Wretman 1992, 6.3) and in prediction-powered
inference (Angelopoulos et al. 2023). That what was reviewed first is not like the rest, the problem of estimating from
actively chosen words (Farquhar, Gal and Rainforth 2021), does no harm: nothing is concluded from it.

The interval is in `intervals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokloss_ray.errors import Refused
from tokloss_ray.output.decisions import Decision, read_decisions, standing, tag_of
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.review.audit import STRATA, Key, Population, numbers_of_keys, seed_of
from tokloss_ray.review.intervals import expanded, groups
from tokloss_ray.review.places import labelled_words

RECENT = 100
"""Issues by rank that say what the next ones are worth."""


@dataclass(frozen=True)
class Wrong:
    """Wrong labels among those of one tag, or of all.

    Attributes:
        tag: None for all.
        labels: labelled words.
        found: labels that were decided to be wrong.
        total: estimate of all that are wrong, those found included.
        low, high: interval of `total`, 95 %.
    """

    tag: str | None
    labels: int
    found: int
    total: float
    low: float
    high: float

    @property
    def unseen(self) -> tuple[float, float, float]:
        """Wrong labels that nobody has decided on: estimate, and bounds."""
        return max(self.total - self.found, 0.0), max(self.low - self.found, 0.0), self.high - self.found


@dataclass(frozen=True)
class Estimate:
    """What a review says about a corpus.

    Attributes:
        all: over all tags.
        tags: of each tag that labels have, the one with most wrong labels first.
        decided: words that were decided on.
        drawn, drawn_wrong: words drawn at random that count, and how many of them were wrong; of words that have come
            up by rank as well, none.
        skipped: drawn words on which nobody decided: the estimate takes them for words like the others.
        outdated: drawn words that do not count, because the output has changed since.
        recent, recent_wrong: the last issues by rank, 100 at most, and in how many a label was wrong.
    """

    all: Wrong
    tags: tuple[Wrong, ...]
    decided: int
    drawn: int
    drawn_wrong: int
    skipped: int
    outdated: int
    recent: int
    recent_wrong: int


def estimate(output: str, reviewers: Sequence[str] = ()) -> Estimate:
    """Estimate how many labels of an output are wrong, from the decisions of `tokloss review`.

    Args:
        output: output folder or address of a run that was reviewed.
        reviewers: use only their decisions; by default everybody's, on each word the latest.

    Returns:
        Estimates with 95 % intervals, over all tags and by tag.

    Raises:
        Refused: there are no decisions, or none on words drawn at random.
        JobFailed: a file of the output cannot be read.

    Example:
        >>> import tokloss_ray
        >>> with tokloss_ray.open_review("tokloss-demo", "anna", audit_share=0.5) as review:
        ...     for issue in review.issues(limit=20):
        ...         review.keep(issue)
        >>> found = tokloss_ray.estimate("tokloss-demo")
        >>> found.drawn, found.all.found, found.all.labels
        (10, 0, 97805)
    """
    decisions = read_decisions(output)
    if lacking := [name for name in reviewers if name not in decisions]:
        raise Refused(f"--reviewer {lacking[0]}: no decisions by this name")
    decisions = {name: own for name, own in decisions.items() if not reviewers or name in reviewers}
    if not any(d.counts for own in decisions.values() for d in standing(own)):
        raise Refused(f"{output} has no decisions: run tokloss review {output}")
    if not any(d.stratum is not None for own in decisions.values() for d in standing(own)):
        raise Refused(
            f"no words of {output} were drawn at random, so nothing is known of the labels that were not reviewed: "
            "go on with tokloss review and an --audit-share above 0"
        )
    scores = open_outputs(output, partial=True)
    asked = {key for own in decisions.values() for d in standing(own) for key in keys_of(d)}
    population = Population(scores.tags, seed_of(""), asked)
    for words, _ in labelled_words(scores):
        population.add(words)
    population.finish()
    found = estimated(decisions, population)
    if found is None:
        raise Refused("the words drawn at random have all come up by rank, too, or were skipped: decide on a few more")
    return found


def keys_of(decision: Decision) -> list[Key]:
    """The words that a decision is about."""
    return [(*decision.row, word) for word in range(decision.start, decision.stop)]


def estimated(decisions: Mapping[str, Sequence[Decision]], population: Population) -> Estimate | None:
    """The estimate from decisions by reviewer; None if no word of the sample counts.

    population: knows the words that were decided on.
    """
    ranked: set[Key] = set()
    drawn: set[Key] = set()
    latest: dict[Key, tuple[str, bool]] = {}
    skipped = outdated = 0
    by_rank: list[Decision] = []
    sizes = population.counts.sum(axis=1)
    for own in decisions.values():
        left = standing(own)
        random = {d.batch for d in left if d.stratum is not None} - {batch for d in left for batch in d.passes}
        by_rank += [d for d in left if d.counts and d.batch not in random]
        for d in left:
            if not d.counts:
                skipped += d.batch in random and d.stratum is not None
                continue
            for key in keys_of(d):
                was = latest.get(key)
                if was is None or was[0] <= d.time:
                    latest[key] = d.time, tag_of(d, key[2]) != d.labels[key[2] - d.start]
            if d.batch not in random:
                ranked.update(keys_of(d))
            elif d.stratum is not None:
                if d.population == sizes[d.stratum]:
                    drawn.add((*d.row, d.word_index))
                else:
                    outdated += 1
    keys = list(latest)
    place = [population.known.get(int(number), (-1, -1)) for number in numbers_of_keys(keys)]
    stratum, label = np.array(place, np.int64).reshape(-1, 2).T
    wrong = np.array([latest[key][1] for key in keys], bool)
    in_rank = np.array([key in ranked for key in keys], bool)
    in_sample = np.array([key in drawn for key in keys], bool) & ~in_rank
    there = stratum >= 0

    def table(which: np.ndarray) -> np.ndarray:
        found = np.zeros_like(population.counts)
        np.add.at(found, (stratum[which & there], label[which & there]), 1)
        return found

    left_over = population.counts - table(in_rank)
    sample = table(in_sample)
    if not sample.sum():
        return None
    errors, known, found = table(in_sample & wrong), table(in_rank & wrong), table(wrong)
    group = groups(left_over.sum(axis=1), sample.sum(axis=1))
    each = [
        wrong_labels(tag, part, population.counts, left_over, sample, errors, known, found, group)
        for tag, part in [(None, slice(None)), *((tag, slice(i, i + 1)) for i, tag in enumerate(population.tags))]
    ]
    last = sorted(by_rank, key=lambda d: d.time)[-RECENT:]
    return Estimate(
        all=each[0],
        tags=tuple(sorted((one for one in each[1:] if one.labels), key=lambda one: -one.total)),
        decided=int(there.sum()),
        drawn=int(sample.sum()),
        drawn_wrong=int(errors.sum()),
        skipped=skipped,
        outdated=outdated,
        recent=len(last),
        recent_wrong=sum(d.tags != d.labels for d in last),
    )


def wrong_labels(
    tag: str | None,
    part: slice,
    counts: np.ndarray,
    left: np.ndarray,
    sample: np.ndarray,
    errors: np.ndarray,
    known: np.ndarray,
    found: np.ndarray,
    group: np.ndarray,
) -> Wrong:
    """The estimate for some columns (`part`) of tables by stratum and tag, each [STRATA, tags] int64.

    counts: of all words. left: not reviewed by rank. sample, errors: drawn of these, and wrong of those. known: wrong,
    reviewed by rank. found: wrong, reviewed in any way. group: [STRATA], the strata that share one weight.
    """
    n = np.bincount(group, sample.sum(axis=1), STRATA)
    weight = np.divide(np.bincount(group, left.sum(axis=1), STRATA), n, out=np.ones(STRATA), where=n > 0)
    x = np.bincount(group, errors[:, part].sum(axis=1), STRATA)
    here = np.bincount(group, left[:, part].sum(axis=1), STRATA)
    more, low, high = expanded(weight, n, x, here > 0)
    sure = int(known[:, part].sum() + errors[:, part].sum())
    seen = int(found[:, part].sum())
    most = int(known[:, part].sum() + here.sum())
    total = min(sure + more, most)
    return Wrong(tag, int(counts[:, part].sum()), seen, total, max(sure + low, seen), max(min(sure + high, most), seen))
