"""What speaks against a label, in words."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.ragged import one_array

PLACES = ("other_places", "same_label", "same_suggestion")
"""Of `label_issues`: labelled places of the same word beside the row's own, and how many of them have the row's label,
and the suggested one."""


def reasons(table: pa.Table) -> pa.Array | pa.ChunkedArray:
    """A sentence for each row of `label_issues`: how the word is labelled elsewhere, what the model says, and whether
    other words of the entity differ too.

    "O in 3 of 214 other places, B-ORG in 209; the model gives B-ORG 0.97"
    """
    label, suggested = (pc.fill_null(table.column(name), "") for name in ("label", "suggested_label"))
    others, same, other = (table.column(name) for name in PLACES)
    count = number_text(others)
    places = pc.if_else(pc.equal(others, 1), " other place", " other places")
    elsewhere = _joined(label, " in ", number_text(same), " of ", count, places)
    too = _joined(", ", suggested, " in ", number_text(other))
    elsewhere = _joined(elsewhere, pc.if_else(pc.fill_null(pc.greater(other, 0), False), too, ""), "; ")
    elsewhere = pc.if_else(pc.equal(others, 0), "in no other place; ", elsewhere)
    model = _joined("the model gives ", suggested, " ", probability(table.column("suggested_prob")))
    more = pc.subtract(table.column("issue_words"), 1)
    differs = pc.not_equal(table.column("label"), table.column("predicted"))
    shown = pc.fill_null(pc.and_(differs, pc.greater(more, 0)), False)
    words = pc.if_else(pc.equal(more, 1), " more word of the entity differs", " more words of the entity differ")
    entity = pc.if_else(shown, _joined("; ", number_text(more), words), "")
    whole = _joined(pc.fill_null(elsewhere, ""), model, entity)
    known = pc.and_(pc.is_valid(table.column("suggested_label")), pc.is_valid(table.column("suggested_prob")))
    return pc.if_else(known, whole, pa.scalar(None, pa.string()))


def probability(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Probabilities with two digits; those that would be 1.00 or 0.00 as ">0.99" and "<0.01"."""
    hundredths = pc.round(pc.multiply(values.cast(pa.float64()), 100)).cast(pa.int64())
    digits = _joined("0.", pc.utf8_lpad(hundredths.cast(pa.string()), 2, "0"))
    return pc.case_when(pc.make_struct(pc.greater(hundredths, 99), pc.less(hundredths, 1)), ">0.99", "<0.01", digits)


def _joined(*parts: object) -> pa.Array | pa.ChunkedArray:
    return pc.binary_join_element_wise(*parts, "")


def number_text(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Integers with commas between thousands; there are few different ones."""
    encoded = pc.dictionary_encode(one_array(values))
    return pa.array([f"{n:,}" for n in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)
