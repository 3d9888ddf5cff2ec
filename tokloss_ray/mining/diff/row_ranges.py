"""Which rows of the input a file of scores/ has."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.output.opened import ScoreFile
from tokloss_ray.output.score_files import read_batches
from tokloss_ray.threads import map_in_threads

BEFORE, AFTER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
"""Below and above every source_row."""

Range = tuple[int, int, ScoreFile]


def row_ranges(files: Iterable[ScoreFile]) -> dict[str, list[Range]]:
    """The files of each source with their first and last source_row, in order.

    From the columns themselves, which are small: their pages have checksums, statistics in the footer have none.

    Raises:
        JobFailed: a file is missing or damaged.
    """
    found: dict[str, list[Range]] = {}
    for source, low, high, file in map_in_threads(_range_of, list(files)):
        found.setdefault(source, []).append((low, high, file))
    return {source: sorted(ranges, key=lambda r: (r[0], r[1], r[2].path)) for source, ranges in found.items()}


def _range_of(file: ScoreFile) -> tuple[str, int, int, ScoreFile]:
    tables = read_batches(file, [schema.SOURCE, schema.SOURCE_ROW], narrow=True)
    rows = [(t.column(0)[0].as_py(), *pc.min_max(t.column(1)).as_py().values()) for t in tables if t.num_rows]
    return rows[0][0], min(low for _, low, _ in rows), max(high for *_, high in rows), file


def batches_of(ranges: list[Range], batch_tokens: int) -> list[list[Range]]:
    """Runs of files of about so many tokens, cut where a file begins behind the end of all before it."""
    batches: list[list[Range]] = []
    size, last = 0, BEFORE
    for item in ranges:
        if not batches or (size >= batch_tokens and item[0] > last):
            batches.append([])
            size = 0
        batches[-1].append(item)
        size, last = size + item[2].tokens, max(last, item[1])
    return batches
