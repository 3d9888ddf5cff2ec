"""Entities of a sentence, and the tags of entities that were changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from tests.support.corrections import TAGS
from tokloss_ray.errors import Refused
from tokloss_ray.tags.sentence_spans import Span, retag, spans_of, tag_set_of


@pytest.mark.parametrize("tags", [TAGS, ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"]])
@given(data=st.data())
def test_spans_are_seqevals(tags: list[str], data: st.DataObject) -> None:
    sequence = data.draw(st.lists(st.sampled_from(tags), max_size=8))
    expected = [(start, end + 1, type_) for type_, start, end in get_entities(sequence)]
    assert [tuple(span) for span in spans_of(sequence, tag_set_of(tuple(tags)))] == expected


def test_untouched_entities_keep_their_tags() -> None:
    tags = ["I-PER", "I-PER", None, "I-ORG", "O", "B-LOC"]
    tag_set = tag_set_of(tuple(TAGS))
    assert retag(tags, spans_of(tags, tag_set), tag_set) == tags
    assert retag(tags, [Span(0, 2, "PER"), Span(3, 5, "ORG")], tag_set) == [*tags[:3], "B-ORG", "I-ORG", "O"]
    # One that begins with I would be joined with a new neighbour of its type.
    assert retag(["O", "I-PER"], [Span(0, 1, "PER"), Span(1, 2, "PER")], tag_set) == ["B-PER", "B-PER"]
    # A type that no tag has yet is written as the others are.
    assert retag(tags[:2], [Span(0, 2, "EVENT")], tag_set) == ["B-EVENT", "I-EVENT"]
    assert retag(["O"], [Span(0, 1, "EVENT")], tag_set_of(("O", "B_A", "L_A", "U_A"))) == ["U_EVENT"]
    with pytest.raises(Refused, match="cannot be a type"):
        retag(["NOUN"], [Span(0, 1, "O")], tag_set_of(("NOUN", "VERB")))
    with pytest.raises(Refused, match="the tag 'X' is not one of"):
        spans_of(["X"], tag_set)
