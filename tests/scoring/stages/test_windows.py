"""Windows, against a plain way to get the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokloss_ray.scoring.stages.windows import window_owners, window_starts


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_windows_cover_everything_and_overlap(n: int, capacity: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    begins = window_starts(n, capacity, overlap)
    ends = [min(begin + capacity, n) for begin in begins]
    assert begins[0] == 0
    assert ends[-1] == n
    for end, following in zip(ends, begins[1:], strict=False):
        assert end - following == overlap
    assert all(end < n for end in ends[:-1]), "a window past the end"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(4, 30), st.data())
def test_each_word_has_the_window_with_most_context(words: list[int], capacity: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    unit = np.repeat(np.arange(len(words)), words)
    begins = window_starts(len(unit), capacity, overlap)
    owners = window_owners(unit, begins, capacity, len(unit))
    for word in range(len(words)):
        at = np.flatnonzero(unit == word)
        best, best_context = -1, (-1, False)
        for k, begin in enumerate(begins):
            end = min(begin + capacity, len(unit))
            if begin <= at[0] < end:
                context = (min(at[0] - begin, max(end - 1 - at[-1], 0)), at[-1] < end)
                if context > best_context:
                    best, best_context = k, context
        assert set(owners[at].tolist()) == {best}
