"""Do data and model spell entities in the same scheme? IOB1 and IOB2 have the same names of tags.

Before scoring, the labels of the first rows say in which scheme they are (`scheme_warnings`). After mining, so do the
predictions (`scheme_hint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.ragged import list_lengths, offsets_of, one_array
from tokloss_ray.schema import IGNORE_INDEX
from tokloss_ray.tags.schemes import (
    BEGINS_INSIDE,
    ENOUGH_BEGINNINGS,
    IO,
    IOB1,
    IOB2,
    NEEDLESS_BEGIN,
    TYPE_CHANGES,
    begins_with_inside,
    is_mostly,
    read_tag_set,
)


def scheme_warnings(tags: Sequence[str], sequences: pa.Table | None) -> list[str]:
    """A warning where most entities of some encoded rows begin with I, though the model has tags that begin with B.

    Losses compare tags: to a model of IOB2 each beginning would look wrong. Nothing but its predictions tells what a
    model was trained on; `tokloss mine` looks at these.
    """
    tag_set = read_tag_set(tuple(tags))
    if tag_set is None or tag_set.scheme != IOB2 or sequences is None:
        return []
    # Later windows may begin in the middle of an entity.
    rows = sequences.filter(pc.equal(sequences.column(schema.WINDOW), 0))
    lists = one_array(rows.column(schema.LABEL_IDS))
    codes, lengths = lists.flatten().to_numpy(zero_copy_only=False), list_lengths(lists)
    word_ids = one_array(rows.column(schema.WORD_IDS))
    row = np.repeat(np.arange(len(lengths)), lengths)
    at = np.flatnonzero(codes != IGNORE_INDEX)
    if word_ids.null_count:  # pre-encoded: the labelled tokens are the words
        word_index = np.arange(len(at))
    else:
        word_index = pc.fill_null(word_ids.flatten(), -1).to_numpy(zero_copy_only=False)[at]
        again = np.append(False, (np.diff(word_index) == 0) & (np.diff(row[at]) == 0))[: len(at)]
        at, word_index = at[~again], word_index[~again]
    offsets = offsets_of(np.bincount(row[at], minlength=len(lengths)))
    inside, entities = begins_with_inside(codes[at], offsets, word_index, tag_set)
    if not is_mostly(inside, entities):
        return []
    return [
        f"{inside:,} of the first {entities:,} entities begin with I-, as in IOB1 or IO; to a model that was trained "
        f"on IOB2, as most are, every beginning looks wrong: convert the tags to IOB2 before scoring, or, if the model "
        f"was trained on tags like these, mine with --scheme IOB1"
    ]


def scheme_hint(tables: Mapping[str, pa.Table], scheme: str | None = None) -> str | None:
    """What to do where most entities of one side begin in another way than those of the other, or than was said.

    tables: `tags`, `entities` and `malformed_tags` of `mine`, sliced or not. scheme: as it was given to `mine`.
    """
    tag_set = read_tag_set(tuple(tables["tags"].column("tag").unique().to_pylist()), scheme)
    if tag_set is None or tag_set.scheme not in (IO, IOB1, IOB2):
        return None
    said_iob1 = tag_set.scheme == IOB1
    counts = {side: _malformed(tables, side, said_iob1) for side in ("label", "predicted")}
    odd = {side: is_mostly(*numbers) for side, numbers in counts.items() if numbers[1] >= ENOUGH_BEGINNINGS}
    if not any(odd.values()):
        return None
    # What is malformed in one of the two schemes is the rule in the other.
    iob1 = {side: is_odd != said_iob1 for side, is_odd in odd.items()}
    ways = {True: "with I-, as in IOB1", False: "with B-, as in IOB2"}
    if len(set(iob1.values())) == 1:
        remedy = "leave out --scheme IOB1" if said_iob1 else "mine with --scheme IOB1"
        sides = " and ".join("labelled" if side == "label" else side for side in iob1)
        return f"{sides} entities begin {ways[not said_iob1]}: {remedy}"
    name = "IOB1" if iob1["predicted"] else "IOB2"
    extra = f", then mine with --scheme {IOB1}" if iob1["predicted"] else ""
    return (
        f"labelled entities begin {ways[iob1['label']]} and predicted ones {ways[iob1['predicted']]}, so their "
        f"beginnings look wrong: convert the tags in the data to {name} and score again{extra}"
    )


def _malformed(tables: Mapping[str, pa.Table], side: str, said_iob1: bool) -> tuple[int, int]:
    """Entities of one side that begin as the scheme does not allow, and all."""
    malformed, entities = tables["malformed_tags"], tables["entities"]
    kinds = pa.array([NEEDLESS_BEGIN] if said_iob1 else [BEGINS_INSIDE, TYPE_CHANGES])
    wrong = pc.and_(pc.equal(malformed.column("side"), side), pc.is_in(malformed.column("kind"), kinds))
    all_ = pc.and_(pc.equal(entities.column("level"), "micro"), pc.equal(entities.column("mode"), "default"))
    number = entities.filter(all_).column("support" if side == "label" else "predicted")
    return int(pc.sum(malformed.filter(wrong).column("count")).as_py() or 0), int(pc.sum(number).as_py() or 0)
