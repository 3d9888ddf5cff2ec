"""Mutated rows: every one is scored or quarantined with a known reason (see `fuzz.py`)."""

from __future__ import annotations

import pytest

from tests.long.fuzz import fuzz
from tokloss_ray.schema import REASONS


def test_some_mutated_rows() -> None:
    assert fuzz(2_000, seed=3, batch=1_000)["rows"] >= 2_000


@pytest.mark.slow
def test_many_mutated_rows() -> None:
    seen = fuzz(20_000, seed=0)
    assert seen["rows"] >= 20_000
    # What the generator breaks shows up; too_long and token_out_of_range have tests of their own.
    assert set(REASONS) - {"too_long", "token_out_of_range"} <= set(seen)
