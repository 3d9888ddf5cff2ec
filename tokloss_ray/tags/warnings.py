"""Does the data spell entities in another scheme than most models? IOB1 and IOB2 have the same names of tags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.ragged import list_lengths, offsets_of, one_array
from tokloss_ray.schema import IGNORE_INDEX
from tokloss_ray.tags.schemes import IOB2, begins_with_inside, is_mostly, read_tag_set


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
