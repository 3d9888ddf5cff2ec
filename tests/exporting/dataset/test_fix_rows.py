"""Where a value stands in a line of JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tokloss_ray.exporting.dataset.fix_rows import value_span


@given(st.dictionaries(st.text(max_size=3), st.recursive(st.integers() | st.text(max_size=3), st.lists, max_leaves=4)))
def test_the_span_of_a_value_in_a_line(row: dict) -> None:
    line = json.dumps({**row, "k": [1, "}"]})
    start, end = value_span(line, "k")
    assert line[start:end] == '[1, "}"]'
