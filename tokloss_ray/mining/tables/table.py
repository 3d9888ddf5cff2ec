"""What a mining table is: how it is made of parts of the data, and what of it is shown on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from tokloss_ray.mining.ranks.label_scores import Ranking
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.words.words import Words

Partials = dict[str, pa.Table]
"""The partial of each table that has one, by the table's name."""

Tables = dict[str, pa.Table]
"""Finished tables by name."""


@dataclass(frozen=True)
class Part:
    """Some words, and what several tables make of them.

    Attributes:
        every: all words, labelled or not.
        unlabelled: the words without a label.
        tokens: all labelled tokens.
        words: the first labelled token of each labelled word; the same object where words have one each.
        ranking: the words with the score of each label.
        wrong: their wrong entities (`entity_errors.wrong_rows`).
    """

    every: Words
    unlabelled: Words
    tokens: Words
    words: Words
    ranking: Ranking
    wrong: pa.Table


@dataclass(frozen=True, kw_only=True)
class FromParts:
    """How a table is made where a partial is too large for memory: part by part of the partial's key.

    Attributes:
        of: the table whose partial it is made from.
        portion: one part of the partial and the settings -> some rows of the table.
        order: where the table has the rows of all portions: how they are sorted, behind the columns to slice by.
        combine: where it has not: portions in order and the settings -> one.
        final: the combined portions, the partials of everything that are in memory, and the settings -> the table.
    """

    of: str
    portion: Callable[[pa.Table, MiningSettings], pa.Table]
    order: tuple[tuple[str, str], ...] = ()
    combine: Callable[[Sequence[pa.Table], MiningSettings], pa.Table] | None = None
    final: Callable[[pa.Table, Mapping[str, pa.Table], MiningSettings], pa.Table] | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A mining table. It is written and shown as soon as `listing.TABLES` has it.

    Attributes:
        name: of the table, its file and its partial.
        title: above its first rows on the terminal.
        shown: the columns that are shown there.
        final: the partials of everything, by name, and the settings -> the table. Columns to slice by come first.
        partial: a part of the data and the settings -> what the table needs to know of it. None: the table is made of
            the partials of others.
        combine: partials in the order of the data, and the settings -> one partial.
        of_rows: the partial is the first rows of the data by some order, and no sums of them: those of neighbours are
            combined as soon as there are a few, which comes to the same.
        key: a column of text whose values keep rows of the partial together, if there may be as many as words. All
            tables that are made of this partial then say how in `from_parts`.
        from_parts: how the table is made of a partial that is too large for memory.
        view: the table and the columns to slice by -> the rows to show; by default, the first.
        of: the words that it is about; where there are none of them, it is empty and not shown.
    """

    name: str
    title: str
    shown: tuple[str, ...]
    final: Callable[[Mapping[str, pa.Table], MiningSettings], pa.Table]
    partial: Callable[[Part, MiningSettings], pa.Table] | None = None
    combine: Callable[[Sequence[pa.Table], MiningSettings], pa.Table] | None = None
    of_rows: bool = False
    key: str | None = None
    from_parts: FromParts | None = None
    view: Callable[[pa.Table, Sequence[str]], pa.Table] | None = None
    of: Literal["labelled", "unlabelled", "all"] = "labelled"
