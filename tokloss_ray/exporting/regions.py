"""What the formats of annotation tools with text and offsets share: a sentence as text, and regions of it as entities.

A file carries the words as they are (`fields_of`), and `text`, what the annotator sees: the words joined by spaces.
Offsets count code points of `text`. In `text` line breaks and other control characters are drawn as one visible
character each, for browsers change them and offsets would no longer fit; words of nothing visible are drawn as well, so
that they can be selected.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import OUTSIDE, TagSet
from tokloss_ray.tags.sentence_spans import Span, retag, spans_of, tag_set_in

_BLANK, _CONTROL = "␣", 0x2400
FIELDS = ("words", "labels", "tags", "scheme", "example_id", "source", "source_row")


class Region(NamedTuple):
    """Code points start to end - 1 of a text, and what they are. text: what the tool takes them for."""

    start: int
    end: int
    type: str
    text: str | None = None


def fields_of(sentence: Sentence, tag_set: TagSet) -> dict[str, Any]:
    """What a task has to carry for its regions to become tags again."""
    return {
        "words": sentence.words,
        "labels": sentence.labels,
        "tags": list(tag_set.tags),
        "scheme": tag_set.scheme,
        "example_id": sentence.example_id,
        "source": sentence.source,
        "source_row": sentence.source_row,
    }


def is_ours(fields: Any) -> bool:
    """Whether these are fields that `fields_of` made."""
    if not isinstance(fields, dict) or not all(name in fields for name in FIELDS):
        return False
    lists = all(isinstance(fields[name], list) for name in ("words", "labels", "tags"))
    return lists and len(fields["words"]) == len(fields["labels"])


class Shown(NamedTuple):
    """What the annotator sees of a sentence, and where each word begins and ends in it, in code points."""

    text: str
    starts: list[int]
    ends: list[int]


def text_of(words: Sequence[str]) -> Shown:
    """The words as an annotator sees them."""
    shown = [_visible(word) for word in words]
    starts, ends, position = [], [], 0
    for word in shown:
        starts.append(position)
        ends.append(position + len(word))
        position = ends[-1] + 1
    return Shown(" ".join(shown), starts, ends)


def _visible(word: str) -> str:
    drawn = "".join(_drawn(char) for char in word)
    if all(char.isspace() or unicodedata.category(char) in ("Cf", "Cn") for char in drawn):
        return _BLANK * max(1, len(word))
    return drawn


def _drawn(char: str) -> str:
    if ord(char) < 0x20:
        return chr(_CONTROL + ord(char))
    return "\ufffd" if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char


def regions_of(shown: Shown, tags: Sequence[str | None], tag_set: TagSet) -> list[tuple[Span, Region]]:
    """The entities of a sentence by some tags, each as words and as a region of its text."""
    text, starts, ends = shown
    found = []
    for span in spans_of(tags, tag_set):
        start, end = starts[span.start], ends[span.end - 1]
        found.append((span, Region(start, end, span.type, text[start:end])))
    return found


def correction_of(fields: dict[str, Any], annotations: Sequence[Sequence[Region]], tool: str) -> Correction:
    """What the annotations of a task say; none if nobody has annotated it. tool: where to fix what is wrong.

    Raises:
        Refused: annotations disagree, two regions overlap in a word, or a region has no word.
    """
    labels: list[str | None] = fields["labels"]
    key = str(fields["example_id"]), str(fields["source"]), int(fields["source_row"])
    correction = Correction(*key, dict(enumerate(fields["words"])))
    tag_set = tag_set_in(tuple(fields["tags"]), fields["scheme"])
    answers = [retag(labels, _spans(fields, regions, correction.name, tool), tag_set) for regions in annotations]
    if not answers:
        return Correction(*key)
    if any(answer != answers[0] for answer in answers):
        raise Refused(f"the annotations of {correction.name} disagree: keep one of them in {tool}")
    for i, (old, new) in enumerate(zip(labels, answers[0], strict=True)):
        if new != old:
            correction.changes[i] = (old, new or OUTSIDE)
    return correction


def _spans(fields: dict[str, Any], regions: Sequence[Region], name: str, tool: str) -> list[Span]:
    """The entities that the regions of one annotation mark: all words that a region touches."""
    text, starts, ends = text_of(fields["words"])
    spans: list[Span] = []
    for region in regions:
        start, end = _code_points(text, region)
        touched = [i for i in range(len(starts)) if starts[i] < end and start < ends[i]]
        if not touched:
            raise Refused(f"a region of {name} at {start} to {end} has no word: fix it in {tool}")
        spans.append(Span(touched[0], touched[-1] + 1, region.type))
    spans.sort()
    for left, right in pairwise(spans):
        if right.start < left.end:
            word = fields["words"][right.start]
            raise Refused(f"two regions of {name} overlap in the word {word!r}: a word can have only one tag")
    return spans


def _code_points(text: str, region: Region) -> tuple[int, int]:
    """Start and end of a region. Some versions of Label Studio count UTF-16 units, as the region's text tells."""
    start, end, _, marked = region
    if marked is None or text[start:end] == marked:
        return start, end
    units = text.encode("utf-16-le")
    if units[2 * start : 2 * end].decode("utf-16-le", "replace") == marked:
        before = units[: 2 * start].decode("utf-16-le", "replace")
        return len(before), len(before) + len(marked)
    return start, end
