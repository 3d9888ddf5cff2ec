"""What a run of mining is told: the same for every part of the data and every table."""

from __future__ import annotations

from dataclasses import dataclass

from tokloss_ray.mining.ranks.label_scores import DEFAULT
from tokloss_ray.mining.words.occurrences import WordCounts
from tokloss_ray.output.opened import Condition


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """All that a part of the work needs to know, wherever it runs.

    Attributes:
        tags: the model's tags by code.
        labels: labelled tokens of the outputs by tag, whatever is sliced or filtered: the prior of label issues.
        by: columns to slice by.
        where: which rows.
        limit: rows of a ranked table (of each slice).
        min_count: tokens and words that are labelled less often are left out of their tables.
        scheme: of the tags, where their names do not tell (`tags.schemes`).
        rank: how label issues are ranked.
        probs: read the probabilities of all tags: the rank is made of them.
        entropy: read the entropies, which the outputs have.
        counts: how the words of the outputs are labelled, whatever is sliced or filtered, for a rank that reads their
            other places.
    """

    tags: tuple[str, ...]
    labels: dict[str, int]
    by: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    limit: int = 10_000
    min_count: int = 1
    scheme: str | None = None
    rank: str = DEFAULT
    probs: bool = False
    entropy: bool = False
    counts: WordCounts | None = None
