"""The sums by word of two outputs with more distinct words than memory has room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.diff.counts import Partial, sums_by_key
from tokloss_ray.mining.diff.tables import by_group, in_order
from tokloss_ray.mining.large import MOST_ROWS, PARTS, SortedOnDisk, part_of_text
from tokloss_ray.mining.tables.grouping import Order
from tokloss_ray.spill import Spill

WORD, WORDS, _SLICE = "word", "words", "_slice"
Key = tuple[str | None, ...]


class LargeWords:
    """Sums by word that were taken out of partials; those of a word stay in the order in which they came."""

    def __init__(self) -> None:
        self.slices: dict[Key, int] = {}
        self.spill: Spill | None = None

    def __enter__(self) -> LargeWords:
        return self

    def __exit__(self, *_: object) -> None:
        if self.spill is not None:
            self.spill.close()

    def take_out(self, partials: dict[Key, list[Partial]]) -> None:
        """Move the sums of all partials to disk, once there are more than `MOST_ROWS` of them."""
        rows = sum(part[WORDS].num_rows for parts in partials.values() for part in parts if WORDS in part)
        if self.spill is None and rows <= MOST_ROWS:
            return
        self.spill = self.spill or Spill(PARTS)
        for key, parts in partials.items():
            code = self.slices.setdefault(key, len(self.slices))
            for part in parts:
                if WORDS in part:
                    table = part.pop(WORDS)
                    numbered = table.append_column(_SLICE, pa.array(np.full(table.num_rows, code, np.int32)))
                    self.spill.add(numbered, part_of_text(table.column(WORD)))

    def table(self, by: Sequence[str]) -> pa.Table:
        """The table `words` with the slice columns; only if there are sums on disk."""
        assert self.spill is not None
        slices: Order = [(name, "ascending") for name in by]
        whole = SortedOnDisk([*slices, *in_order(WORD)])
        keys = list(self.slices)
        for rows in self.spill.read_all():
            of_row = rows.column(_SLICE).to_numpy()
            portions = []
            for code in np.unique(of_row).tolist():
                of_slice = rows.filter(pa.array(of_row == code)).drop_columns([_SLICE])
                portions.append(with_slice(by_group(sums_by_key(of_slice, WORD), WORD), by, keys[code]))
            whole.add(pa.concat_tables(portions))
        table = whole.table()
        return table.select([name for name in table.column_names if name != in_order(WORD)[0][0]])


def with_slice(table: pa.Table, by: Sequence[str], key: Key) -> pa.Table:
    """A table of one slice with the slice's columns in front."""
    for column, value in reversed(list(zip(by, key, strict=True))):
        table = table.add_column(0, column, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table
