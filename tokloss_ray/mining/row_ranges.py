"""Which rows of the input a file of scores/ has, from its statistics alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.mining.outputs import ScoreFile
from tokloss_ray.storage import open_location, open_random

BEFORE, AFTER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
"""Below and above every source_row."""

Range = tuple[int, int, ScoreFile]


def row_ranges(files: Iterable[ScoreFile]) -> dict[str, list[Range]]:
    """The files of each source with their first and last source_row, from their statistics, in order."""
    found: dict[str, list[Range]] = {}
    for file in files:
        fs, root = open_location(file.output)
        with open_random(fs, f"{root}/{file.path}", file.size) as opened:
            metadata = pq.ParquetFile(opened).metadata
        names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        source, row = names.index(schema.SOURCE), names.index(schema.SOURCE_ROW)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        low = min(group.column(row).statistics.min for group in groups)
        high = max(group.column(row).statistics.max for group in groups)
        found.setdefault(_exact_source(groups[0].column(source), file), []).append((low, high, file))
    return {source: sorted(ranges, key=lambda r: (r[0], r[1], r[2].path)) for source, ranges in found.items()}


def _exact_source(column: Any, file: ScoreFile) -> str:
    """The source of a file, which has one alone: statistics may cut long strings."""
    statistics = column.statistics
    if statistics is not None and statistics.has_min_max and statistics.min == statistics.max:
        return str(statistics.min)
    fs, root = open_location(file.output)
    with open_random(fs, f"{root}/{file.path}", file.size) as opened:
        return str(pq.ParquetFile(opened).read(columns=[schema.SOURCE]).column(0)[0].as_py())


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
