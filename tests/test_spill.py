"""Rows that go to disk come back, part by part and in order."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tokloss_ray.errors import JobFailed
from tokloss_ray.spill import Spill


def _rows(rng: np.random.Generator, count: int, start: int) -> pa.Table:
    lists = [None if i % 7 == 3 else [f"w{j}" for j in range(i % 4)] for i in range(count)]
    numbers = pa.array(np.arange(start, start + count))
    return pa.table({"number": numbers, "text": pa.array([f"ä{i}" for i in range(count)]), "list": lists})


@pytest.mark.parametrize("buffer", [1, 5_000, 1 << 30])
def test_parts_hold_their_rows_in_the_order_they_came(buffer: int) -> None:
    rng = np.random.default_rng(0)
    tables, parts = [], []
    with Spill(11, buffer) as spill:
        for i in range(20):
            table = _rows(rng, int(rng.integers(0, 60)), 100 * i)
            part = rng.choice([0, 2, 3, 7, 9], table.num_rows)
            spill.add(table, part)
            tables.append(table)
            parts.append(part)
        whole, of_row = pa.concat_tables(tables), np.concatenate(parts)
        for number in range(11):
            expected = whole.filter(pa.array(of_row == number))
            assert spill.read(number).to_pydict() == expected.to_pydict()
        found = list(spill.read_all())
        assert len(found) == 5
        assert sum(table.num_rows for table in found) == whole.num_rows > 300


def test_nothing_was_added() -> None:
    with Spill(3) as spill:
        assert spill.read(0) is None
        assert list(spill.read_all()) == []


def test_no_file_is_left(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Spill(2, buffer=1) as spill:
        spill.add(pa.table({"a": [1, 2, 3]}), np.array([0, 1, 0]))
        assert os.listdir(tmp_path) == []
        assert spill.read(0).to_pydict() == {"a": [1, 3]}


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    with Spill(2, buffer=1) as spill:
        spill._file = Full()
        with pytest.raises(JobFailed, match=r"no room .* \(no space left on device\): set TMPDIR"):
            spill.add(pa.table({"a": [1]}), np.array([0]))
