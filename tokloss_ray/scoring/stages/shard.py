"""A shard, and how it travels through Ray Data: as one row, which is never split."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pyarrow as pa

from tokloss_ray.ragged import one_array

_ABOUT, _SEQUENCES, _ERRORS = "about", "sequences.", "errors."


class Shard(NamedTuple):
    """A run of consecutive sequences of one read unit, and the rows before them that could not become any.

    Attributes:
        about: unit, index, last (of its unit), rows (scored or not), which rows of the unit these are (start, stop;
            from first_row of the file source to last_row of last_source), the files in between (sources), and figures
            that stages add.
        sequences: one row per sequence; file_part is an index into sources.
        errors: rows of errors/.
    """

    about: dict[str, Any]
    sequences: pa.Table
    errors: pa.Table


def to_row(shard: Shard) -> pa.Table:
    """A table of one row whose columns are lists of the shard's columns."""
    columns = {_ABOUT: pa.array([json.dumps(shard.about)])}
    for prefix, table in ((_SEQUENCES, shard.sequences), (_ERRORS, shard.errors)):
        offsets = pa.array([0, table.num_rows], pa.int32())
        for name in table.column_names:
            columns[prefix + name] = pa.ListArray.from_arrays(offsets, one_array(table.column(name)))
    return pa.table(columns)


def from_row(row: pa.Table) -> Shard:
    """The shard that `to_row` made a row of."""

    def table(prefix: str) -> pa.Table:
        names = [name for name in row.column_names if name.startswith(prefix)]
        # flatten(), not .values: a row that was sliced out of a block still holds the whole block's values.
        return pa.table({name.removeprefix(prefix): one_array(row.column(name)).flatten() for name in names})

    return Shard(json.loads(row.column(_ABOUT)[0].as_py()), table(_SEQUENCES), table(_ERRORS))
