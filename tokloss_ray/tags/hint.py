"""Do labels and predictions spell entities in the same scheme, and the one they were read in?"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.tags.schemes import (
    BEGINS_INSIDE,
    ENOUGH_BEGINNINGS,
    IO,
    IOB1,
    IOB2,
    NEEDLESS_BEGIN,
    TYPE_CHANGES,
    is_mostly,
    read_tag_set,
)


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
        f"labelled entities begin {ways[iob1['label']]}, and predicted ones {ways[iob1['predicted']]}, so that their "
        f"beginnings look wrong: convert the tags of the data to {name} and score them again{extra}"
    )


def _malformed(tables: Mapping[str, pa.Table], side: str, said_iob1: bool) -> tuple[int, int]:
    """Entities of one side that begin as the scheme does not allow, and all."""
    malformed, entities = tables["malformed_tags"], tables["entities"]
    kinds = pa.array([NEEDLESS_BEGIN] if said_iob1 else [BEGINS_INSIDE, TYPE_CHANGES])
    wrong = pc.and_(pc.equal(malformed.column("side"), side), pc.is_in(malformed.column("kind"), kinds))
    all_ = pc.and_(pc.equal(entities.column("level"), "micro"), pc.equal(entities.column("mode"), "default"))
    number = entities.filter(all_).column("support" if side == "label" else "predicted")
    return int(pc.sum(malformed.filter(wrong).column("count")).as_py() or 0), int(pc.sum(number).as_py() or 0)
