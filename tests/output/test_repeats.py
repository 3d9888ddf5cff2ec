"""Ids that come again are counted, in memory and on disk alike."""

from __future__ import annotations

import numpy as np
import pytest

from tokloss_ray.output import repeats


@pytest.mark.parametrize("held", [50, 1000, 1 << 20])
def test_repeats_are_those_of_the_whole(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "IN_MEMORY", held)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 63, 800, dtype=np.uint64) * np.uint64(2)
    drawn = rng.choice(values, 3000)
    expected = len(drawn) - len(np.unique(drawn))
    assert expected > 1000
    assert repeats.count_repeats(np.split(drawn, [0, 10, 700, 701, 2500])) == expected


def test_nothing_repeats_nothing() -> None:
    assert repeats.count_repeats([]) == 0
    assert repeats.count_repeats([np.zeros(0, np.uint64)]) == 0
