"""Counts and moments of losses by group, as tables that merge: n, sum, sum of squared deviations, maximum, errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import Refused
from tokloss_ray.mining.words.words import Words
from tokloss_ray.ragged import one_array

COUNT, SUM, M2, MAX, ERRORS = "count", "sum", "m2", "max", "errors"
FIGURES = (COUNT, ERRORS, SUM, M2, MAX)
MEAN, STD = "mean", "std"
MAX_SLICES = 1000

Order = list[tuple[str, str]]


def slices(words: Words) -> tuple[np.ndarray, list[pa.Array]]:
    """The slice of each sequence, [S] int64, and for each slice column the values of the slices.

    Raises:
        Refused: there are more than 1,000 slices.
    """
    codes, first = group_rows([words.by[name] for name in words.by], len(words.offsets) - 1)
    _check_number(list(words.by), len(first))
    return codes, [values.take(pa.array(first)) for values in words.by.values()]


def check_slices(table: pa.Table, by: Sequence[str]) -> None:
    """See that a table has no more than 1,000 slices.

    Raises:
        Refused: it has.
    """
    if by:
        _check_number(by, len(group_rows([table.column(name) for name in by], table.num_rows)[1]))


def _check_number(by: Sequence[str], count: int) -> None:
    if count > MAX_SLICES:
        raise Refused(f"--by {','.join(by)} makes more than {MAX_SLICES:,} slices: choose a column with fewer values")


def compact(key: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of integers in [0, size), ascending, and the position of each among them."""
    if size > 8 * len(key) + 1024:
        distinct, codes = np.unique(key, return_inverse=True)
        return distinct, codes
    present = np.zeros(size, dtype=bool)
    present[key] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[key]


def group_rows(columns: Sequence[pa.Array], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Equal rows have equal numbers: the group of each row, [N] int64, and a row of each group, its first, [G]."""
    codes = np.zeros(length, dtype=np.int64)
    groups = 1 if length else 0
    for column in columns:
        encoded = pc.dictionary_encode(one_array(column), null_encoding="encode")
        size = len(encoded.dictionary) + 1
        # What was a dictionary before stays as it is, and null is none of its values.
        of_column = pc.fill_null(encoded.indices, size - 1).to_numpy(zero_copy_only=False)
        distinct, codes = compact(codes * size + of_column, groups * size)
        groups = len(distinct)
    first = np.zeros(groups, dtype=np.int64)
    first[codes[::-1]] = np.arange(length)[::-1]
    return codes, first


def tally(words: Words, keys: dict[str, tuple[np.ndarray, pa.Array]]) -> tuple[pa.Table, np.ndarray]:
    """Losses and errors of words by slice and keys; and the group of each word, [N].

    keys: column name -> the code of each word, [N], and the strings of the codes.

    Columns: those of the slices, the keys, `count` and `errors` int64, `sum` and `m2` (squared deviations from the
    group's mean) float64, `max` float32.
    """
    by_sequence, slice_values = slices(words)
    key = by_sequence[words.sequence] if words.by else np.zeros(len(words), dtype=np.int64)
    size = max(1, len(slice_values[0])) if slice_values else 1
    for codes, values in keys.values():
        key = key * len(values) + codes
        size *= len(values)
    distinct, group = compact(key, size)
    columns: dict[str, pa.Array] = {}
    for name, (_, values) in reversed(keys.items()):
        distinct, code = np.divmod(distinct, max(len(values), 1))
        columns[name] = values.take(pa.array(code))
    columns |= {name: values.take(pa.array(distinct)) for name, values in zip(words.by, slice_values, strict=True)}
    columns = {name: columns[name] for name in (*words.by, *keys)}
    wrong = words.label != words.predicted
    return pa.table(columns | moments(group, len(next(iter(columns.values()))), words.loss, wrong)), group


def moments(group: np.ndarray, groups: int, loss: np.ndarray, wrong: np.ndarray) -> dict[str, pa.Array]:
    """Count, errors, sum, m2 and max of each of G groups; two passes, so that nothing cancels."""
    x = loss.astype(np.float64)
    count = np.bincount(group, minlength=groups)
    total = np.bincount(group, weights=x, minlength=groups)
    deviation = x - (total / np.maximum(count, 1))[group]
    most = np.full(groups, -np.inf, dtype=np.float32)
    np.maximum.at(most, group, loss.astype(np.float32))
    return {
        COUNT: pa.array(count, pa.int64()),
        ERRORS: pa.array(np.bincount(group[wrong], minlength=groups), pa.int64()),
        SUM: pa.array(total, pa.float64()),
        M2: pa.array(np.bincount(group, weights=deviation * deviation, minlength=groups), pa.float64()),
        MAX: pa.array(most),
    }


def combine_tallies(parts: Sequence[pa.Table], keys: Sequence[str]) -> pa.Table:
    """Tallies as one, by the columns `keys` (slices included).

    Squared deviations by the pairwise formula of Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise
    algorithm for computing sample variances", for any number of parts. Other columns are those of the row with the
    largest loss; on a tie, of the first.
    """
    table = pa.concat_tables(parts)
    group, first = group_rows([table.column(name) for name in keys], table.num_rows)
    groups = len(first)
    n, total, m2, most, errors = (table.column(name).to_numpy() for name in (COUNT, SUM, M2, MAX, ERRORS))
    count = np.bincount(group, weights=n, minlength=groups)
    sums = np.bincount(group, weights=total, minlength=groups)
    apart = total / np.maximum(n, 1) - (sums / np.maximum(count, 1))[group]
    largest = np.full(groups, -np.inf, dtype=np.float32)
    np.maximum.at(largest, group, most)
    holder = np.zeros(groups, dtype=np.int64)
    at = np.flatnonzero(most == largest[group])[::-1]
    holder[group[at]] = at
    figures = {
        COUNT: pa.array(count.astype(np.int64)),
        ERRORS: pa.array(np.bincount(group, weights=errors, minlength=groups).astype(np.int64)),
        SUM: pa.array(sums, pa.float64()),
        M2: pa.array(np.bincount(group, weights=m2 + n * apart * apart, minlength=groups), pa.float64()),
        MAX: pa.array(largest),
    }
    others = table.drop_columns(list(figures)).take(pa.array(holder))
    return pa.table({name: figures[name] if name in figures else others.column(name) for name in table.column_names})


def sum_counts(parts: Sequence[pa.Table], keys: Sequence[str], counts: Sequence[str]) -> pa.Table:
    """Rows of equal keys as one, with the sums of their counts, sorted by the keys.

    parts: tables with these columns, in any order: a combined part may stand beside one that is not.
    """
    table = pa.concat_tables(part.select([*keys, *counts]) for part in parts)
    group, first = group_rows([table.column(name) for name in keys], table.num_rows)
    columns = {name: table.column(name).take(pa.array(first)) for name in keys}
    for name in counts:
        values = table.column(name)
        sums = np.bincount(group, weights=values.to_numpy(), minlength=len(first))
        columns[name] = pa.array(sums).cast(values.type)
    return sorted_by(pa.table(columns), keys, [])


def figures_of(tallied: pa.Table) -> dict[str, pa.Array]:
    """The columns of a final table: count, mean, sum, max, std and errors.

    `std` is the sample standard deviation (n - 1), null for a single value, as in pandas.
    """
    n, total, m2 = (tallied.column(name).to_numpy() for name in (COUNT, SUM, M2))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, std = total / n, np.sqrt(m2 / (n - 1))
    return {
        COUNT: tallied.column(COUNT),
        MEAN: pa.array(mean, mask=n == 0),
        SUM: tallied.column(SUM),
        MAX: tallied.column(MAX),
        STD: pa.array(std, mask=n < 2),
        ERRORS: tallied.column(ERRORS),
    }


def sorted_by(table: pa.Table, by: Sequence[str], order: Order) -> pa.Table:
    """Sorted by the slice columns, then in the given order; nulls last, what is equal as it stood."""
    return table.sort_by([*((name, "ascending") for name in by), *order]) if table.num_rows else table


def top_rows(table: pa.Table, by: Sequence[str], order: Order, limit: int) -> pa.Table:
    """The first `limit` rows of each slice in the given order. Tops of tops are the tops of all."""
    rows = sorted_by(table, by, order)
    if rows.num_rows <= limit:
        return rows
    if not by:
        return rows.slice(0, limit)
    return rows.filter(pa.array(rank_in_slice(rows, by) < limit))


def rank_in_slice(rows: pa.Table, by: Sequence[str]) -> np.ndarray:
    """Number of each row in its slice, from 0; the rows of a slice stand together."""
    group, first = group_rows([rows.column(name) for name in by], rows.num_rows)
    return np.arange(rows.num_rows) - first[group] if rows.num_rows else np.zeros(0, dtype=np.int64)
