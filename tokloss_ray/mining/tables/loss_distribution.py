"""How the losses of each tag are distributed: counts in fixed bins, so that parts merge exactly.

`loss_distribution` (slice columns first), over labelled tokens, a row for each tag and bin that occurs, by tag and bin:
`tag`, `low`, `high` float64 (low <= loss < high; `high` is null in the last bin), `count` int64.

Losses span many orders of magnitude, so bins are even on a logarithmic scale: eight a decade from 0.00001 to 100, one
for what is below and one for what is above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.tables.grouping import COUNT, compact, slices, sorted_by, sum_counts
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.words import Words

TAG, LOW, HIGH = "tag", "low", "high"
_BIN = "bin"

_MANTISSAS = (1.0, 1.33, 1.78, 2.37, 3.16, 4.22, 5.62, 7.5)  # 10 ** (k / 8), written so that all platforms agree
EDGES = np.array([float(f"{m}e{exponent}") for exponent in range(-5, 2) for m in _MANTISSAS] + [100.0])
"""[57] ascending; bin k holds EDGES[k - 1] <= loss < EDGES[k], bin 0 what is below, bin 57 what is above."""


def loss_distribution_partial(tokens: Words) -> pa.Table:
    """Labelled tokens by tag of the label and bin. Columns: those of the slices, `tag`, `bin`, `count`."""
    by_sequence, slice_values = slices(tokens)
    bins = len(EDGES) + 1
    key = np.searchsorted(EDGES, tokens.loss.astype(np.float64), side="right") + bins * tokens.label
    if tokens.by:
        key = key + bins * len(tokens.tags) * by_sequence[tokens.sequence]
    distinct, group = compact(key, bins * len(tokens.tags) * (int(by_sequence.max(initial=0)) + 1))
    rest, at = np.divmod(distinct, bins)
    of_slice, tag = np.divmod(rest, len(tokens.tags))
    columns = {name: values.take(pa.array(of_slice)) for name, values in zip(tokens.by, slice_values, strict=True)}
    columns[TAG] = pa.array(tokens.tags, pa.string()).take(pa.array(tag))
    columns[_BIN] = pa.array(at, pa.int32())
    columns[COUNT] = pa.array(np.bincount(group, minlength=len(distinct)), pa.int64())
    return pa.table(columns)


def loss_distribution_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return sum_counts(parts, [*by, TAG, _BIN], [COUNT])


def loss_distribution_merge(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """tag, low, high, count."""
    rows = sorted_by(loss_distribution_combine(parts, by), by, [(TAG, "ascending"), (_BIN, "ascending")])
    at = rows.column(_BIN).to_numpy()
    low, high = np.append(0.0, EDGES), np.append(EDGES, np.nan)
    return pa.table(
        {name: rows.column(name) for name in (*by, TAG)}
        | {LOW: pa.array(low[at]), HIGH: pa.array(high[at], mask=at == len(EDGES)), COUNT: rows.column(COUNT)}
    )


LOSS_DISTRIBUTION = Table(
    name="loss_distribution",
    title="Losses by tag",
    shown=(TAG, LOW, HIGH, COUNT),
    partial=lambda part, settings: loss_distribution_partial(part.tokens),
    combine=lambda parts, settings: loss_distribution_combine(parts, settings.by),
    final=lambda partials, settings: loss_distribution_merge([partials["loss_distribution"]], settings.by),
)
