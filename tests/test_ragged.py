"""Ragged arrays, against plain lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokloss_ray.ragged import any_per_row, offsets_of, positions, sum_per_row


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=20))
def test_positions(runs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([run[i] for run in runs], dtype=np.int64) for i in (0, 1))
    assert positions(starts, lengths).tolist() == [s + i for s, n in runs for i in range(n)]


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=20))
def test_sums_per_row(rows: list[list[bool]]) -> None:
    offsets = offsets_of(np.array([len(row) for row in rows], dtype=np.int64))
    flat = np.array([flag for row in rows for flag in row], dtype=bool)
    assert sum_per_row(flat, offsets).tolist() == [sum(row) for row in rows]
    assert any_per_row(flat, offsets).tolist() == [any(row) for row in rows]
