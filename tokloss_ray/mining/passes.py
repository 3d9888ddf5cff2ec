"""One pass over the data: each batch of files becomes partial tables, which are combined in a tree of fixed shape.

The shape depends on the files alone, so that sums come out the same to the last digit whatever number of workers there
are, with threads or on a cluster. At most a few partials of each level are held, so that memory grows with the number
of distinct words and not with the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tokloss_ray.mining.ranks.label_scores import PRIOR_ADJUSTED, rank_labels
from tokloss_ray.mining.tables import (
    confusion,
    entities,
    entity_errors,
    entity_issues,
    label_issues,
    lengths,
    loss_distribution,
    sequences,
    tokens,
)
from tokloss_ray.mining.tables.grouping import check_slices
from tokloss_ray.mining.words.load import BATCH_TOKENS, read_tokens
from tokloss_ray.mining.words.words import Words, first_tokens
from tokloss_ray.output.opened import Condition, ScoreFile
from tokloss_ray.threads import map_in_threads

Partials = dict[str, pa.Table]
Tables = dict[str, pa.Table]

_FAN = 8


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What the pass needs to know wherever it runs.

    Attributes:
        tags: the model's tags by code.
        labels: labelled tokens of the outputs by tag, whatever is sliced or filtered: the prior of label issues.
        by: columns to slice by.
        where: which rows.
        limit: rows of a ranked table (of each slice).
        min_count: tokens and words that are labelled less often are left out of their tables.
        scheme: of the tags, where their names do not tell (`tag_schemes`).
        rank: how label issues are ranked.
        probs: read the probabilities of all tags: the rank is made of them.
    """

    tags: tuple[str, ...]
    labels: dict[str, int]
    by: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    limit: int = 10_000
    min_count: int = 1
    scheme: str | None = None
    rank: str = PRIOR_ADJUSTED
    probs: bool = False


def partial_tables(labelled: Words, job: Pass) -> Partials:
    """The partial tables of some labelled tokens."""
    words = first_tokens(labelled)
    ranking = rank_labels(words, job.labels, job.rank, job.scheme)
    wrong = entity_errors.wrong_rows(words, job.scheme)
    return {
        "tokens": tokens.tokens_partial(labelled),
        "words": tokens.words_partial(words),
        "tags": confusion.tags_partial(labelled),
        "loss_distribution": loss_distribution.loss_distribution_partial(labelled),
        "sequences": sequences.sequences_partial(labelled, job.limit),
        "lengths": lengths.lengths_partial(words),
        "entities": entities.entities_partial(words, job.scheme),
        "malformed_tags": entities.malformed_partial(words, job.scheme),
        "entity_errors": entity_errors.entity_errors_partial(words, job.limit, job.scheme, rows=wrong),
        "entity_error_counts": entity_errors.entity_error_counts_partial(words, job.scheme, rows=wrong),
        "label_issues": label_issues.label_issues_partial(ranking, job.limit),
        "sentence_issues": label_issues.sentence_issues_partial(ranking, job.limit),
        "entity_issues": entity_issues.entity_issues_partial(ranking, job.limit),
    }


def combine_tables(parts: Sequence[Partials], job: Pass) -> Partials:
    """Partials of several parts as those of one, in the order given."""
    if len(parts) == 1:
        return parts[0]
    of = {name: [part[name] for part in parts] for name in parts[0]}
    return _all(
        {
            "tokens": lambda: tokens.tokens_combine(of["tokens"], job.by),
            "words": lambda: tokens.words_combine(of["words"], job.by),
            "tags": lambda: confusion.tags_combine(of["tags"], job.by),
            "loss_distribution": lambda: loss_distribution.loss_distribution_combine(of["loss_distribution"], job.by),
            "sequences": lambda: sequences.sequences_combine(of["sequences"], job.by, job.limit),
            "lengths": lambda: lengths.lengths_combine(of["lengths"], job.by),
            "entities": lambda: entities.entities_combine(of["entities"], job.by),
            "malformed_tags": lambda: entities.malformed_combine(of["malformed_tags"], job.by),
            "entity_errors": lambda: entity_errors.entity_errors_combine(of["entity_errors"], job.by, job.limit),
            "entity_error_counts": lambda: entity_errors.entity_error_counts_combine(of["entity_error_counts"], job.by),
            "label_issues": lambda: label_issues.label_issues_combine(of["label_issues"], job.by, job.rank, job.limit),
            "sentence_issues": lambda: label_issues.sentence_issues_combine(of["sentence_issues"], job.by, job.limit),
            "entity_issues": lambda: entity_issues.entity_issues_combine(of["entity_issues"], job.by, job.limit),
        }
    )


def final_tables(part: Partials, job: Pass) -> Tables:
    """The tables, by name, from the partials of everything.

    Raises:
        Refused: there are more than 1,000 slices.
    """
    check_slices(part["tags"], job.by)
    words = [part["words"]]
    return _all(
        {
            "tokens": lambda: tokens.tokens_merge([part["tokens"]], job.by, job.min_count),
            "words": lambda: tokens.words_merge(words, job.by, job.min_count),
            "tags": lambda: confusion.tags_merge([part["tags"]], job.by),
            "loss_distribution": lambda: loss_distribution.loss_distribution_merge([part["loss_distribution"]], job.by),
            "confusion": lambda: confusion.confusion_merge([part["tags"]], job.tags, job.by, job.scheme),
            "sequences": lambda: sequences.sequences_merge([part["sequences"]], job.by, job.limit),
            "inconsistent": lambda: tokens.inconsistent_merge(
                words, job.tags, job.by, job.min_count, job.limit, job.scheme
            ),
            "lengths": lambda: lengths.lengths_merge([part["lengths"]], words, job.by),
            "entities": lambda: entities.entities_merge([part["entities"]], job.by),
            "malformed_tags": lambda: entities.malformed_merge([part["malformed_tags"]], job.by),
            "entity_errors": lambda: entity_errors.entity_errors_merge([part["entity_errors"]], job.by, job.limit),
            "entity_error_counts": lambda: entity_errors.entity_error_counts_merge(
                [part["entity_error_counts"]], job.by
            ),
            "label_issues": lambda: label_issues.label_issues_merge(
                [part["label_issues"]], job.by, job.rank, job.limit
            ),
            "sentence_issues": lambda: label_issues.sentence_issues_merge([part["sentence_issues"]], job.by, job.limit),
            "entity_issues": lambda: entity_issues.entity_issues_merge([part["entity_issues"]], job.by, job.limit),
        }
    )


def _all(tables: dict[str, Callable[[], pa.Table]]) -> Tables:
    """Each table by its function, several at once."""
    return dict(zip(tables, map_in_threads(lambda make: make(), list(tables.values())), strict=True))


def mine_batch(files: Iterable[ScoreFile], job: Pass) -> Partials | None:
    """The partial tables of a batch of files; None if none of their rows passes."""
    # A batch of whole files may be half as large again as is aimed at: it is still one part.
    some = read_tokens(files, job.tags, job.by, job.where, job.probs, tokens=2 * BATCH_TOKENS)
    parts = [partial_tables(words, job) for words in some if len(words)]
    return combine_tables(parts, job) if parts else None


def combine_in_order(parts: Iterable[Partials | None], job: Pass) -> Partials | None:
    """Combine partials as they come, eight of a level at a time; None if there are none."""
    levels: list[list[Partials]] = []

    def push(part: Partials, level: int) -> None:
        if len(levels) <= level:
            levels.append([])
        levels[level].append(part)
        if len(levels[level]) == _FAN:
            whole = combine_tables(levels[level], job)
            levels[level] = []
            push(whole, level + 1)

    for part in parts:
        if part is not None:
            push(part, 0)
    left = [part for level in reversed(levels) for part in level]
    return combine_tables(left, job) if left else None


def one_after_another(batches: Sequence[list[ScoreFile]], job: Pass) -> Iterator[Partials | None]:
    """The partials of each batch, in this thread."""
    for batch in batches:
        yield mine_batch(batch, job)


Runner = Callable[[Sequence[list[ScoreFile]], Pass], Iterator[Partials | None]]
"""Makes the partials of batches, in their order, wherever it likes."""
