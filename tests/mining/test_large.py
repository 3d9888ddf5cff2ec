"""Partials and tables that go to disk make the tables that they make in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.mining.tables.test_merge import assert_same, job_of, with_slices
from tests.support import demo_words
from tokloss_ray.mining import large, passes
from tokloss_ray.mining.large import SortedOnDisk
from tokloss_ray.mining.passes import LargePartials, combine_in_order, final_tables, partial_tables
from tokloss_ray.mining.write import write_tables


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize(
    ("held", "levels"),
    [
        pytest.param(0, {0}, marks=pytest.mark.slow),
        (100, {0, 1}),
        pytest.param(800, {0, 1, 2}, marks=pytest.mark.slow),
    ],
)
def test_large_partials_make_the_same_tables(
    held: int, levels: set[int], sliced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "MOST_ROWS", held)
    monkeypatch.setattr(large, "_SORTED_ROWS", 5_000)
    words = demo_words.split(demo_words.demo_words(), [150])[0]
    words = with_slices(words) if sliced else words
    job = job_of(words, limit=50)
    partials = [partial_tables(part, job) for part in demo_words.split(words, list(range(1, 150)))]

    def copies() -> list[dict[str, pa.Table]]:
        return [dict(part) for part in partials]

    plain = combine_in_order(copies(), job)
    assert plain is not None
    expected = final_tables(plain, job)
    with LargePartials(job) as aside:
        whole = combine_in_order(copies(), job, aside)
        assert whole is not None
        assert {"words"} <= set(aside.partials) <= {"tokens", "words"}
        assert not set(aside.partials) & set(whole)
        assert set(aside.partials["words"].levels) == levels
        found = final_tables(whole, job, aside)
    assert list(found) == list(expected)
    for name, table in expected.items():
        assert_same(found[name], table, name)


def test_a_small_corpus_stays_in_memory() -> None:
    words = demo_words.split(demo_words.demo_words(), [150])[0]
    job = job_of(words)
    with LargePartials(job) as aside:
        combine_in_order(
            [partial_tables(part, job) for part in demo_words.split(words, list(range(10, 150, 5)))], job, aside
        )
        assert not aside.partials


@pytest.mark.parametrize("run", [7, 100, 1 << 20])
def test_rows_are_sorted_on_disk(run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "_SORTED_ROWS", run)
    rng = np.random.default_rng(0)
    words = rng.permutation(1000)
    table = pa.table(
        {
            "slice": [None if i % 5 == 0 else f"s{i % 3}" for i in words],
            "net": rng.integers(0, 3, 1000),  # nearly everything ties
            "word": [None if i == 17 else f"w{i}" for i in words],
            "tags": [[{"tag": "O", "count": int(i)}] for i in words],
        }
    )
    order: Any = [("slice", "ascending"), ("net", "descending"), ("word", "ascending")]
    rows = SortedOnDisk(order, portions=10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for start in range(0, 1000, 100):
        rows.add(table.slice(start, 100))
        rows.add(table.slice(0, 0))
    found = rows.table()
    assert found.to_pylist() == table.sort_by(order).to_pylist()
    assert list(tmp_path.iterdir()) == []
    write_tables(str(tmp_path / "to"), {"words": found}, {})
    assert pq.read_table(tmp_path / "to" / "words.parquet").to_pylist() == found.to_pylist()


def test_no_rows_to_sort() -> None:
    rows = SortedOnDisk([("a", "ascending")])
    rows.add(pa.table({"a": pa.array([], pa.int64())}))
    assert rows.table().num_rows == 0
