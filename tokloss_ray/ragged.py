"""Small numpy and Arrow functions on ragged data (flat values with offsets), and sums of counts that may be unknown."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as a single array that starts at offset 0 of its buffers' meaning."""
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 1 and not column.chunk(0).offset:  # which combine_chunks would copy
            return column.chunk(0)
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # zero chunks, or several under 2 GB rules
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column


def list_lengths(column: pa.Array) -> np.ndarray:
    """Length of each list as int64; 0 for a null list."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def sum_if_known(counts: Iterable[int | None]) -> int | None:
    """The sum of some counts, None if one of them is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Offsets [n + 1] of lists with these lengths."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def list_array(values: pa.Array | np.ndarray, offsets: np.ndarray, mask: np.ndarray | None = None) -> pa.ListArray:
    """Lists over flat values; `mask` (bool [n]) marks the lists that are null."""
    if not isinstance(values, pa.Array):
        values = pa.array(values)
    null = pa.array(mask) if mask is not None and mask.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=null)


def any_per_row(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether a flag is set anywhere in each row."""
    return sum_per_row(flags, offsets) > 0


def sum_per_row(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sum of each row's values (integers or booleans), 0 for an empty row."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]


def positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The flat positions start, start + 1, ... of several runs, one after another."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
