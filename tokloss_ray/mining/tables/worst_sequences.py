"""The sequences with the highest loss: in total, on average, and at their worst token.

Schema in docs/mining.md. Rows, not aggregates: the tops of parts hold the tops of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.tables.grouping import group_rows
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.words import Words, key_columns
from tokloss_ray.ragged import list_array, offsets_of, positions

TOTAL, MEAN, MAX = "total_loss", "mean_loss", "max_loss"
RANKS = {"rank_total": TOTAL, "rank_mean": MEAN, "rank_max": MAX}


def sequences_partial(tokens: Words, limit: int = 10_000) -> pa.Table:
    """The first `limit` sequences of each slice by each of the three. tokens: all labelled tokens."""
    counts = np.diff(tokens.offsets)
    some = np.flatnonzero(counts)  # reduceat needs a token in each
    starts = tokens.offsets[some]
    loss = tokens.loss.astype(np.float64)
    total = np.add.reduceat(loss, starts) if len(some) else np.zeros(0)
    figures = {
        TOTAL: pa.array(total),
        MEAN: pa.array(total / counts[some]),
        MAX: pa.array(np.maximum.reduceat(tokens.loss, starts) if len(some) else np.zeros(0, np.float32)),
    }
    by = list(tokens.by)
    at = pa.array(some)
    wrong = (tokens.label != tokens.predicted).astype(np.int64)
    table = pa.table(
        {name: values.take(at) for name, values in tokens.by.items()}
        | key_columns(tokens, at)
        | {
            "num_labels": pa.array(counts[some], pa.int32()),
            "errors": pa.array(np.add.reduceat(wrong, starts) if len(some) else [], pa.int32()),
        }
        | figures
        | {"_sequence": pa.array(some)}
    )
    kept = _tops(table, by, limit)
    chosen = kept.column("_sequence").to_numpy()
    return pa.table(
        {name: kept.column(name) for name in kept.column_names if name != "_sequence"} | _lists(tokens, chosen)
    )


def sequences_combine(parts: Sequence[pa.Table], by: Sequence[str] = (), limit: int = 10_000) -> pa.Table:
    """Partials as one partial."""
    return _tops(pa.concat_tables(parts), by, limit)


def sequences_merge(parts: Sequence[pa.Table], by: Sequence[str] = (), limit: int = 10_000) -> pa.Table:
    """rank_total, rank_mean, rank_max (from 1, null beyond `limit`), output, example_id, source, source_row,
    num_labels, errors, total_loss, mean_loss, max_loss, and the labelled tokens one by one: tokens, words, labels,
    predicted, losses. Sorted by rank_total, then rank_mean, then rank_max.
    """  # fmt: skip
    table = pa.concat_tables(parts)
    ranks = _ranks(table, by)
    kept = np.flatnonzero(np.minimum.reduce(list(ranks.values())) <= limit)
    slices = table.select(list(by)).take(pa.array(kept))
    keys = {name: slices.column(name) for name in by}
    keys |= {name: pa.array(rank[kept], pa.int32(), mask=rank[kept] > limit) for name, rank in ranks.items()}
    # In order before they are taken: a row holds a whole sentence.
    order = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])
    rows = table.take(pa.array(kept).take(order)).drop_columns(list(by))
    return pa.table(
        {name: values.take(order) for name, values in keys.items()}
        | dict(zip(rows.column_names, rows.columns, strict=True))
    )


def _tops(table: pa.Table, by: Sequence[str], limit: int) -> pa.Table:
    """Rows that are among the first `limit` of their slice by any of the three, in the order they stood."""
    if table.num_rows <= limit:
        return table
    ranks = _ranks(table, by)
    return table.take(pa.array(np.flatnonzero(np.minimum.reduce(list(ranks.values())) <= limit)))


def _ranks(table: pa.Table, by: Sequence[str]) -> dict[str, np.ndarray]:
    """Rank of each row in its slice, from 1, by each of the three; on a tie by source, row and output."""
    ties = [("source", "ascending"), ("source_row", "ascending"), ("output", "ascending")]
    by_place = pc.sort_indices(table.select([name for name, _ in ties]), sort_keys=ties).to_numpy()
    group, first = group_rows([table.column(name) for name in by], table.num_rows)
    begins = offsets_of(np.bincount(group, minlength=len(first)))
    ranks = {}
    for name, column in RANKS.items():
        value = table.column(column).to_numpy()
        order = by_place[np.lexsort((-value[by_place], group[by_place]))]  # stable
        ranks[name] = np.empty(table.num_rows, dtype=np.int64)
        ranks[name][order] = np.arange(table.num_rows) - begins[group[order]] + 1
    return ranks


def _lists(tokens: Words, chosen: np.ndarray) -> dict[str, pa.Array]:
    """The labelled tokens of the chosen sequences."""
    lengths = np.diff(tokens.offsets)[chosen]
    at = positions(tokens.offsets[chosen], lengths)
    offsets = offsets_of(lengths)
    tags = pa.array(tokens.tags, pa.string())
    flat = {
        "tokens": tokens.token.take(pa.array(at)).cast(pa.string()),
        "words": tokens.word.take(pa.array(at)).cast(pa.string()),
        "labels": tags.take(pa.array(tokens.label[at])),
        "predicted": tags.take(pa.array(tokens.predicted[at])),
        "losses": pa.array(tokens.loss[at]),
    }
    return {name: list_array(values, offsets) for name, values in flat.items()}


SEQUENCES = Table(
    name="sequences",
    title="Sequences, by total loss",
    shown=("example_id", TOTAL, MEAN, "errors", "words"),
    partial=lambda part, settings: sequences_partial(part.tokens, settings.limit),
    combine=lambda parts, settings: sequences_combine(parts, settings.by, settings.limit),
    of_rows=True,
    final=lambda partials, settings: sequences_merge([partials["sequences"]], settings.by, settings.limit),
)
