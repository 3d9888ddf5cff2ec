"""Entities whose annotation is probably wrong: the span to change, and the tags to change it to.

Label spans and predicted spans that share words make one region (`label_scores.regions`). A region whose labels and
predictions are not the same spans is an issue. What is suggested are the predicted spans, spelt by the rules of the tag
scheme, whatever the predicted tags were; so the suggested tags are always well-formed.

`entity_issues` (slice columns first), the most suspicious first, the first `limit` of each slice: `kind`, `text`,
`start`, `stop` (indices of words in the row, stop exclusive), `label_tags`, `suggested_tags` (list<string>, of these
words), `score` (of its worst word), `loss` (sum), `output`, `example_id`, `source`, `source_row`.

| kind | |
| --- | --- |
| `add` | no entity is annotated: one is suggested |
| `remove` | an entity is annotated: none is suggested |
| `retype` | the same words, another type |
| `move` | one entity of the same type, other words |
| `change` | anything else: other words and type, one entity split into several, or several made one |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.ranks.label_scores import Ranking, regions
from tokloss_ray.mining.tables.grouping import Order, top_rows
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.spans import both_spans, in_both
from tokloss_ray.mining.words.words import KEY, Words, key_columns, words_as_text
from tokloss_ray.ragged import list_array, offsets_of, positions
from tokloss_ray.tags.schemes import Spans, TagSet, write_spans

KINDS = ("add", "remove", "retype", "move", "change")
_TIES = (*KEY, "start")
_ORDER: Order = [("score", "descending"), *((name, "ascending") for name in _TIES)]


def entity_issues_partial(ranking: Ranking, limit: int = 10_000) -> pa.Table:
    """The first `limit` issues of each slice. No rows where tags mark no spans."""
    words, tag_set = ranking.words, ranking.tag_set
    label, predicted = both_spans(words, tag_set)
    start, stop, kind = _changed_regions(label, predicted, len(words))
    ends = np.stack([start, stop], axis=1).ravel()
    worst = np.maximum.reduceat(np.append(ranking.score, -np.inf), ends)[::2] if len(ends) else np.zeros(0)
    loss = np.append(words.loss, 0).astype(np.float64)
    sequence = words.sequence[start]
    table = pa.table(
        {name: values.take(pa.array(sequence)) for name, values in words.by.items()}
        | {
            "kind": pa.array(KINDS).take(pa.array(kind)),
            "start": pa.array(words.word_index[start], pa.int32()),
            "stop": pa.array(words.word_index[stop - 1] + 1, pa.int32()),
            "score": pa.array(worst),
            "loss": pa.array(np.add.reduceat(loss, ends)[::2] if len(ends) else np.zeros(0)),
            **key_columns(words, sequence),
            "_first": pa.array(start, pa.int64()),
            "_last": pa.array(stop, pa.int64()),
        }
    )
    return _with_words(words, tag_set, predicted, top_rows(table, list(words.by), _ORDER, limit))


def _changed_regions(label: Spans, predicted: Spans, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[start, stop) and the kind (index into `KINDS`) of each region whose spans differ."""
    region, begin = regions(label, predicted, length)
    ends = np.append(begin[1:], length)
    same_label, same_predicted = in_both(label, predicted, length)
    of_label, of_predicted = region[label.start], region[predicted.start]

    def count(of: np.ndarray) -> np.ndarray:
        return np.bincount(of, minlength=len(begin))

    number, suggested = count(of_label), count(of_predicted)
    at = np.flatnonzero(count(of_label[~same_label]) + count(of_predicted[~same_predicted]))
    # Where there is one of each, its number.
    a, b = np.zeros(len(begin), dtype=np.int64), np.zeros(len(begin), dtype=np.int64)
    a[of_label], b[of_predicted] = np.arange(len(of_label)), np.arange(len(of_predicted))
    a, b = a[at], b[at]
    one = (number[at] == 1) & (suggested[at] == 1)
    (start, stop, kind), (start2, stop2, kind2) = (
        tuple(np.append(values, -1)[i] for values in spans) for spans, i in ((label, a), (predicted, b))
    )
    same_words = one & (start == start2) & (stop == stop2)
    codes = np.select([number[at] == 0, suggested[at] == 0, same_words, one & (kind == kind2)], [0, 1, 2, 3], 4)
    return begin[at], ends[at], codes


def _with_words(words: Words, tag_set: TagSet | None, predicted: Spans, table: pa.Table) -> pa.Table:
    start, stop = (table.column(name).to_numpy() for name in ("_first", "_last"))
    at, offsets = positions(start, stop - start), offsets_of(stop - start)
    tags = pa.array(words.tags, pa.string())
    suggested = write_spans(predicted, len(words), tag_set)[at] if tag_set else np.zeros(0, dtype=np.int32)
    lists = {
        "text": words_as_text(words.word.take(pa.array(at)), offsets),
        "label_tags": list_array(tags.take(pa.array(words.label[at])), offsets),
        "suggested_tags": list_array(tags.take(pa.array(suggested)), offsets),
    }
    names = (*words.by, "kind", "text", "start", "stop", "label_tags", "suggested_tags", "score", "loss")
    names += KEY
    return pa.table({name: lists[name] if name in lists else table.column(name) for name in names})


def entity_issues_combine(parts: Sequence[pa.Table], by: Sequence[str] = (), limit: int = 10_000) -> pa.Table:
    """Partials as one partial."""
    return top_rows(pa.concat_tables(parts), by, _ORDER, limit)


entity_issues_merge = entity_issues_combine


ENTITY_ISSUES = Table(
    name="entity_issues",
    title="Entities that are probably wrong",
    shown=("kind", "score", "example_id", "label_tags", "text"),
    partial=lambda part, settings: entity_issues_partial(part.ranking, settings.limit),
    combine=lambda parts, settings: entity_issues_combine(parts, settings.by, settings.limit),
    of_rows=True,
    final=lambda partials, settings: entity_issues_merge([partials["entity_issues"]], settings.by, settings.limit),
)
