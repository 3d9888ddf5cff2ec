"""Every wrong entity, with what is wrong about it.

A label span and a predicted span of the same words and type are correct. The others are matched one to one, by the
number of words they share: the pair that shares most first; of pairs that share as much, one of equal types first, then
the one whose label span begins earlier, then whose predicted span does. Pairs and what is left over are the errors:

| error | |
| --- | --- |
| `missed` | a label span without a predicted one |
| `spurious` | a predicted span without a label span |
| `wrong_type` | a pair of the same words and of different types |
| `wrong_boundary` | a pair of one type and of different words |
| `wrong_both` | a pair of different types and of different words |

Tables (slice columns first in each); spans are read in default mode:

`entity_errors`, rows by highest loss: `error`, `text` (the words of both spans, joined by spaces), `label_tags`,
`predicted_tags` (list<string>, of these words), `label_type`, `label_start`, `label_stop`, `predicted_type`,
`predicted_start`, `predicted_stop` (indices of words in their row, stop exclusive; null where there is no such span),
`loss` (sum over these words, float64), `max_loss` float32, `output`, `example_id`, `source`, `source_row`.

`entity_error_counts`: `error`, `label_type`, `predicted_type`, `count` int64, `loss` (sum) float64; by highest count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.tables.grouping import COUNT, Order, sorted_by, sum_counts, top_rows
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.spans import both_spans, in_both
from tokloss_ray.mining.words.words import KEY, Words, key_columns, words_as_text
from tokloss_ray.ragged import list_array, offsets_of, positions
from tokloss_ray.tags.schemes import Spans, read_tag_set

ERRORS = ("missed", "spurious", "wrong_type", "wrong_boundary", "wrong_both")
MISSED, SPURIOUS, WRONG_TYPE, WRONG_BOUNDARY, WRONG_BOTH = range(5)
ERROR, LOSS, LABEL_TYPE, PREDICTED_TYPE = "error", "loss", "label_type", "predicted_type"
_TIES = (*KEY, "label_start", "predicted_start")
_ORDER: Order = [(LOSS, "descending"), *((name, "ascending") for name in _TIES)]


class WrongEntities(NamedTuple):
    """E wrong entities, in the order of their words.

    Attributes:
        error: [E], index into `ERRORS`.
        label, predicted: [E], index into the spans of labels and of predictions; -1 where there is none.
        start, stop: [E], the words of both spans and what is between them, as positions in the flat array of words.
    """

    error: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def wrong_entities(label: Spans, predicted: Spans, length: int) -> WrongEntities:
    """Match the spans of labels and predictions over `length` words; correct ones are left out."""
    right_label, right_predicted = in_both(label, predicted, length)
    pair_label, pair_predicted = _match(label, predicted, ~right_label, ~right_predicted, length)
    missed = ~right_label
    missed[pair_label] = False
    spurious = ~right_predicted
    spurious[pair_predicted] = False
    missed_at, spurious_at = np.flatnonzero(missed), np.flatnonzero(spurious)
    none = np.full(max(len(missed_at), len(spurious_at)), -1)
    at_label = np.concatenate([pair_label, missed_at, none[: len(spurious_at)]])
    at_predicted = np.concatenate([pair_predicted, none[: len(missed_at)], spurious_at])

    has_label, has_predicted = at_label >= 0, at_predicted >= 0
    label_start, label_stop, label_type = (np.append(values, 0)[at_label] for values in label)
    predicted_start, predicted_stop, predicted_type = (np.append(values, 0)[at_predicted] for values in predicted)
    same_type = label_type == predicted_type
    same_words = (label_start == predicted_start) & (label_stop == predicted_stop)
    error = np.select(
        [~has_predicted, ~has_label, same_words, same_type], [MISSED, SPURIOUS, WRONG_TYPE, WRONG_BOUNDARY], WRONG_BOTH
    )
    start = np.where(has_label, label_start, length)
    start = np.minimum(start, np.where(has_predicted, predicted_start, length))
    stop = np.maximum(np.where(has_label, label_stop, 0), np.where(has_predicted, predicted_stop, 0))
    order = np.lexsort((at_predicted, at_label, start))
    return WrongEntities(*(values[order] for values in (error, at_label, at_predicted, start, stop)))


def _match(
    label: Spans, predicted: Spans, label_open: np.ndarray, predicted_open: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of open spans that share words, as greedy as above: each round takes those that are best on both sides."""
    owner_label, owner_predicted = _owners(label, label_open, length), _owners(predicted, predicted_open, length)
    shared = (owner_label >= 0) & (owner_predicted >= 0)
    keys, overlap = np.unique(
        owner_label[shared] * max(len(predicted.start), 1) + owner_predicted[shared], return_counts=True
    )
    a, b = np.divmod(keys, max(len(predicted.start), 1))
    order = np.lexsort((b, a, label.type[a] != predicted.type[b], -overlap))
    a, b = a[order], b[order]
    found_a, found_b = [], []
    while len(a):
        rank = np.arange(len(a))
        best_a, best_b = np.full(len(label.start), len(a)), np.full(len(predicted.start), len(a))
        np.minimum.at(best_a, a, rank)
        np.minimum.at(best_b, b, rank)
        taken = (best_a[a] == rank) & (best_b[b] == rank)
        found_a.append(a[taken])
        found_b.append(b[taken])
        left = ~np.isin(a, a[taken]) & ~np.isin(b, b[taken])
        a, b = a[left], b[left]
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *found_a]), np.concatenate([empty, *found_b])


def _owners(spans: Spans, chosen: np.ndarray, length: int) -> np.ndarray:
    """The chosen span that each word is in, -1 for none."""
    at = np.flatnonzero(chosen)
    sizes = (spans.stop - spans.start)[at]
    owner = np.full(length, -1, dtype=np.int64)
    owner[positions(spans.start[at], sizes)] = np.repeat(at, sizes)
    return owner


def entity_errors_partial(
    words: Words,
    limit: int = 10_000,
    scheme: str | None = None,
    bridge_gaps: bool = False,
    rows: pa.Table | None = None,
) -> pa.Table:
    """The first `limit` wrong entities of each slice. No rows where tags mark no spans.

    rows: what `wrong_rows` returns, where it is at hand.
    """
    table = top_rows(wrong_rows(words, scheme, bridge_gaps) if rows is None else rows, list(words.by), _ORDER, limit)
    start, stop = (table.column(name).to_numpy() for name in ("start", "stop"))
    at = positions(start, stop - start)
    offsets, tags = offsets_of(stop - start), pa.array(words.tags, pa.string())
    text = words_as_text(words.word.take(pa.array(at)), offsets)
    lists = {
        "text": text,
        "label_tags": list_array(tags.take(pa.array(words.label[at])), offsets),
        "predicted_tags": list_array(tags.take(pa.array(words.predicted[at])), offsets),
    }
    names = [*words.by, ERROR, *lists, *(f"{side}_{end}" for side in ("label", "predicted") for end in _ENDS)]
    names += [LOSS, "max_loss", *KEY]
    return pa.table({name: lists[name] if name in lists else table.column(name) for name in names})


_ENDS = ("type", "start", "stop")


def wrong_rows(words: Words, scheme: str | None = None, bridge_gaps: bool = False) -> pa.Table:
    """All wrong entities, without their words, and [`start`, `stop`) in the flat array."""
    tag_set = read_tag_set(words.tags, scheme)
    label, predicted = both_spans(words, tag_set, bridge_gaps=bridge_gaps)
    wrong = wrong_entities(label, predicted, len(words))
    sequence = words.sequence[wrong.start]
    types = pa.array(tag_set.types if tag_set else (), pa.string())
    columns = {name: values.take(pa.array(sequence)) for name, values in words.by.items()}
    columns[ERROR] = pa.array(ERRORS).take(pa.array(wrong.error))
    for side, spans, at in (("label", label, wrong.label), ("predicted", predicted, wrong.predicted)):
        missing = at < 0
        columns[f"{side}_type"] = types.take(pa.array(np.append(spans.type, 0)[at], pa.int64(), mask=missing))
        for end, index in (("start", words.word_index[spans.start]), ("stop", words.word_index[spans.stop - 1] + 1)):
            columns[f"{side}_{end}"] = pa.array(np.append(index, 0)[at], pa.int32(), mask=missing)
    # Slices of their own: sums must not depend on what else is in the part.
    ends = np.stack([wrong.start, wrong.stop], axis=1).ravel()
    loss = np.append(words.loss, np.float32(0))
    return pa.table(
        columns
        | {
            LOSS: pa.array(np.add.reduceat(loss.astype(np.float64), ends)[::2] if len(ends) else np.zeros(0)),
            "max_loss": pa.array(np.maximum.reduceat(loss, ends)[::2] if len(ends) else np.zeros(0, np.float32)),
            **key_columns(words, sequence),
            "start": pa.array(wrong.start, pa.int64()),
            "stop": pa.array(wrong.stop, pa.int64()),
        }
    )


def entity_errors_combine(parts: Sequence[pa.Table], by: Sequence[str] = (), limit: int = 10_000) -> pa.Table:
    """Partials as one partial."""
    return top_rows(pa.concat_tables(parts), by, _ORDER, limit)


entity_errors_merge = entity_errors_combine


def entity_error_counts_partial(
    words: Words, scheme: str | None = None, bridge_gaps: bool = False, rows: pa.Table | None = None
) -> pa.Table:
    """Wrong entities by error and types. No rows where tags mark no spans. rows: as above."""
    rows = wrong_rows(words, scheme, bridge_gaps) if rows is None else rows
    ones = pa.array(np.ones(rows.num_rows, dtype=np.int64))
    return entity_error_counts_combine([rows.append_column(COUNT, ones)], list(words.by))


def entity_error_counts_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return sum_counts(parts, [*by, ERROR, LABEL_TYPE, PREDICTED_TYPE], (COUNT, LOSS))


def entity_error_counts_merge(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Wrong entities by error and types, the most frequent first."""
    order: Order = [(COUNT, "descending"), (ERROR, "ascending"), (LABEL_TYPE, "ascending")]
    return sorted_by(entity_error_counts_combine(parts, by), by, [*order, (PREDICTED_TYPE, "ascending")])


ENTITY_ERRORS = Table(
    name="entity_errors",
    title="Wrong entities, by loss",
    shown=(ERROR, LABEL_TYPE, PREDICTED_TYPE, LOSS, "example_id", "text"),
    partial=lambda part, settings: entity_errors_partial(part.words, settings.limit, settings.scheme, rows=part.wrong),
    combine=lambda parts, settings: entity_errors_combine(parts, settings.by, settings.limit),
    of_rows=True,
    final=lambda partials, settings: entity_errors_merge([partials["entity_errors"]], settings.by, settings.limit),
)
ENTITY_ERROR_COUNTS = Table(
    name="entity_error_counts",
    title="Wrong entities",
    shown=(ERROR, LABEL_TYPE, PREDICTED_TYPE, COUNT, LOSS),
    partial=lambda part, settings: entity_error_counts_partial(part.words, settings.scheme, rows=part.wrong),
    combine=lambda parts, settings: entity_error_counts_combine(parts, settings.by),
    final=lambda partials, settings: entity_error_counts_merge([partials["entity_error_counts"]], settings.by),
)
