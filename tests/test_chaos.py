"""A short round of random kills; `make chaos` is the long one."""

from __future__ import annotations

import pytest
from chaos import chaos


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills() -> None:
    said = chaos(kills=10, seed=2, rows=5000)
    assert said.startswith("10 kills")
