"""Entities from the tags of one sentence, and tags from entities.

Reading is as lenient as seqeval's default mode (and conlleval): a type that changes, or an I- without a beginning,
starts an entity. A word without a tag ends one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

OUTSIDE = "O"
Scheme = Literal["IOB1", "IOB2", "IOBES", "BILOU", "IO", "plain"]


class Span(NamedTuple):
    """Words start to end - 1 of a sentence, and what they are."""

    start: int
    end: int
    type: str


def scheme_of(tags: Iterable[str]) -> Scheme:
    """How tags with these names are written. B- and I- alone are taken for IOB2, which hardly anybody calls IOB1.

    `plain` is a tag set without prefixes, such as parts of speech: the tag is the type.
    """
    inside = {tag for tag in tags if tag != OUTSIDE}
    prefixes = {tag[:1] for tag in inside if tag[1:2] == "-"}
    if not inside or any(tag[1:2] != "-" for tag in inside) or not prefixes <= set("BIESLU"):
        return "plain"
    if prefixes & set("ES"):
        return "IOBES"
    if prefixes & set("LU"):
        return "BILOU"
    return "IOB2" if "B" in prefixes else "IO"


def spans_of(tags: Sequence[str | None], scheme: Scheme) -> list[Span]:
    """The entities of a sentence, in order; None is a word that carries no tag."""
    spans: list[Span] = []
    start, before, before_type = 0, OUTSIDE, ""
    for i, tag in enumerate([*tags, None]):
        prefix, type_ = _split(tag, scheme)
        ends = before != OUTSIDE and (before in "ESLU" or prefix in (OUTSIDE, "B", "S", "U") or type_ != before_type)
        if ends:
            spans.append(Span(start, i, before_type))
        if prefix != OUTSIDE and (ends or before == OUTSIDE):
            start = i
        before, before_type = prefix, type_
    return spans


def _split(tag: str | None, scheme: Scheme) -> tuple[str, str]:
    """Prefix and type: `O` and nothing for words outside, I and the tag itself where tags have no prefixes."""
    if tag is None or tag == OUTSIDE:
        return OUTSIDE, ""
    return ("I", tag) if scheme == "plain" else (tag[0], tag[2:])


def types_of(tags: Iterable[str], scheme: Scheme) -> list[str]:
    """The entity types of a tag set, in its order."""
    return list(dict.fromkeys(_split(tag, scheme)[1] for tag in tags if tag != OUTSIDE))


def tags_of(span: Span, scheme: Scheme, touches: bool = False) -> list[str]:
    """The tags of the words of an entity; `touches`: one of the same type ends right before it (matters in IOB1)."""
    n = span.end - span.start
    inner = "I" * (n - 2)
    letters = {
        "IOB1": ("B" if touches else "I") + "I" * (n - 1),
        "IOB2": "B" + "I" * (n - 1),
        "IOBES": "S" if n == 1 else f"B{inner}E",
        "BILOU": "U" if n == 1 else f"B{inner}L",
        "IO": "I" * n,
    }
    return [span.type] * n if scheme == "plain" else [f"{letter}-{span.type}" for letter in letters[scheme]]


def retag(tags: Sequence[str | None], spans: Sequence[Span], scheme: Scheme) -> list[str | None]:
    """The tags of a sentence after its entities have become `spans`.

    Words whose entity is what it was keep their tag, however it was written, and words without a tag stay without
    one unless an entity covers them now.
    """
    before = set(spans_of(tags, scheme))
    result: list[str | None] = [tag if tag is None else OUTSIDE for tag in tags]
    for i, span in enumerate(ordered := sorted(spans)):
        last = ordered[i - 1] if i else None
        touches = last is not None and last.end == span.start and last.type == span.type
        same = span in before
        result[span.start : span.end] = tags[span.start : span.end] if same else tags_of(span, scheme, touches)
    return result
