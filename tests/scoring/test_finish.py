"""What a run is told to allow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokloss_ray.scoring.finish import _rate_above


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_the_rate_that_is_advised_is_enough(bad: int, more: int) -> None:
    rate = bad / (bad + more)
    assert rate <= float(_rate_above(rate)) <= 1
