"""What a decision is about, and what accepting or editing makes of the tags."""

from __future__ import annotations

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from tokloss_ray.errors import Refused
from tokloss_ray.review.proposal import Change, changed, proposal, scheme_of, spans_in
from tokloss_ray.tags.sentence_spans import Span

IOB2 = scheme_of(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
IOBES = scheme_of(("O", *(f"{p}-{t}" for p in "BIES" for t in ("PER", "LOC"))))
PARTS = scheme_of(("NOUN", "VERB", "DET"))


def test_the_whole_entity_is_decided_on() -> None:
    labels = ["O", "B-PER", "I-PER", "I-PER", "O", "B-LOC"]
    predicted = ["O", "O", "B-PER", "I-PER", "I-PER", "B-LOC"]
    for word in (1, 2, 3, 4):
        found = proposal(labels, predicted, word, predicted[word], IOB2)
        assert found == Change(1, 5, ("O", "B-PER", "I-PER", "I-PER"))


def test_suggestions_are_well_formed_whatever_was_predicted() -> None:
    labels, predicted = ["O", "O", "O"], ["O", "I-PER", "I-PER"]
    assert proposal(labels, predicted, 2, "I-PER", IOB2) == Change(1, 3, ("B-PER", "I-PER"))
    assert proposal(labels, ["O", "S-PER", "I-PER"], 2, "I-PER", IOBES) == Change(2, 3, ("S-PER",))
    change = proposal(["B-PER", "I-PER", "E-PER"], ["B-PER", "I-PER", "E-PER"], 1, "S-LOC", IOBES)
    assert change == Change(0, 3, ("S-PER", "S-LOC", "S-PER"))
    assert get_entities([*change.tags]) == [("PER", 0, 0), ("LOC", 1, 1), ("PER", 2, 2)]


def test_the_second_choice_changes_one_word() -> None:
    """Where the model agrees with the label, the rest of the sentence stays as it is."""
    labels = ["B-PER", "I-PER", "O", "O"]
    assert proposal(labels, labels, 3, "B-LOC", IOB2) == Change(3, 4, ("B-LOC",))
    assert proposal(labels, labels, 1, "O", IOB2) == Change(0, 2, ("B-PER", "O"))


def test_words_without_a_label_get_none() -> None:
    labels: list[str | None] = ["B-PER", None, "O"]
    assert proposal(labels, ["O", "B-LOC", "B-LOC"], 0, "O", IOB2) == Change(0, 1, ("O",))
    assert proposal(labels, ["O", "B-LOC", "I-LOC"], 2, "I-LOC", IOB2) == Change(2, 3, ("B-LOC",))


def test_parts_of_speech_are_single_words() -> None:
    labels, predicted = ["NOUN", "NOUN", "VERB"], ["DET", "NOUN", "NOUN"]
    assert proposal(labels, predicted, 2, "NOUN", PARTS) == Change(2, 3, ("NOUN",))
    assert spans_in(labels, PARTS) == [Span(0, 1, "NOUN"), Span(1, 2, "NOUN"), Span(2, 3, "VERB")]
    assert changed(labels, [Span(1, 2, "DET")], PARTS, 1, 2) == Change(1, 2, ("DET",))


def test_an_edit_covers_all_that_it_changes() -> None:
    labels = ["B-PER", "I-PER", "O", "O", "B-LOC"]
    spans = [Span(0, 1, "PER"), Span(3, 5, "LOC")]
    assert changed(labels, spans, IOB2, 0, 2) == Change(0, 5, ("B-PER", "O", "O", "B-LOC", "I-LOC"))


@pytest.mark.parametrize("spans", [[Span(0, 2, "PER"), Span(1, 3, "LOC")], [Span(0, 9, "PER")], [Span(0, 1, "ORG")],
                                   [Span(1, 1, "PER")], [Span(-1, 1, "PER")]])  # fmt: skip
def test_impossible_edits_are_refused(spans: list[Span]) -> None:
    with pytest.raises(Refused):
        changed(["O", "O", "O"], spans, IOB2, 0, 1)
