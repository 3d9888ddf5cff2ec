"""Single sentences of an output, found by source and row: of the files of scores/, only those needed are read."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed
from tokloss_ray.exporting.sentences import COLUMNS, Sentence, join_windows
from tokloss_ray.output.decisions import Row
from tokloss_ray.output.opened import ScoreFile, Scores, open_outputs
from tokloss_ray.output.records import read_records
from tokloss_ray.output.score_files import open_score_file, read_columns, reading
from tokloss_ray.ragged import one_array

CACHE_BYTES = 256 << 20
"""Of tables that stay in memory: neighbouring issues are often of one shard."""


class ShardRows(NamedTuple):
    """A shard's files, and the rows that they hold: from `first` of one file of the input to `last` of the same, or of
    a later one, where small files share a shard."""

    source: str
    last_source: str
    first: float
    last: float
    files: tuple[ScoreFile, ...]


def read_shards(output: str, scores: Scores) -> list[ShardRows]:
    """The committed shards of an output."""
    by_path = {file.path: file for file in scores.files}
    return [
        ShardRows(
            record.source,
            record.last_source or record.source,
            -np.inf if record.first_row is None else record.first_row,
            np.inf if record.last_row is None else record.last_row,
            tuple(by_path[file.path] for file in record.files if file.path in by_path),
        )
        for record in read_records(output, scores.runs[0].fingerprint[:6]).values()
    ]


class Shards:
    """The committed shards of an output by the files of the input that their records name.

    Attributes:
        named: by the first and by the last file of each.
        shared: those that hold more than one.
    """

    def __init__(self, shards: Iterable[ShardRows]) -> None:
        self.named: dict[str, list[ShardRows]] = defaultdict(list)
        self.shared: list[ShardRows] = []
        for shard in shards:
            for name in {shard.source, shard.last_source}:
                self.named[name].append(shard)
            if shard.source != shard.last_source:
                self.shared.append(shard)


def candidates(shards: Shards, row: Row) -> Iterator[ScoreFile]:
    """The files that may have a row, the likely ones first.

    A record names the first and the last of its files of the input. Those in between mostly come between these two in
    the alphabet too; but if there are several inputs they need not.
    """
    source, source_row = row
    for shard in shards.named.get(source, ()):
        after = source != shard.source or shard.first <= source_row
        if after and (source != shard.last_source or source_row <= shard.last):
            yield from shard.files
    rest = [shard for shard in shards.shared if source not in (shard.source, shard.last_source)]
    for shard in sorted(rest, key=lambda shard: not shard.source < source < shard.last_source):
        yield from shard.files


class Corpus:
    """An output whose sentences are looked at one by one; may be used by several threads.

    Attributes:
        scores: the output.
        cached: bytes that tables kept in memory have.

    Raises:
        Refused: it is not an output.
    """

    def __init__(self, output: str) -> None:
        self.scores: Scores = open_outputs(output, partial=True)
        self._shards = Shards(read_shards(output, self.scores))
        self._tables: OrderedDict[str, pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        self.cached = 0

    def sentence(self, row: Row) -> Sentence:
        """The sentence of one row, its windows joined.

        Raises:
            Refused: it was scored from token ids, so that there are no words.
            JobFailed: a file is damaged, or no file has the row.
        """
        source, source_row = row
        for file in candidates(self._shards, row):
            table = self._table(file)
            at = np.flatnonzero(table.column(schema.SOURCE_ROW).to_numpy() == source_row)
            found = table.take(pa.array(at))
            found = found.filter(pc.equal(found.column(schema.SOURCE), source)).sort_by(schema.WINDOW)
            if found.num_rows:
                with reading(file.output, file.path):
                    return next(join_windows(found))
        raise JobFailed(f"no file of scores/ has row {source_row} of {source}: run tokloss verify")

    def _table(self, file: ScoreFile) -> pa.Table:
        with self._lock:
            if file.path in self._tables:
                self._tables.move_to_end(file.path)
                return self._tables[file.path]
        with open_score_file(file) as parquet:
            table = read_columns(parquet, file, COLUMNS, threads=False)
        # In one piece each: a sentence is taken from them by position.
        table = pa.table({name: one_array(table.column(name)) for name in table.column_names})
        with self._lock:
            if file.path not in self._tables:
                self._tables[file.path] = table
                self.cached += table.nbytes
            while self.cached > CACHE_BYTES and len(self._tables) > 1:
                self.cached -= self._tables.popitem(last=False)[1].nbytes
        return table
