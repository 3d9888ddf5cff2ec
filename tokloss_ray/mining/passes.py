"""The passes over the data: a short one that counts words, if the rank asks for it, and the one that makes all tables.

In the second, each batch of files becomes partial tables, which are combined in a tree of fixed shape.

The shape depends on the files alone, so that sums come out the same to the last digit whatever number of workers there
are, with threads or on a cluster. At most a few partials of each level are held; of those with a row for each word, no
more than fit in memory (`large.py`); of those that are rows of the data, a few in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.large import MOST_ROWS, DividedPartial, SortedOnDisk
from tokloss_ray.mining.ranks.label_scores import rank_labels
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables import listing
from tokloss_ray.mining.tables.entity_errors import wrong_rows
from tokloss_ray.mining.tables.grouping import Order, check_slices
from tokloss_ray.mining.tables.table import Part, Partials, Table, Tables
from tokloss_ray.mining.tree import Tree
from tokloss_ray.mining.words.load import BATCH_TOKENS, read_counts, read_tokens
from tokloss_ray.mining.words.occurrences import WordCounts
from tokloss_ray.mining.words.words import Words, first_tokens, no_words, take_words
from tokloss_ray.output.opened import ScoreFile
from tokloss_ray.threads import map_in_threads

_FEW = 4
"""Partials of rows that are held until they are combined."""


def partial_tables(tokens: Words, settings: MiningSettings) -> Partials:
    """The partial tables of some labelled tokens and words without a label."""
    has_label = tokens.label >= 0
    labelled = tokens if has_label.all() else take_words(tokens, np.flatnonzero(has_label))
    unlabelled = take_words(tokens, np.flatnonzero(~has_label))
    words = first_tokens(labelled)
    every = words if labelled is tokens else first_tokens(tokens)
    ranking = rank_labels(words, settings.labels, settings.rank, settings.scheme, settings.counts)
    part = Part(every, unlabelled, labelled, words, ranking, wrong_rows(words, settings.scheme))
    return {table.name: table.partial(part, settings) for table in listing.TABLES if table.partial}


def combine_tables(parts: Sequence[Partials], settings: MiningSettings, threads: bool = True) -> Partials:
    """Partials of several parts as those of one, in the order given; threads: on all cores."""
    if len(parts) == 1:
        return parts[0]
    combine = {table.name: table.combine for table in listing.TABLES if table.combine and table.name in parts[0]}

    def combined(name: str) -> pa.Table:
        return combine[name]([part[name] for part in parts], settings)

    made = map_in_threads(combined, list(combine)) if threads else map(combined, combine)
    return dict(zip(combine, made, strict=True))


def final_tables(partials: Partials, settings: MiningSettings, large: LargePartials | None = None) -> Tables:
    """The tables, by name, from the partials of everything; large: those that are not among them.

    Raises:
        Refused: there are more than 1,000 slices.
        JobFailed: the disk for temporary files is full.
    """
    check_slices(partials["tags"], settings.by)
    divided = large.partials if large else {}
    tables = [table for table in listing.TABLES if not (table.from_parts and table.from_parts.of in divided)]
    made = map_in_threads(lambda table: table.final(partials, settings), tables)
    found = {table.name: whole for table, whole in zip(tables, made, strict=True)}
    for name, partial in divided.items():
        found |= _from_parts(name, partial, partials, settings)
    return {table.name: found[table.name] for table in listing.TABLES}


def _from_parts(name: str, divided: DividedPartial, partials: Partials, settings: MiningSettings) -> Tables:
    """The tables that are made of one large partial."""
    ways = {
        table.name: table.from_parts for table in listing.TABLES if table.from_parts and table.from_parts.of == name
    }
    slices: Order = [(column, "ascending") for column in settings.by]
    whole = {table: SortedOnDisk([*slices, *way.order]) for table, way in ways.items() if way.order}
    rows: dict[str, pa.Table] = {}
    for part in divided.parts():
        made = map_in_threads(lambda way: way.portion(part, settings), list(ways.values()))  # noqa: B023 (used up here)
        for (table, way), portion in zip(ways.items(), made, strict=True):
            if way.combine is None:
                whole[table].add(portion)
            else:
                rows[table] = way.combine([rows[table], portion], settings) if table in rows else portion
    finished = {table: way.final(rows[table], partials, settings) for table, way in ways.items() if way.final}
    return finished | {table: sorted_rows.table() for table, sorted_rows in whole.items()}


def column_names(settings: MiningSettings) -> set[str]:
    """The columns of all tables and of all partials, as tables of no words have them.

    A column to slice by must have another name. settings: with no slices.
    """
    partials = partial_tables(no_words(settings.tags, probs=settings.probs, entropy=settings.entropy), settings)
    tables = final_tables(partials, settings)
    return {name for table in (*partials.values(), *tables.values()) for name in table.column_names}


def mine_batch(files: Iterable[ScoreFile], settings: MiningSettings) -> Partials | None:
    """The partial tables of a batch of files; None if none of their rows passes."""
    # A batch of whole files may be half as large again as is aimed at: it is still one part.
    some = read_tokens(
        files, settings.tags, settings.by, settings.where, settings.probs, 2 * BATCH_TOKENS, True, settings.entropy
    )
    parts = [partial_tables(words, settings) for words in some if len(words)]
    return combine_tables(parts, settings) if parts else None


def count_batch(files: Iterable[ScoreFile], settings: MiningSettings) -> WordCounts:
    """How the words of a batch of files are labelled, whatever is sliced or filtered."""
    return read_counts(files, settings.tags)


class LargePartials:
    """Partials that are too large for memory, taken out of those that are combined.

    Attributes:
        partials: by the name of their table.
    """

    def __init__(self, settings: MiningSettings) -> None:
        self.settings = settings
        self.partials: dict[str, DividedPartial] = {}
        self._uncombined: set[str] = set()

    def __enter__(self) -> LargePartials:
        return self

    def __exit__(self, *_: object) -> None:
        for partial in self.partials.values():
            partial.spill.close()

    def take_out(self, tree: Tree[Partials], made: Partials, level: int) -> None:
        """Move what is large out of a part that is about to join the tree, at first out of those that are there too."""
        for table in listing.TABLES:
            if table.key is None or table.name not in made:
                continue
            if table.name not in self.partials:
                held = [part for _, part in tree.left() if table.name in part]
                if sum(part[table.name].num_rows for part in [*held, made]) <= MOST_ROWS:
                    continue
                self._begin(table)
                self._move(tree, table.name, 1)
            if made[table.name].num_rows > MOST_ROWS // 8:  # eight of them are too many to be combined in memory
                self._uncombined.add(table.name)
                self._move(tree, table.name, 0)
            if level or table.name in self._uncombined:
                self.partials[table.name].add(made.pop(table.name), level)

    def _begin(self, table: Table) -> None:
        assert table.key
        assert table.combine
        combine, settings = table.combine, self.settings
        self.partials[table.name] = DividedPartial(table.key, lambda parts: combine(parts, settings))

    def _move(self, tree: Tree[Partials], name: str, least: int) -> None:
        """Move what the tree holds of a table, from a level upwards."""
        for level, part in tree.left():
            if level >= least and name in part:
                self.partials[name].add(part.pop(name), level)

    def take_left(self, tree: Tree[Partials]) -> None:
        """Move what is left of large partials."""
        for name in self.partials:
            self._move(tree, name, 0)


def combine_in_order(
    parts: Iterable[Partials | None], settings: MiningSettings, large: LargePartials | None = None
) -> Partials | None:
    """Combine partials as they come, eight of a level at a time; None if there are none.

    large: gets the partials that are too large for memory; without it, there are none.
    """
    # One table after the other: meanwhile the next parts are made on all cores.
    tree: Tree[Partials] = Tree(
        lambda some: combine_tables(some, settings, threads=False),
        (lambda part, level: large.take_out(tree, part, level)) if large else None,
    )
    rows = _Rows(settings)
    for part in parts:
        if part is not None:
            tree.push(rows.take_out(part))
    if large:
        large.take_left(tree)
    whole = tree.whole()
    return None if whole is None else whole | rows.whole()


class _Rows:
    """Partials that are rows: a few are held, however many there were."""

    def __init__(self, settings: MiningSettings) -> None:
        self.settings = settings
        self.held: list[Partials] = []

    def take_out(self, made: Partials) -> Partials:
        """The part without them."""
        names = [table.name for table in listing.TABLES if table.of_rows and table.name in made]
        self.held.append({name: made[name] for name in names})
        if len(self.held) == _FEW:
            self.held = [self.whole()]
        return {name: table for name, table in made.items() if name not in names}

    def whole(self) -> Partials:
        """All so far, combined."""
        return combine_tables(self.held, self.settings, threads=False)
