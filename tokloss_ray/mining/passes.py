"""One pass over the data: each batch of files becomes partial tables, which are combined in a tree of fixed shape.

The shape depends on the files alone, so that sums come out the same to the last digit whatever number of workers there
are, with threads or on a cluster. At most a few partials of each level are held, so that memory grows with the number
of distinct words and not with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from tokloss_ray.mining.ranks.label_scores import rank_labels
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables import listing
from tokloss_ray.mining.tables.entity_errors import wrong_rows
from tokloss_ray.mining.tables.grouping import check_slices
from tokloss_ray.mining.tables.table import Part, Partials, Tables
from tokloss_ray.mining.words.load import BATCH_TOKENS, read_tokens
from tokloss_ray.mining.words.words import Words, first_tokens, no_words
from tokloss_ray.output.opened import ScoreFile
from tokloss_ray.threads import map_in_threads

_FAN = 8


def partial_tables(labelled: Words, settings: MiningSettings) -> Partials:
    """The partial tables of some labelled tokens."""
    words = first_tokens(labelled)
    ranking = rank_labels(words, settings.labels, settings.rank, settings.scheme)
    part = Part(labelled, words, ranking, wrong_rows(words, settings.scheme))
    return {table.name: table.partial(part, settings) for table in listing.TABLES if table.partial}


def combine_tables(parts: Sequence[Partials], settings: MiningSettings) -> Partials:
    """Partials of several parts as those of one, in the order given."""
    if len(parts) == 1:
        return parts[0]
    combine = {table.name: table.combine for table in listing.TABLES if table.combine}

    def combined(name: str) -> pa.Table:
        return combine[name]([part[name] for part in parts], settings)

    return dict(zip(combine, map_in_threads(combined, list(combine)), strict=True))


def final_tables(partials: Partials, settings: MiningSettings) -> Tables:
    """The tables, by name, from the partials of everything.

    Raises:
        Refused: there are more than 1,000 slices.
    """
    check_slices(partials["tags"], settings.by)
    tables = list(listing.TABLES)
    made = map_in_threads(lambda table: table.final(partials, settings), tables)
    return {table.name: whole for table, whole in zip(tables, made, strict=True)}


def column_names(settings: MiningSettings) -> set[str]:
    """The columns of all tables and of all partials, as tables of no words have them.

    A column to slice by must have another name. settings: with no slices.
    """
    partials = partial_tables(no_words(settings.tags, probs=settings.probs), settings)
    tables = final_tables(partials, settings)
    return {name for table in (*partials.values(), *tables.values()) for name in table.column_names}


def mine_batch(files: Iterable[ScoreFile], settings: MiningSettings) -> Partials | None:
    """The partial tables of a batch of files; None if none of their rows passes."""
    # A batch of whole files may be half as large again as is aimed at: it is still one part.
    some = read_tokens(files, settings.tags, settings.by, settings.where, settings.probs, tokens=2 * BATCH_TOKENS)
    parts = [partial_tables(words, settings) for words in some if len(words)]
    return combine_tables(parts, settings) if parts else None


def combine_in_order(parts: Iterable[Partials | None], settings: MiningSettings) -> Partials | None:
    """Combine partials as they come, eight of a level at a time; None if there are none."""
    levels: list[list[Partials]] = []

    def push(part: Partials, level: int) -> None:
        if len(levels) <= level:
            levels.append([])
        levels[level].append(part)
        if len(levels[level]) == _FAN:
            whole = combine_tables(levels[level], settings)
            levels[level] = []
            push(whole, level + 1)

    for part in parts:
        if part is not None:
            push(part, 0)
    left = [part for level in reversed(levels) for part in level]
    return combine_tables(left, settings) if left else None
