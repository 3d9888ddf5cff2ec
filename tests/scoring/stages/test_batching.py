"""Micro-batches, against a plain way to get the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokloss_ray.ragged import offsets_of
from tokloss_ray.scoring.stages.batching import pad, plan_batches

lengths_of_rows = st.lists(st.integers(1, 60), max_size=40)


@given(lengths_of_rows, st.integers(1, 200))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(np.array(lengths, dtype=np.int64), budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert longest * len(batch) <= budget or len(batch) == 1
    sizes = [max(lengths[i] for i in batch) for batch in batches]
    assert sizes == sorted(sizes, reverse=True)


@given(lengths_of_rows.filter(bool), st.data())
def test_padding_and_the_way_back(lengths: list[int], data: st.DataObject) -> None:
    lengths_N = np.array(lengths, dtype=np.int64)
    starts = offsets_of(lengths_N)
    flat = np.arange(100, 100 + starts[-1], dtype=np.int32)
    own_mask = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(flat), max_size=len(flat))), dtype=np.int8)
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True, min_size=1)))
    batch = pad(flat, own_mask, starts, lengths_N, rows, pad_id=7)
    for i, row in enumerate(rows):
        n = lengths[row]
        expected = flat[starts[row] : starts[row + 1]].tolist()
        assert batch.input_ids[i, :n].tolist() == expected
        assert (batch.input_ids[i, n:] == 7).all()
        assert batch.attention[i].tolist() == own_mask[starts[row] : starts[row + 1]].tolist() + [0] * (
            batch.attention.shape[1] - n
        )
    assert batch.input_ids.reshape(-1)[batch.where].tolist() == flat[batch.at].tolist()
    assert sorted(batch.at.tolist()) == sorted(p for r in rows for p in range(starts[r], starts[r + 1]))
