"""Tables do not depend on how the work is cut: any split into parts, and any tree of merges, makes the same ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import demo_words
from tokloss_ray.errors import Refused
from tokloss_ray.mining.passes import combine_in_order, combine_tables, final_tables, partial_tables
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables.grouping import SUM, combine_tallies, figures_of, moments, slices, sum_counts
from tokloss_ray.mining.tables.lengths import bucket
from tokloss_ray.mining.tables.table import Partials
from tokloss_ray.mining.words.occurrences import count_words
from tokloss_ray.mining.words.words import Words


def with_slices(words: Words) -> Words:
    """The same words, sliced by something with nulls."""
    count = len(words.offsets) - 1
    return replace(words, by={"group": pa.array([["x", "y", None][i % 3] for i in range(count)], pa.string())})


def job_of(words: Words, **options: Any) -> MiningSettings:
    labels = {tag: int((words.label == code).sum()) for code, tag in enumerate(words.tags)}
    return MiningSettings(tags=words.tags, labels=labels, by=tuple(words.by), counts=count_words(words), **options)


def assert_same(a: pa.Table, b: pa.Table, name: str) -> None:
    assert a.schema.names == b.schema.names, name
    for column in a.schema.names:
        x, y = a.column(column), b.column(column)
        if pa.types.is_floating(x.type):
            np.testing.assert_allclose(
                x.to_pandas().astype(float),
                y.to_pandas().astype(float),
                rtol=1e-9,
                atol=1e-12,
                err_msg=f"{name}.{column}",
            )
        else:
            assert x.to_pylist() == y.to_pylist(), f"{name}.{column}"


def merged(parts: list[Partials], job: MiningSettings, draw: Any) -> Partials:
    """Neighbours combined in any order, until one is left."""
    while len(parts) > 1:
        start = draw(st.integers(0, len(parts) - 2))
        stop = draw(st.integers(start + 2, min(len(parts), start + 4)))
        parts = [*parts[:start], combine_tables(parts[start:stop], job), *parts[stop:]]
    return parts[0]


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_tree_of_merges_makes_the_same_tables(data: st.DataObject) -> None:
    words = demo_words.split(demo_words.demo_words(), [120])[0]
    if data.draw(st.booleans(), label="sliced"):
        words = with_slices(words)
    job = job_of(words, limit=data.draw(st.sampled_from([1, 5, 50, 10_000]), label="limit"))
    cuts = sorted(data.draw(st.lists(st.integers(0, 120), max_size=10), label="cuts"))
    parts = [partial_tables(part, job) for part in demo_words.split(words, cuts)]
    whole = final_tables(partial_tables(words, job), job)
    again = final_tables(merged(parts, job, data.draw), job)
    for name, table in whole.items():
        assert_same(again[name], table, name)


@pytest.mark.parametrize("parts", [1, 7, 8, 9, 65])
def test_the_tree_of_a_pass(parts: int) -> None:
    words = demo_words.split(demo_words.demo_words(), [120])[0]
    job = job_of(words)
    cut = demo_words.split(words, list(range(1, parts)))
    found = combine_in_order((partial_tables(part, job) if len(part) else None for part in cut), job)
    assert found is not None
    tables, whole = final_tables(found, job), final_tables(partial_tables(words, job), job)
    for name, table in whole.items():
        assert_same(tables[name], table, name)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 50, width=32), min_size=2, max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
    st.sampled_from([0.0, 1e4, 1e6]),
)
def test_moments_do_not_cancel(values: list[float], cuts: list[int], shift: float) -> None:
    losses = np.array(values, dtype=np.float32) + np.float32(shift)
    wrong = np.zeros(len(losses), dtype=bool)
    tables = [
        pa.table({"key": ["k"]} | moments(np.zeros(len(part), int), 1, part, wrong[: len(part)]))
        for part in np.split(losses, sorted(min(cut, len(losses)) for cut in cuts))
        if len(part)
    ]
    figures = figures_of(combine_tallies(tables, ["key"]))
    exact = losses.astype(np.float64)
    assert figures["mean"][0].as_py() == pytest.approx(exact.mean())
    assert figures["std"][0].as_py() == pytest.approx(exact.std(ddof=1), rel=1e-9, abs=1e-9)
    assert figures["max"][0].as_py() == losses.max()
    assert figures[SUM][0].as_py() == pytest.approx(exact.sum())


@pytest.mark.parametrize("name", ["row", "column", "place", "sequence", "first", "last", "group", "position", "key"])
def test_a_slice_may_be_called_anything_else(name: str) -> None:
    """Tables have columns for a while that they are sorted or looked up by: none of them may stand for a slice."""
    words = demo_words.split(demo_words.demo_words(), [60, 120])[1]
    values = with_slices(words).by["group"]

    def sliced_by(name: str) -> dict[str, pa.Table]:
        parts = demo_words.split(replace(words, by={name: values}), [30])
        job = job_of(parts[0], limit=10)
        return final_tables(combine_tables([partial_tables(part, job) for part in parts], job), job)

    expected = sliced_by("any other name")
    for table, rows in sliced_by(name).items():
        assert [list(row.values()) for row in rows.to_pylist()] == [
            list(r.values()) for r in expected[table].to_pylist()
        ]


def test_no_words_make_empty_tables() -> None:
    words = demo_words.split(demo_words.demo_words(), [0])[0]
    for none in (words, with_slices(words)):
        job = job_of(none)
        for table in final_tables(partial_tables(none, job), job).values():
            assert table.num_rows == 0


def test_too_many_slices_are_refused() -> None:
    words = demo_words.demo_words()
    many = replace(words, by={"id": pa.array([str(i // 9) for i in range(len(words.offsets) - 1)])})
    assert len(slices(many)[1][0]) == 112
    from tokloss_ray.mining.tables import grouping as groups

    before, groups.MAX_SLICES = groups.MAX_SLICES, 100
    try:
        with pytest.raises(Refused, match="--by id makes more than 100 slices"):
            slices(many)
    finally:
        groups.MAX_SLICES = before


def test_buckets() -> None:
    values = np.arange(1, 5000)
    high = 1 << bucket(values)
    assert (values <= high).all()
    assert (values > high // 2).all()
    assert bucket(np.array([1, 2, 3, 4, 5, 8, 9])).tolist() == [0, 1, 2, 2, 3, 3, 4]


def test_a_combined_part_stands_beside_one_that_is_not() -> None:
    """As in a tree of nine parts, whatever the order of a part's columns."""
    part = pa.table({"word": ["a", "b"], "count": [1, 2], "errors": [0, 1]})
    combined = sum_counts([part, part], ["word"], ["errors", "count"])
    whole = sum_counts([combined, part], ["word"], ["errors", "count"])
    assert whole.to_pylist() == [{"word": "a", "errors": 0, "count": 3}, {"word": "b", "errors": 3, "count": 6}]
