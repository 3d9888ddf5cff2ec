"""Partials and tables with a row for each word of a corpus, which may be larger than memory.

A partial that has grown too large goes to disk, divided by a hash of its key, and so does whatever is combined later.
In the end each part of the keys is combined as if there were no others, in the same tree. Counts are what they would be
in memory, and so are sums but for their last digits: the tags of a word may be added up in another order. The rows of
the finished table are sorted on disk as well, and are read from there when they are used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import JobFailed
from tokloss_ray.mining.tables.grouping import Order
from tokloss_ray.mining.tree import Tree
from tokloss_ray.ragged import offsets_of, one_array
from tokloss_ray.spill import Spill

MOST_ROWS = 1 << 20
"""Rows of a partial that are held in memory; some 200 MB."""
PARTS = 256
_SORTED_ROWS = 1 << 18
"""Rows that are sorted at a time."""
_ENTRY = "_entry"


def part_of_text(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The part, from 0 to `PARTS`, of each string."""
    import pandas as pd  # late: it takes a fifth of a second, and most outputs are small

    text = pc.fill_null(one_array(keys).cast(pa.string()), "").to_numpy(zero_copy_only=False)
    return (pd.util.hash_array(text, categorize=False) >> np.uint64(56)).astype(np.int64)


class DividedPartial:
    """One large partial on disk: tables with the level that they have in the tree of all partials.

    key: the column whose values are kept together. combine: tables in order -> one.
    """

    def __init__(self, key: str, combine: Callable[[Sequence[pa.Table]], pa.Table]) -> None:
        self.key, self.combine = key, combine
        self.levels: list[int] = []
        self.spill = Spill(PARTS)

    def add(self, table: pa.Table, level: int) -> None:
        """Add the table that is next in the tree."""
        entry = pa.array(np.full(table.num_rows, len(self.levels), np.int32))
        self.spill.add(table.append_column(_ENTRY, entry), part_of_text(table.column(self.key)))
        self.levels.append(level)

    def parts(self) -> Iterator[pa.Table]:
        """The combined rows of each part of the keys, those of the parts that have some."""
        for rows in self.spill.read_all():
            ends = offsets_of(np.bincount(rows.column(_ENTRY).to_numpy(), minlength=len(self.levels)))
            rows = rows.drop_columns([_ENTRY])
            tree = Tree(self.combine)
            for level, start, stop in zip(self.levels, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
                tree.push(rows.slice(start, stop - start), level)
            whole = tree.whole()
            assert whole is not None
            yield whole


class SortedOnDisk:
    """Rows that come in portions, sorted by some columns.

    Portions are to be alike: the first shows where the rows are cut into runs of a size that is sorted in memory.
    """

    def __init__(self, order: Order, portions: int = PARTS) -> None:
        self.order, self.portions = order, portions
        self._cuts: pa.Table | None = None
        self._spill: Spill | None = None
        self._empty: pa.Table | None = None

    def add(self, portion: pa.Table) -> None:
        """Add some rows."""
        self._empty = portion.slice(0, 0)
        if not portion.num_rows:
            return
        if self._cuts is None or self._spill is None:
            runs = 1 + portion.num_rows * self.portions // _SORTED_ROWS
            at = np.linspace(0, portion.num_rows, runs, endpoint=False)[1:].astype(np.int64)
            self._cuts = self._keys(portion).sort_by(self.order).take(pa.array(np.unique(at)))
            self._spill = Spill(self._cuts.num_rows + 1)
        self._spill.add(portion, self._runs(portion))

    def table(self) -> pa.Table:
        """All rows; of many, those that are looked at are read from disk.

        Raises:
            JobFailed: the disk is full.
        """
        assert self._empty is not None, "no portion was added"
        if self._spill is None:
            return self._empty
        place = tempfile.mkstemp(".arrow", "tokloss-")
        try:
            with os.fdopen(place[0], "wb") as file, pa.ipc.new_file(file, self._empty.schema) as writer:
                for run in self._spill.read_all():
                    writer.write_table(run.sort_by(self.order))
            self._spill.close()
            with pa.memory_map(place[1]) as mapped:
                return pa.ipc.open_file(mapped).read_all()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise JobFailed(
                f"no room for temporary files in {folder}: set TMPDIR to a folder on a larger disk"
            ) from error
        finally:
            os.unlink(place[1])  # what is mapped stays until nothing refers to it

    def _keys(self, rows: pa.Table) -> pa.Table:
        return rows.select([name for name, _ in self.order])

    def _runs(self, portion: pa.Table) -> np.ndarray:
        """The run of each row: how many cuts come before it, or are equal to it."""
        assert self._cuts is not None
        cuts = self._cuts.num_rows
        both = pa.concat_tables([self._cuts, self._keys(portion)])
        order = pc.sort_indices(both, sort_keys=self.order).to_numpy()  # stable: cuts come before their equals
        run = np.empty(len(order), dtype=np.int64)
        run[order] = np.cumsum(order < cuts)
        return run[cuts:]
