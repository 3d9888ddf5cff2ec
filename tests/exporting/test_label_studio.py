"""Out to Label Studio and back, however entities are tagged: nothing changes but what an annotator changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokloss_ray.exporting.label_studio import labelling_config, read_tasks, tasks_json
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import TagSet
from tokloss_ray.tags.sentence_spans import Span, spans_of, tag_set_of, types_of

Letters = Callable[[int, bool], str]


class Style(NamedTuple):
    """A way to tag: the letters of an entity of n words (`touches`: one of its type ends right before it), how a letter
    and a type become a tag, the types, and the scheme to name where the tags do not tell."""

    letters: Letters
    tag: Callable[[str, str], str] = "{}-{}".format
    types: tuple[str, ...] = ("PER", "PART-OF")
    scheme: str | None = None
    alphabet: str = "BI"

    @property
    def tags(self) -> tuple[str, ...]:
        return ("O", *dict.fromkeys(self.tag(letter, type_) for type_ in self.types for letter in self.alphabet))

    def spell(self, spans: Iterable[Span], length: int) -> list[str]:
        tags = ["O"] * length
        last = Span(0, -1, "")
        for span in sorted(spans):
            touches = (last.end, last.type) == (span.start, span.type)
            letters = self.letters(span.end - span.start, touches)
            tags[span.start : span.end] = [self.tag(letter, span.type) for letter in letters]
            last = span
        return tags


def ends(single: str, inner: str, last: str) -> Letters:
    return lambda n, touches: single if n == 1 else f"B{inner * (n - 2)}{last}"


def iob2(n: int, touches: bool) -> str:
    return "B" + "I" * (n - 1)


STYLES = {
    "IOB1": Style(lambda n, touches: ("B" if touches else "I") + "I" * (n - 1), scheme="IOB1"),
    "IOB2": Style(iob2),
    "IOBES": Style(ends("S", "I", "E"), alphabet="BIES"),
    "BILOU": Style(ends("U", "I", "L"), alphabet="BILU"),
    "BMES": Style(ends("S", "M", "E"), alphabet="BMES"),
    "B_PER": Style(iob2, tag="{}_{}".format),
    "bare": Style(iob2, tag=lambda letter, type_: letter, types=("_",)),
    "IO": Style(lambda n, touches: "I" * n, alphabet="I"),
    "types": Style(lambda n, touches: "I" * n, tag=lambda letter, type_: type_),
    "parts of speech": Style(lambda n, touches: "I" * n, tag=lambda letter, type_: type_, types=("NOUN", "B", "VERB")),
}
MERGES = ("IO", "types", "parts of speech")
"""Entities of one type that touch are one."""


def tag_set_for(style: Style) -> TagSet:
    speech = style is STYLES["parts of speech"]
    return tag_set_of(style.tags[1:] if speech else style.tags, style.scheme)


def task_in(tags: list[str | None], tag_set: TagSet) -> dict[str, Any]:
    n = len(tags)
    sentence = Sentence("id", "file", 3, [f"w{i}" for i in range(n)], tags, ["O"] * n, [0.5] * n, [0.5] * n)
    (task,) = json.loads(b"".join(tasks_json([sentence], tag_set)))
    return dict(task)


def read_back(task: dict[str, Any], regions: list[dict[str, Any]]) -> Correction:
    task["annotations"] = [{"was_cancelled": False, "result": regions}]
    (found,) = read_tasks(json.dumps([task]).encode())
    return found


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_nobody_changed_does_not_change(style: Style, data: st.DataObject) -> None:
    """Whatever the tags are, malformed ones too."""
    tags = data.draw(st.lists(st.sampled_from([*style.tags, None]), max_size=9))
    task = task_in(tags, tag_set_for(style))
    assert not read_back(task, task["predictions"][0]["result"]).changes


@st.composite
def some_spans(draw: st.DrawFn, style: Style) -> tuple[list[Span], int]:
    spans, at = [], 0
    for _ in range(draw(st.integers(1, 4))):
        start = at + draw(st.sampled_from([0, 0, 1, 2]))
        type_ = draw(st.sampled_from(style.types))
        if style.letters(1, True) == "I" and style.scheme is None and spans and spans[-1][1:] == (start, type_):
            start += 1
        at = start + draw(st.integers(1, 3))
        spans.append(Span(start, at, type_))
    return spans, at + draw(st.integers(0, 2))


@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_one_entity_that_was_changed(name: str, data: st.DataObject) -> None:
    """The new tags are spelled as the style has it, and entities are regions of their type."""
    style = STYLES[name]
    tag_set = tag_set_for(style)
    spans, length = data.draw(some_spans(style))
    tags = style.spell(spans, length)
    assert spans_of(tags, tag_set) == spans
    task = task_in([*tags], tag_set)
    regions = task["predictions"][0]["result"]
    assert [r["value"]["labels"] for r in regions] == [[span.type] for span in spans]
    i = data.draw(st.integers(0, len(spans) - 1))
    span, value = spans[i], regions[i]["value"]
    change = data.draw(st.sampled_from(["remove", "retype", "shorten", "split"]))
    new = [s for s in spans if s != span]
    if change == "remove":
        regions.pop(i)
    elif change == "retype":
        type_ = data.draw(st.sampled_from(style.types))
        value["labels"] = [type_]
        new.append(span._replace(type=type_))
    else:
        cut = value["text"].rsplit(" ", 1)
        first = span._replace(end=max(span.start + 1, span.end - 1))
        new.append(first)
        start, end = value["start"], value["end"]
        if len(cut) == 2:
            value |= {"end": start + len(cut[0]), "text": cut[0]}
            if change == "split":
                new.append(Span(first.end, span.end, span.type))
                regions.append(
                    {**regions[i], "value": {**value, "start": end - len(cut[1]), "end": end, "text": cut[1]}}
                )
    found = read_back(task, regions)
    corrected = [found.changes.get(k, (None, tag))[1] for k, tag in enumerate(tags)]
    assert corrected == style.spell(new, length)
    assert all(old == tags[k] != changed for k, (old, changed) in found.changes.items())
    if name not in MERGES:
        assert spans_of(corrected, tag_set) == sorted(new)


@pytest.mark.parametrize("name", STYLES)
def test_labels_are_types(name: str) -> None:
    style = STYLES[name]
    tag_set = tag_set_for(style)
    assert types_of(tag_set) == list(style.types)
    assert labelling_config(tag_set).count("<Label ") == len(style.types)
