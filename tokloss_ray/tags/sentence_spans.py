"""Entities from the tags of one sentence, and tags from entities: what annotators see and change.

Spans are read and written by `schemes.read_spans` and `schemes.write_spans`, in their lenient mode, so that an entity
here is one in the tables of `mine` as well. There is one addition, for annotators have to see every tag: tags that mark
no spans, such as parts of speech, are types of their own (`tag_set_of`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tokloss_ray.errors import Refused
from tokloss_ray.tags.schemes import (
    IO,
    OUTSIDE,
    UNNAMED,
    Spans,
    TagSet,
    breaks_of,
    read_spans,
    read_tag_set,
    write_spans,
)


class Span(NamedTuple):
    """Words start to end - 1 of a sentence, and what they are."""

    start: int
    end: int
    type: str


@lru_cache(maxsize=64)
def tag_set_of(tags: tuple[str, ...], scheme: str | None = None) -> TagSet:
    """How tags are written. Those that mark no spans, such as parts of speech, are their own type. O is among them.

    Raises:
        Refused: the named scheme is unknown, or a tag does not belong to it.
    """
    names = tuple(dict.fromkeys([*tags, OUTSIDE]))
    tag_set = read_tag_set(names, scheme) or read_tag_set(names, IO)
    assert tag_set is not None  # a scheme is given
    return tag_set


def tag_set_in(tags: tuple[str, ...], scheme: str) -> TagSet:
    """The same of a scheme that was found or given before.

    Raises:
        Refused: the scheme is unknown, or a tag does not belong to it.
    """
    found = tag_set_of(tags)
    return found if found.scheme == scheme else tag_set_of(tags, scheme)


def types_of(tag_set: TagSet) -> list[str]:
    """The entity types of a tag set, in the order of its tags."""
    return list(dict.fromkeys(tag_set.types[number] for number in tag_set.type.tolist() if number >= 0))


def spans_of(tags: Sequence[str | None], tag_set: TagSet) -> list[Span]:
    """The entities of a sentence, in order; None is a word that carries no tag.

    Raises:
        Refused: a tag is none of the set.
    """
    code = {tag: i for i, tag in enumerate(tag_set.tags)}
    if unknown := [tag for tag in tags if tag is not None and tag not in code]:
        raise Refused(f"the tag {unknown[0]!r} is not one of {', '.join(tag_set.tags[:20])}")
    at = np.array([i for i, tag in enumerate(tags) if tag is not None], dtype=np.int64)
    codes = np.array([code[tag] for tag in tags if tag is not None], dtype=np.int64)
    found = read_spans(codes, breaks_of(np.array([0, len(at)]), at), tag_set)
    types = [tag_set.types[number] for number in found.type.tolist()]
    starts, lasts = at[found.start].tolist(), at[found.stop - 1].tolist()
    return [Span(start, last + 1, type_) for start, last, type_ in zip(starts, lasts, types, strict=True)]


def retag(tags: Sequence[str | None], spans: Iterable[Span], tag_set: TagSet) -> list[str | None]:
    """The tags of a sentence after its entities have become `spans`.

    Words whose entity is what it was keep their tag, however it was written, unless that hangs on a neighbour that has
    changed. Words without a tag stay without one unless an entity covers them now. A type that is new is written as the
    others are.

    Raises:
        Refused: a tag or a type that there cannot be.
    """
    ordered = sorted(spans)
    before = _with_touch(spans_of(tags, tag_set))
    for type_ in dict.fromkeys(span.type for span in ordered):
        tag_set = tag_set if type_ in tag_set.types else _with_type(tag_set, type_)
    numbers = [[s.start, s.end, tag_set.types.index(s.type)] for s in ordered]
    columns = np.array(numbers, dtype=np.int64).reshape(-1, 3).T
    written = [tag_set.tags[code] for code in write_spans(Spans(*columns), len(tags), tag_set).tolist()]

    def result(kept: set[tuple[Span, bool]]) -> list[str | None]:
        new: list[str | None] = [tag if tag is None else OUTSIDE for tag in tags]
        for span, touches in _with_touch(ordered):
            source = tags if (span, touches) in kept else written
            new[span.start : span.end] = source[span.start : span.end]
        return new

    new = result(set(before))
    return new if spans_of(new, tag_set) == ordered else result(set())


def _with_touch(spans: list[Span]) -> list[tuple[Span, bool]]:
    """Each span, and whether one of its type ends where it begins."""
    touching = {b for a, b in pairwise(spans) if a.end == b.start and a.type == b.type}
    return [(span, span in touching) for span in spans]


def _with_type(tag_set: TagSet, type_: str) -> TagSet:
    """The tag set with the tags of one more type, spelled as those of the type that has most."""
    new = [type_]
    if tag_set.types:
        number = Counter(n for n in tag_set.type.tolist() if n >= 0).most_common(1)[0][0]
        model = tag_set.types[number]
        like = [tag for tag, n in zip(tag_set.tags, tag_set.type.tolist(), strict=True) if n == number]
        new = [f"{tag}-{type_}" if model == UNNAMED else tag.removesuffix(model) + type_ for tag in like]
    more = tag_set_in(tuple(dict.fromkeys([*tag_set.tags, *new])), tag_set.scheme)
    if type_ not in more.types:
        raise Refused(f"{type_!r} cannot be a type alongside {', '.join(tag_set.types[:20])}")
    return more
