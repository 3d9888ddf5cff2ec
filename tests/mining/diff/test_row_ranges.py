"""Files of scores/ that hold rows of several input files: where their rows are, and how they are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.mining_outputs import plain_row, write_output
from tokloss_ray.mining.diff.compare import diff
from tokloss_ray.mining.diff.row_ranges import batches_of, place_files
from tokloss_ray.mining.words.load import read_tokens
from tokloss_ray.output.opened import open_outputs

TAGS = ["O", "B-PER"]
FILES = {f"f{i}.jsonl": 1 + i % 3 for i in range(9)}


def _output(folder: Path, files: dict[str, int], prediction: str) -> str:
    rows = [
        plain_row(source, number, 2 + number, prediction) for source, count in files.items() for number in range(count)
    ]
    listed = [[source, 10, ""] for source in files]
    return str(write_output(folder, rows, TAGS, input=listed))


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_rows_of_many_small_files_find_each_other(tmp_path: Path, batch_tokens: int) -> None:
    a = _output(tmp_path / "a", FILES, "O")
    b = _output(tmp_path / "b", dict(reversed(FILES.items())), "B-PER")
    found = diff(a, b, batch_tokens=batch_tokens, resamples=100)
    assert (found.matched.rows, found.matched.only_a, found.matched.only_b) == (sum(FILES.values()), 0, 0)
    outcomes = dict(zip(*(found.tables["outcomes"][name].to_pylist() for name in ("outcome", "words")), strict=True))
    assert outcomes["broken"] == found.matched.words == sum(sum(range(2, 2 + n)) for n in FILES.values())


def test_places_follow_the_input(tmp_path: Path) -> None:
    scores = open_outputs(_output(tmp_path / "a", FILES, "O"))
    places, (placed,) = place_files([scores.files], list(FILES))
    assert list(places.begin) == list(FILES)
    assert list(places.begin.values()) == np.cumsum([0, *FILES.values()])[:-1].tolist()
    assert (placed[0].first, placed[0].last) == (0, sum(FILES.values()) - 1)
    assert batches_of(placed, 1) == [placed]


def test_rows_of_one_number_are_read_some_at_a_time(tmp_path: Path) -> None:
    ones = {f"g{i:02d}.jsonl": 1 for i in range(12)}
    scores = open_outputs(_output(tmp_path / "a", ones, "O"))
    parts = [part.source.to_pylist() for part in read_tokens(scores.files, scores.tags, tokens=4)]
    assert [name for part in parts for name in part] == list(ones)
    assert max(map(len, parts)) <= 3
