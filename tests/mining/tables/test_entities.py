"""Entity spans and the tables made of them, against seqeval and plain loops, on PAN-X and on made-up tags."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import seqeval.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from tests.support.demo_words import demo_scores, demo_words, split
from tokloss_ray.errors import Refused
from tokloss_ray.mining.tables import entities, entity_errors
from tokloss_ray.ragged import offsets_of
from tokloss_ray.tags import schemes as tag_schemes
from tokloss_ray.tags.schemes import breaks_of, malformed_words, read_spans, read_tag_set

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
    with pytest.raises(Refused, match="unknown tag scheme IOB3"):
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


# Tables, on real sentences.


def real_tags():
    """Labels and predictions of each sentence's labelled tokens, from the rows of scores/."""
    pairs = []
    for row in demo_scores().rows:
        zipped = zip(row["labels"], row["predicted_label"], strict=True)
        pairs.append([(label, predicted) for label, predicted in zipped if label != "IGN"])
    return [[a for a, _ in pair] for pair in pairs], [[b for _, b in pair] for pair in pairs]


def report(table, mode, by=None):
    """A table of scores as seqeval's report gives them."""
    found = {}
    for row in table.to_pylist():
        if row["mode"] == mode and (by is None or row["slice"] == by):
            name = row["type"] if row["level"] == "type" else f"{row['level']} avg"
            found[name] = {
                "precision": row["precision"], "recall": row["recall"], "f1-score": row["f1"], "support": row["support"]
            }  # fmt: skip
    return found


def seqeval_report(labels, predicted, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return seqeval.metrics.classification_report(labels, predicted, output_dict=True, **options)


def test_scores_equal_seqeval_on_real_sentences():
    labels, predicted = real_tags()
    table = entities.entities_merge([entities.entities_partial(words) for words in demo_scores().words])
    assert len(demo_scores().words) > 2
    expected = seqeval_report(labels, predicted)
    assert report(table, "default") == {name: pytest.approx(row, abs=1e-12) for name, row in expected.items()}
    expected = seqeval_report(labels, predicted, mode="strict", scheme=IOB2)
    assert report(table, "strict") == {name: pytest.approx(row, abs=1e-12) for name, row in expected.items()}
    assert table.filter(pa.compute.equal(table["level"], "micro"))["correct"].to_pylist() == [
        sum(len(set(find(a)) & set(find(b))) for a, b in zip(labels, predicted, strict=True))
        for find in (get_entities, lambda tags: [e.to_tuple() for e in Entities([tags], IOB2).entities[0]])
    ]


def sliced_words():
    words = demo_words()
    values = [None if i % 5 == 0 else "ab"[i % 2] for i in range(len(words.offsets) - 1)]
    return replace(words, by={"slice": pa.array(values)}), values


def test_scores_by_slice_equal_seqeval_on_the_slice():
    words, values = sliced_words()
    labels, predicted = real_tags()
    table = entities.entities_merge([entities.entities_partial(part) for part in split(words, [3, 500])], ["slice"])
    assert table.column_names[0] == "slice"
    for value in ("a", "b", None):
        rows = [i for i, v in enumerate(values) if v == value]
        expected = seqeval_report([labels[i] for i in rows], [predicted[i] for i in rows])
        found = report(table.filter(pa.array([v == value for v in table["slice"].to_pylist()])), "default")
        assert found == {name: pytest.approx(row, abs=1e-12) for name, row in expected.items()}


def plain_errors(labels, predicted):
    """The errors of one sentence by loops: (error, label span, predicted span); spans are (type, first, last)."""
    ours, theirs = get_entities(labels), get_entities(predicted)
    correct = set(ours) & set(theirs)
    ours, theirs = [s for s in ours if s not in correct], [s for s in theirs if s not in correct]

    def shared(a, b):
        return len(set(range(a[1], a[2] + 1)) & set(range(b[1], b[2] + 1)))

    found = []
    while pairs := [(a, b) for a in ours for b in theirs if shared(a, b)]:
        a, b = min(pairs, key=lambda pair: (-shared(*pair), pair[0][0] != pair[1][0], pair[0][1], pair[1][1]))
        kind = "wrong_type" if a[1:] == b[1:] else "wrong_boundary" if a[0] == b[0] else "wrong_both"
        found.append((kind, a, b))
        ours.remove(a)
        theirs.remove(b)
    return found + [("missed", a, None) for a in ours] + [("spurious", None, b) for b in theirs]


def error_of(row):
    def span(side):
        ends = row[f"{side}_type"], row[f"{side}_start"], row[f"{side}_stop"]
        return None if ends[0] is None else (ends[0], ends[1], ends[2] - 1)

    return row["error"], span("label"), span("predicted")


def test_entity_errors_equal_a_plain_loop_on_real_sentences():
    expected = []
    for row in demo_scores().rows:
        kept = [i for i, label in enumerate(row["labels"]) if label != "IGN"]
        labels, predicted = ([row[name][i] for i in kept] for name in ("labels", "predicted_label"))
        losses = [row["loss"][i] for i in kept]
        for error, a, b in plain_errors(labels, predicted):
            first = min(span[1] for span in (a, b) if span)
            last = max(span[2] for span in (a, b) if span)
            text = " ".join(row["words"][first : last + 1])
            about = labels[first : last + 1], predicted[first : last + 1]
            expected.append((row["example_id"], (error, a, b), text, *about, sum(losses[first : last + 1])))
    parts = [entity_errors.entity_errors_partial(words) for words in demo_scores().words]
    table = entity_errors.entity_errors_merge(parts)
    found = [
        (r["example_id"], error_of(r), r["text"], r["label_tags"], r["predicted_tags"], pytest.approx(r["loss"]))
        for r in table.to_pylist()
    ]
    key = lambda e: (e[0], str(e[1]))  # noqa: E731
    assert sorted(expected, key=key) == sorted(found, key=key)
    assert {error for _, (error, _, _), *_ in expected} == set(entity_errors.ERRORS)
    losses = table["loss"].to_pylist()
    assert losses == sorted(losses, reverse=True)

    counts = entity_errors.entity_error_counts_merge(
        [entity_errors.entity_error_counts_partial(words) for words in demo_scores().words]
    )
    plain = Counter((error, a and a[0], b and b[0]) for _, (error, a, b), *_ in expected)
    assert {(r["error"], r["label_type"], r["predicted_type"]): r["count"] for r in counts.to_pylist()} == plain
    assert sum(counts["loss"].to_pylist()) == pytest.approx(sum(losses))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_entity_errors_equal_a_plain_loop_on_any_tags(data):
    tags = tags_of("IOB2")[:5]
    length = data.draw(st.integers(1, 14))
    labels, predicted = (data.draw(st.lists(st.sampled_from(tags), min_size=length, max_size=length)) for _ in "ab")
    tag_set = read_tag_set(tuple(tags))
    breaks = breaks_of(np.array([0, length]), np.arange(length))
    spans = [
        read_spans(np.array([tags.index(t) for t in side], dtype=np.int32), breaks, tag_set)
        for side in (labels, predicted)
    ]
    wrong = entity_errors.wrong_entities(*spans, length)
    found = []
    for error, a, b in zip(wrong.error, wrong.label, wrong.predicted, strict=True):
        pair = [
            None if at < 0 else (tag_set.types[side.type[at]], side.start[at], side.stop[at] - 1)
            for side, at in zip(spans, (a, b), strict=True)
        ]
        found.append((entity_errors.ERRORS[error], *pair))
    assert Counter(found) == Counter(plain_errors(labels, predicted))


TABLES = {
    "entities": (entities.entities_partial, entities.entities_combine, entities.entities_merge, {}),
    "malformed": (entities.malformed_partial, entities.malformed_combine, entities.malformed_merge, {}),
    "counts": (
        entity_errors.entity_error_counts_partial,
        entity_errors.entity_error_counts_combine,
        entity_errors.entity_error_counts_merge,
        {},
    ),
    "errors": (
        entity_errors.entity_errors_partial,
        entity_errors.entity_errors_combine,
        entity_errors.entity_errors_merge,
        {"limit": 20},
    ),
}


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_split_and_tree_of_merges_gives_the_same_table(name, data):
    partial, combine, merge, options = TABLES[name]
    words, _ = sliced_words()
    if not data.draw(st.booleans()):
        words = replace(words, by={})
    by = list(words.by)
    cuts = data.draw(st.lists(st.integers(0, len(words.offsets) - 1), max_size=4))
    parts = [partial(part, **options) for part in split(words, cuts)]
    at = data.draw(st.integers(0, len(parts)))
    tree = [combine(some, by, **options) for some in (parts[:at], parts[at:]) if some]
    whole = merge([partial(words, **options)], by, **options)
    assert_same(merge(tree, by, **options), whole)
    assert whole.num_rows
    if name == "errors":
        everything = merge([partial(words, limit=10**6)], by, limit=10**6)
        sizes = Counter(map(str, everything["slice"].to_pylist() if by else ["None"] * everything.num_rows))
        assert whole.num_rows == sum(min(size, 20) for size in sizes.values())


def assert_same(found, expected):
    assert found.schema == expected.schema
    for name in expected.column_names:
        a, b = found[name].to_pylist(), expected[name].to_pylist()
        assert a == (pytest.approx(b, rel=1e-9) if pa.types.is_floating(expected.schema.field(name).type) else b)


def test_tags_without_spans_give_empty_tables_with_the_same_columns():
    words = demo_words()
    pos = replace(words, tags=("NOUN", "VERB", "ADJ", "ADV", "DET", "NUM", "X"), by={"slice": words.example_id})
    pos = split(pos, [5])[0]
    spans = replace(pos, tags=words.tags)
    for partial, _, merge, options in TABLES.values():
        empty, full = (merge([partial(w, **options)], ["slice"], **options) for w in (pos, spans))
        assert empty.num_rows == 0
        assert empty.schema == full.schema
