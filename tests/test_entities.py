"""Entity spans and the tables made of them, against seqeval and plain loops, on PAN-X and on made-up tags."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from tokloss_ray.errors import Refused
from tokloss_ray.mining import tag_schemes
from tokloss_ray.mining.tag_schemes import breaks_of, malformed_words, read_spans, read_tag_set
from tokloss_ray.scoring.ragged import offsets_of

SEQEVAL = {"IOB1": IOB1, "IOB2": IOB2, "IOBES": IOBES, "BILOU": BILOU}
PREFIXES = {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}
TYPES = ("PER", "LOC", "PART-OF")


def spans_by_sequence(tags, sequences, scheme, mode):
    """The spans as (type, first, last) of each sequence, by the code under test, from all sequences at once."""
    tag_set = read_tag_set(tuple(tags), scheme)
    offsets = offsets_of(np.array([len(s) for s in sequences]))
    codes = np.array([tags.index(tag) for s in sequences for tag in s], dtype=np.int32)
    index = np.concatenate([np.arange(len(s)) for s in sequences])
    start, stop, kind = read_spans(codes, breaks_of(offsets, index), tag_set, mode)
    rows = np.searchsorted(offsets, start, side="right") - 1
    found = [[] for _ in sequences]
    for row, a, b, k in zip(rows, start, stop, kind, strict=True):
        found[row].append((tag_set.types[k], int(a - offsets[row]), int(b - offsets[row] - 1)))
    return found


def tags_of(scheme):
    return ["O"] + [f"{prefix}-{name}" for name in TYPES for prefix in PREFIXES[scheme]]


@st.composite
def tagged(draw, scheme):
    tags = tags_of(scheme)
    return tags, draw(st.lists(st.lists(st.sampled_from(tags), min_size=1, max_size=9), min_size=1, max_size=5))


@pytest.mark.parametrize("scheme", SEQEVAL)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_spans_equal_seqeval(scheme, data):
    tags, sequences = data.draw(tagged(scheme))
    strict = spans_by_sequence(tags, sequences, scheme, "strict")
    expected = [[(e.tag, e.start, e.end - 1) for e in row] for row in Entities(sequences, SEQEVAL[scheme]).entities]
    assert strict == expected
    default = spans_by_sequence(tags, sequences, scheme, "default")
    as_iobes = str.maketrans("LU", "ES")  # seqeval's default mode has no L and U
    renamed = [[t[0].translate(as_iobes) + t[1:] for t in s] for s in sequences]
    assert default == [get_entities(s) for s in renamed]


def test_schemes_are_found_by_tag_names():
    def scheme(*tags):
        found = read_tag_set(tags)
        return found and (found.scheme, found.types)

    assert scheme("O", "B-PER", "I-PER") == ("IOB2", ("PER",))
    assert scheme("I-PER", "O", "B-PART-OF", "I-PART-OF") == ("IOB2", ("PART-OF", "PER"))
    assert scheme("O", "B-X", "I-X", "E-X", "S-X") == ("IOBES", ("X",))
    assert scheme("O", "B-X", "M-X", "E-X", "S-X") == ("IOBES", ("X",))
    assert scheme("O", "B-X", "I-X", "L-X", "U-X") == ("BILOU", ("X",))
    assert scheme("O", "B_X", "I_X") == ("IOB2", ("X",))
    assert scheme("O", "B", "I") == ("IOB2", ("_",))
    assert scheme("O", "I-X", "I-Y") == ("IO", ("X", "Y"))
    assert scheme("O", "PER", "LOC", "I-Y") == ("IO", ("I-Y", "LOC", "PER"))
    assert scheme("NOUN", "VERB") is None
    assert scheme("O") is None
    assert read_tag_set(("O", "B-X", "I-X"), "IOB1").scheme == "IOB1"
    with pytest.raises(Refused, match="no tag scheme IOB3"):
        read_tag_set(("O", "B-X"), "IOB3")
    with pytest.raises(Refused, match="are not IOB2"):
        read_tag_set(("O", "B-X", "E-X"), "IOB2")
    with pytest.raises(Refused, match="are not IOB2"):
        read_tag_set(("O", "PER"), "IOB2")


def test_runs_of_plain_tags_are_spans():
    assert spans_by_sequence(["O", "PER", "LOC"], [["PER", "PER", "LOC", "O", "PER"]], None, "strict") == [
        [("PER", 0, 1), ("LOC", 2, 2), ("PER", 4, 4)]
    ]


def test_a_missing_word_ends_a_span_unless_bridged():
    tag_set = read_tag_set(("O", "B-X", "I-X"))
    codes, index, offsets = np.array([1, 2, 2]), np.array([0, 1, 3]), np.array([0, 3])
    apart = read_spans(codes, breaks_of(offsets, index), tag_set)
    assert apart.start.tolist() == [0, 2]
    assert apart.stop.tolist() == [2, 3]
    assert len(read_spans(codes, breaks_of(offsets, index), tag_set, "strict").start) == 1
    bridged = read_spans(codes, breaks_of(offsets, index, bridge_gaps=True), tag_set)
    assert (bridged.start.tolist(), bridged.stop.tolist()) == ([0], [3])
    assert not any(map(len, malformed_words(codes, offsets, index, tag_set).values()))


def test_malformed_tags_are_counted_by_kind():
    def kinds(scheme, *tags):
        tag_set = read_tag_set(tuple(tags_of(scheme)), scheme)
        codes = np.array([tag_set.tags.index(tag) for tag in tags])
        found = malformed_words(codes, np.array([0, len(tags)]), np.arange(len(tags)), tag_set)
        return {kind: where.tolist() for kind, where in found.items() if len(where)}

    assert kinds("IOB2", "I-PER", "O", "I-PER", "I-LOC", "B-LOC", "I-PER") == {
        "begins_inside": [0, 2],
        "type_changes": [3, 5],
    }
    assert kinds("IOB1", "I-PER", "O", "I-PER", "B-PER", "B-LOC") == {"needless_begin": [4]}
    assert kinds("IOBES", "B-PER", "E-PER", "I-PER", "B-LOC", "O", "S-LOC", "E-LOC") == {
        "after_end": [2, 6],
        "not_ended": [2, 3],
    }
    assert kinds("BILOU", "U-PER", "B-LOC", "I-LOC", "L-LOC", "O") == {}


def test_no_words_no_spans():
    tag_set = read_tag_set(("O", "B-X"))
    none = np.array([], dtype=np.int64)
    assert len(breaks_of(np.array([0]), none)) == 0
    assert len(read_spans(none, none.astype(bool), tag_set).start) == 0
    assert tag_schemes.malformed_words(none, np.array([0]), none, tag_set)["begins_inside"].tolist() == []
