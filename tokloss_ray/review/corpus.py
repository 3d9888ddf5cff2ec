"""Single sentences of an output, found by source and row: of the files of scores/, only those needed are read."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict

import numpy as np
import pyarrow as pa

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
        self._files: dict[str, list[tuple[float, float, ScoreFile]]] = defaultdict(list)
        by_path = {file.path: file for file in self.scores.files}
        for record in read_records(output, self.scores.runs[0].fingerprint[:6]).values():
            first = -np.inf if record.first_row is None else record.first_row
            last = np.inf if record.last_row is None else record.last_row
            files = [by_path[file.path] for file in record.files if file.path in by_path]
            self._files[record.source] += [(first, last, file) for file in files]
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
        for first, last, file in self._files.get(source, ()):
            if not first <= source_row <= last:
                continue
            table = self._table(file)
            at = np.flatnonzero(table.column(schema.SOURCE_ROW).to_numpy() == source_row)
            if not len(at):
                continue
            chosen = table.take(pa.array(at)).sort_by(schema.WINDOW)
            with reading(file.output, file.path):
                return next(join_windows(chosen))
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
