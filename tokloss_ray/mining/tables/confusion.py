"""Tags and what they are taken for: figures by tag, and the confusion matrix by tag and by entity type.

Both tables are made of the same partial, `tags_partial`, over all labelled tokens. Schemas are in docs/mining.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.tables.grouping import (
    COUNT,
    MEAN,
    SUM,
    combine_tallies,
    figures_of,
    group_rows,
    sorted_by,
    tally,
)
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.words import Words
from tokloss_ray.ragged import one_array
from tokloss_ray.tags.schemes import read_tag_set

LABEL, PREDICTED, TAG, LEVEL = "label", "predicted", "tag", "level"


def entity_types(tags: Sequence[str], scheme: str | None = None) -> dict[str, str]:
    """The type in each tag: PER of B-PER; O is a type too, and tags that mark no spans are their own types."""
    tag_set = read_tag_set(tuple(tags), scheme)
    if tag_set is None:
        return {tag: tag for tag in tags}
    return {tag: tag_set.types[code] if code >= 0 else tag for tag, code in zip(tags, tag_set.type, strict=True)}


def tags_partial(tokens: Words) -> pa.Table:
    """Losses by label and prediction. tokens: all labelled tokens."""
    tags = pa.array(tokens.tags, pa.string())
    return tally(tokens, {LABEL: (tokens.label, tags), PREDICTED: (tokens.predicted, tags)})[0]


def tags_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return combine_tallies(parts, [*by, LABEL, PREDICTED])


def tags_merge(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """tag, count, mean, sum, max, std, errors, predicted, correct, precision, recall, f1; highest mean loss first.

    A row for each tag that is labelled or predicted. Precision is null for a tag that is never predicted, recall for
    one that is never labelled.
    """
    cells = tags_combine(parts, by)
    names = _renamed(cells, LABEL, TAG)
    # A tag that is only predicted has a row too: with no labels, hence no losses.
    only = _renamed(cells, PREDICTED, TAG)
    for name, empty in ((COUNT, 0), ("errors", 0), (SUM, 0.0), ("m2", 0.0), ("max", -np.inf)):
        at = only.schema.get_field_index(name)
        only = only.set_column(at, only.field(at), pa.array(np.full(only.num_rows, empty), only.field(at).type))
    rows = combine_tallies([names, only], [*by, TAG])
    keys = [rows.column(name) for name in (*by, TAG)]
    predicted = _matched(keys, cells, [*by, PREDICTED])
    hits = cells.filter(pa.array(_equal(cells)))
    correct = _matched(keys, hits, [*by, LABEL])
    count = rows.column(COUNT).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = {
            "precision": pa.array(correct / predicted, mask=predicted == 0),
            "recall": pa.array(correct / count, mask=count == 0),
            "f1": pa.array(2 * correct / (predicted + count)),
        }
    figures = figures_of(rows)
    most = rows.column("max").to_numpy()
    figures["max"] = pa.array(most, mask=np.isneginf(most))
    table = pa.table(
        {name: rows.column(name) for name in (*by, TAG)}
        | figures
        | {"predicted": pa.array(predicted), "correct": pa.array(correct)}
        | shares
    )
    return sorted_by(table, by, [(MEAN, "descending"), (TAG, "ascending")])


def confusion_merge(
    parts: Sequence[pa.Table], tags: Sequence[str], by: Sequence[str] = (), scheme: str | None = None
) -> pa.Table:
    """level (`tag` or `type`), label, predicted, count, share (of the label's row); cells that occur.

    tags: the model's, in the order of rows and columns; types are in the order of their tags.
    """
    cells = tags_combine(parts, by)
    types = entity_types(tags, scheme)
    tables = []
    for level in ("tag", "type"):
        names = {tag: tag for tag in tags} if level == "tag" else types
        table = cells.select([*by, LABEL, PREDICTED, COUNT])
        for side in (LABEL, PREDICTED):
            at = table.schema.get_field_index(side)
            values = one_array(table.column(side)).dictionary_encode()
            renamed = pa.array([names[tag] for tag in values.dictionary.to_pylist()], pa.string())
            table = table.set_column(at, side, renamed.take(values.indices))
        order = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        tables.append(_cells(table, by, level, order))
    return sorted_by(
        pa.concat_tables(tables), by, [(LEVEL, "ascending"), ("_row", "ascending"), ("_column", "ascending")]
    ).drop_columns(["_row", "_column"])


def _cells(table: pa.Table, by: Sequence[str], level: str, order: dict[str, int]) -> pa.Table:
    group, first = group_rows([table.column(name) for name in (*by, LABEL, PREDICTED)], table.num_rows)
    count = np.bincount(group, weights=table.column(COUNT).to_numpy(), minlength=len(first)).astype(np.int64)
    kept = table.take(pa.array(first))
    row, rows = group_rows([kept.column(name) for name in (*by, LABEL)], kept.num_rows)
    share = count / np.bincount(row, weights=count, minlength=len(rows))[row]
    places = {
        name: pa.array([order[tag] for tag in kept.column(side).to_pylist()], pa.int32())
        for name, side in (("_row", LABEL), ("_column", PREDICTED))
    }
    return pa.table(
        {name: kept.column(name) for name in by}
        | {LEVEL: pa.array([level] * len(count), pa.string()), LABEL: kept.column(LABEL)}
        | {PREDICTED: kept.column(PREDICTED), COUNT: pa.array(count), "share": pa.array(share)}
        | places
    )


def _equal(cells: pa.Table) -> np.ndarray:
    return np.array(cells.column(LABEL).to_pylist(), object) == np.array(cells.column(PREDICTED).to_pylist(), object)


def _renamed(cells: pa.Table, side: str, name: str) -> pa.Table:
    other = PREDICTED if side == LABEL else LABEL
    dropped = cells.drop_columns([other])
    return dropped.rename_columns([name if column == side else column for column in dropped.column_names])


def _matched(keys: list[pa.ChunkedArray], cells: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Sum of `count` over the cells with each key, [G] int64."""
    size = len(keys[0])
    both = [
        pa.chunked_array([*a.chunks, *cells.column(n).chunks], pa.string()) for a, n in zip(keys, names, strict=True)
    ]
    group, _ = group_rows(both, size + cells.num_rows)
    total = np.bincount(group[size:], weights=cells.column(COUNT).to_numpy(), minlength=int(group.max(initial=-1)) + 1)
    return total[group[:size]].astype(np.int64)


def confused(table: pa.Table, by: Sequence[str]) -> pa.Table:
    """Of `confusion`, tags that are taken for another, the most frequent first."""
    wrong = pc.and_(pc.equal(table.column(LEVEL), "tag"), pc.not_equal(table.column(LABEL), table.column(PREDICTED)))
    return table.filter(wrong).sort_by([*((name, "ascending") for name in by), (COUNT, "descending")])


TAGS = Table(
    name="tags",
    title="Tags, by mean loss",
    shown=(TAG, COUNT, MEAN, "precision", "recall", "f1"),
    partial=lambda part, settings: tags_partial(part.tokens),
    combine=lambda parts, settings: tags_combine(parts, settings.by),
    final=lambda partials, settings: tags_merge([partials["tags"]], settings.by),
)
CONFUSION = Table(
    name="confusion",
    title="Confusions",
    shown=(LABEL, PREDICTED, COUNT, "share"),
    final=lambda partials, settings: confusion_merge([partials["tags"]], settings.tags, settings.by, settings.scheme),
    view=confused,
)
