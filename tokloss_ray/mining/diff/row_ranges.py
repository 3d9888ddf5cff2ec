"""Which rows of the input a file of scores/ has.

The files of an input follow one another, so that each of its rows has one place in the whole: the rows of the files
before it, and its number in its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.mining.words.words import Words
from tokloss_ray.output.opened import ScoreFile
from tokloss_ray.output.score_files import read_batches
from tokloss_ray.threads import map_in_threads

BEFORE, AFTER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
"""Before and behind every place."""


class Placed(NamedTuple):
    """A file, and the first and the last place that it has a row of."""

    first: int
    last: int
    file: ScoreFile


@dataclass(frozen=True)
class Places:
    """Where each file of the input begins."""

    begin: dict[str, int]

    def of(self, words: Words) -> np.ndarray:
        """[S] int64: the place of each sequence."""
        source = pc.dictionary_encode(words.source)
        begin = np.array([self.begin[name] for name in source.dictionary.to_pylist()], dtype=np.int64)
        return begin[source.indices.to_numpy()] + words.source_row


def place_files(
    outputs: Sequence[Iterable[ScoreFile]], sources: Iterable[str] = ()
) -> tuple[Places, list[list[Placed]]]:
    """The places of the input files of some outputs, and the files of each output in the order of their places.

    From the columns themselves, which are small: their pages have checksums, statistics in the footer have none.

    sources: input files in the order in which they follow one another; others come behind them as they are found.

    Raises:
        JobFailed: a file is missing or damaged.
    """
    found = [list(map_in_threads(_ranges_of, list(files))) for files in outputs]
    rows: dict[str, int] = dict.fromkeys(sources, 0)
    for _, ranges in (item for of_output in found for item in of_output):
        for source, _, last in ranges:
            rows[source] = max(rows.get(source, 0), last + 1)
    ends = np.cumsum(list(rows.values()), dtype=np.int64).tolist()
    begin = dict(zip(rows, [0, *ends], strict=False))
    placed = [
        [
            Placed(min(begin[s] + low for s, low, _ in ranges), max(begin[s] + high for s, _, high in ranges), file)
            for file, ranges in of_output
            if ranges
        ]
        for of_output in found
    ]
    return Places(begin), [sorted(files, key=lambda p: (p.first, p.last, p.file.path)) for files in placed]


def _ranges_of(file: ScoreFile) -> tuple[ScoreFile, list[tuple[str, int, int]]]:
    """The first and the last row of each input file that a file of scores/ has rows of."""
    parts = list(read_batches(file, [schema.SOURCE, schema.SOURCE_ROW], narrow=True))
    if not parts:
        return file, []
    low, high = f"{schema.SOURCE_ROW}_min", f"{schema.SOURCE_ROW}_max"
    grouped = pa.TableGroupBy(pa.concat_tables(parts), schema.SOURCE, use_threads=False)
    table = grouped.aggregate([(schema.SOURCE_ROW, "min"), (schema.SOURCE_ROW, "max")])
    return file, list(zip(*(table.column(name).to_pylist() for name in (schema.SOURCE, low, high)), strict=True))


def batches_of(files: list[Placed], batch_tokens: int) -> list[list[Placed]]:
    """Runs of files of about so many tokens, cut where a file begins behind the end of all before it."""
    batches: list[list[Placed]] = []
    size, last = 0, BEFORE
    for item in files:
        if not batches or (size >= batch_tokens and item.first > last):
            batches.append([])
            size = 0
        batches[-1].append(item)
        size, last = size + item.file.tokens, max(last, item.last)
    return batches
