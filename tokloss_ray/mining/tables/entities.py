"""Entity spans: scores by type as seqeval gives them, and malformed tags.

Tables (slice columns first in each), and the partials they are merged from:

`entities`, a row for each mode, type and average: `mode` (default, strict), `level` (type, micro, macro, weighted),
`type` (null unless the level is type), `precision`, `recall`, `f1` float64, `support` (label spans), `predicted`
(predicted spans) and `correct` (spans of the same words and type) int64. The values are those of seqeval's
`classification_report`; what would be a division by zero is 0.

`malformed_tags`, a row for each side, kind and tag that occurs: `side` (label, predicted), `kind`
(`schemes.MALFORMED`), `tag`, `count` (words) and `sequences` (that have such a word) int64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.tables.grouping import COUNT, Order, compact, group_rows, slices, sorted_by, sum_counts
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.spans import both_spans, in_both
from tokloss_ray.mining.words.words import Words
from tokloss_ray.tags.schemes import MODES, Spans, malformed_words, read_tag_set

MODE, LEVEL, TYPE = "mode", "level", "type"
SUPPORT, PREDICTED, CORRECT = "support", "predicted", "correct"
SIDE, KIND, TAG, SEQUENCES = "side", "kind", "tag", "sequences"
_COUNTS = (SUPPORT, PREDICTED, CORRECT)


def entities_partial(words: Words, scheme: str | None = None, bridge_gaps: bool = False) -> pa.Table:
    """Spans by mode and type. scheme, bridge_gaps: see `tags.schemes`. No rows where tags mark no spans.

    Columns: those of the slices, `mode`, `type`, `support`, `predicted`, `correct`.
    """
    tag_set = read_tag_set(words.tags, scheme)
    by_sequence, slice_values = slices(words)
    parts = []
    for mode in MODES if tag_set else ():
        assert tag_set
        label, predicted = both_spans(words, tag_set, mode, bridge_gaps)
        types = max(len(tag_set.types), 1)
        size = types * (by_sequence.max(initial=0) + 1)

        def counts(spans: Spans, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
            sequence = words.sequence[spans.start[chosen]]
            return np.bincount(by_sequence[sequence] * types + spans.type[chosen], minlength=size)  # noqa: B023

        correct = counts(label, in_both(label, predicted, len(words))[0])
        columns = dict(zip(_COUNTS, (counts(label), counts(predicted), correct), strict=True))
        some = np.flatnonzero(columns[SUPPORT] + columns[PREDICTED])
        keys = {name: values.take(pa.array(some // types)) for name, values in zip(words.by, slice_values, strict=True)}
        keys |= {
            MODE: pa.repeat(pa.scalar(mode), len(some)),
            TYPE: pa.array(tag_set.types).take(pa.array(some % types)),
        }
        parts.append(pa.table(keys | {name: pa.array(values[some], pa.int64()) for name, values in columns.items()}))
    return pa.concat_tables(parts) if parts else _no_rows([*words.by, MODE, TYPE], _COUNTS)


def entities_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return sum_counts(parts, [*by, MODE, TYPE], _COUNTS)


def entities_merge(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Precision, recall and F1 of each type, and their micro, macro and weighted averages, in each mode."""
    table = entities_combine(parts, by)
    counts = {name: table.column(name).to_numpy() for name in _COUNTS}
    scores = _scores(counts)
    group, first = group_rows([table.column(name) for name in (*by, MODE)], table.num_rows)
    totals = {
        name: np.bincount(group, weights=values, minlength=len(first)).astype(np.int64)
        for name, values in counts.items()
    }
    averages = {
        "micro": _scores(totals),
        "macro": _averages(scores, group, np.ones(table.num_rows), len(first)),
        "weighted": _averages(scores, group, counts[SUPPORT].astype(np.float64), len(first)),
    }
    keys = table.select([*by, MODE])
    rows = [_entity_rows(keys, TYPE, table.column(TYPE), scores, counts)]
    for level, values in averages.items():
        types = pa.nulls(len(first), pa.string())
        rows.append(_entity_rows(keys.take(pa.array(first)), level, types, values, totals))
    place = pa.array(np.repeat(np.arange(len(rows)), [part.num_rows for part in rows]))
    order: Order = [("_place", "ascending"), (TYPE, "ascending")]
    joined = pa.concat_tables(rows).append_column("_place", place)
    return sorted_by(joined, [*by, MODE], order).drop_columns(["_place"])


def _entity_rows(
    keys: pa.Table, level: str, types: pa.Array, scores: np.ndarray, counts: dict[str, np.ndarray]
) -> pa.Table:
    columns = {name: keys.column(name) for name in keys.column_names}
    columns |= {LEVEL: pa.repeat(pa.scalar(level), keys.num_rows), TYPE: types}
    columns |= {name: pa.array(values) for name, values in zip(("precision", "recall", "f1"), scores, strict=True)}
    return pa.table(columns | {name: pa.array(counts[name], pa.int64()) for name in _COUNTS})


def _scores(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Precision, recall and F1, [3, n]; 0 where it would be a division by zero."""
    precision = counts[CORRECT] / np.maximum(counts[PREDICTED], 1)
    recall = counts[CORRECT] / np.maximum(counts[SUPPORT], 1)
    both = precision + recall
    return np.array([precision, recall, 2 * precision * recall / np.where(both == 0, 1, both)])


def _averages(scores: np.ndarray, group: np.ndarray, weights: np.ndarray, groups: int) -> np.ndarray:
    total = np.bincount(group, weights=weights, minlength=groups)
    sums = np.array([np.bincount(group, weights=weights * values, minlength=groups) for values in scores])
    return sums / np.where(total == 0, 1, total)


def malformed_partial(words: Words, scheme: str | None = None, bridge_gaps: bool = False) -> pa.Table:
    """Malformed tags by side, kind and tag, with the number of words and of sequences."""
    tag_set = read_tag_set(words.tags, scheme)
    by_sequence, slice_values = slices(words)
    tags = pa.array(words.tags, pa.string())
    parts = []
    for side, codes in (("label", words.label), ("predicted", words.predicted)) if tag_set else ():
        assert tag_set
        found = malformed_words(codes, words.offsets, words.word_index, tag_set, bridge_gaps)
        for kind, at in found.items():
            sequence = words.sequence[at]
            cells = by_sequence[sequence] * len(tags) + codes[at]
            distinct, cell = compact(cells, int(cells.max(initial=0)) + 1)
            pairs = np.unique(np.stack([cell, sequence]), axis=1)[0]
            keys = {
                name: values.take(pa.array(distinct // len(tags)))
                for name, values in zip(words.by, slice_values, strict=True)
            }
            keys |= {name: pa.repeat(pa.scalar(value), len(distinct)) for name, value in ((SIDE, side), (KIND, kind))}
            counts = {COUNT: np.bincount(cell, minlength=len(distinct))}
            counts[SEQUENCES] = np.bincount(pairs, minlength=len(distinct))
            keys |= {TAG: tags.take(pa.array(distinct % len(tags)))}
            parts.append(pa.table(keys | {name: pa.array(values, pa.int64()) for name, values in counts.items()}))
    return pa.concat_tables(parts) if parts else _no_rows([*words.by, SIDE, KIND, TAG], (COUNT, SEQUENCES))


def malformed_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return sum_counts(parts, [*by, SIDE, KIND, TAG], (COUNT, SEQUENCES))


malformed_merge = malformed_combine


def _no_rows(strings: Sequence[str], counts: Sequence[str]) -> pa.Table:
    fields = [(name, pa.string()) for name in strings] + [(name, pa.int64()) for name in counts]
    return pa.schema(fields).empty_table()


ENTITIES = Table(
    name="entities",
    title="Entities, exact match",
    shown=(MODE, LEVEL, TYPE, "precision", "recall", "f1", SUPPORT),
    partial=lambda part, settings: entities_partial(part.words, settings.scheme),
    combine=lambda parts, settings: entities_combine(parts, settings.by),
    final=lambda partials, settings: entities_merge([partials["entities"]], settings.by),
)
MALFORMED_TAGS = Table(
    name="malformed_tags",
    title="Malformed tags",
    shown=(SIDE, KIND, TAG, COUNT, SEQUENCES),
    partial=lambda part, settings: malformed_partial(part.words, settings.scheme),
    combine=lambda parts, settings: malformed_combine(parts, settings.by),
    final=lambda partials, settings: malformed_merge([partials["malformed_tags"]], settings.by),
)
