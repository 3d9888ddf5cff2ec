"""A short round of random kills; `make chaos` is the long one."""

from __future__ import annotations

import pytest

from tests.long.chaos import chaos


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.long.chaos.PAUSE", (0.5, 3.0))
    said = chaos(kills=10, seed=2, rows=4000)
    assert said.startswith("10 kills")
