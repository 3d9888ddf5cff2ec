"""Tables by token string, by word, and of words that are labelled in different ways.

Schemas are in docs/mining.md. Each table is made in two steps: `X_partial(words)` and `X_merge(partials)`.
Partials that are combined in a tree (`combine`) make the same table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables.confusion import entity_types
from tokloss_ray.mining.tables.grouping import (
    COUNT,
    ERRORS,
    FIGURES,
    MAX,
    MEAN,
    STD,
    SUM,
    Order,
    combine_tallies,
    figures_of,
    group_rows,
    sorted_by,
    tally,
    top_rows,
)
from tokloss_ray.mining.tables.table import FromParts, Table
from tokloss_ray.mining.words.words import KEY, Words, key_columns
from tokloss_ray.ragged import offsets_of, one_array

TOKEN, WORD, LABEL, PREDICTED, TAG = "token", "word", "label", "predicted", "tag"
_GROUP = "group"
_EXAMPLE = (*KEY, "word_index")
_MOST_BITS: Order = [("bits", "descending"), (COUNT, "descending"), (WORD, "ascending")]


def tokens_partial(tokens: Words) -> pa.Table:
    """Losses by token string. tokens: all labelled tokens."""
    return tally(tokens, {TOKEN: _strings(tokens.token)})[0]


def tokens_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return combine_tallies(parts, [*by, TOKEN]) if len(parts) > 1 else parts[0]


def tokens_merge(parts: Sequence[pa.Table], by: Sequence[str] = (), min_count: int = 1) -> pa.Table:
    """token, count, mean, sum, max, std, errors; highest sum of loss first.

    min_count: leave out tokens that are labelled less often.
    """
    tallied = tokens_combine(parts, by)
    tallied = tallied.filter(pc.greater_equal(tallied.column(COUNT), min_count))
    table = pa.table(_keys(tallied, [*by, TOKEN]) | figures_of(tallied))
    return sorted_by(table, by, [(SUM, "descending"), (TOKEN, "ascending")])


def words_partial(words: Words) -> pa.Table:
    """Losses by word, label and prediction, each with the place of its highest loss: for words and inconsistent."""
    tags = pa.array(words.tags, pa.string())
    table, group = tally(
        words, {WORD: _strings(words.word), LABEL: (words.label, tags), PREDICTED: (words.predicted, tags)}
    )
    largest = table.column(MAX).to_numpy()
    at = np.flatnonzero(words.loss == largest[group])[::-1]
    place = np.zeros(table.num_rows, dtype=np.int64)
    place[group[at]] = at
    sequence = pa.array(words.sequence[place])
    example = key_columns(words, sequence) | {"word_index": pa.array(words.word_index[place], pa.int32())}
    return pa.table({name: table.column(name) for name in table.column_names} | example)


def words_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return combine_tallies(parts, [*by, WORD, LABEL, PREDICTED]) if len(parts) > 1 else parts[0]


def words_merge(parts: Sequence[pa.Table], by: Sequence[str] = (), min_count: int = 1) -> pa.Table:
    """word, count, mean, sum, max, std, errors, labelled, predicted; highest sum of loss first.

    `labelled` and `predicted` list how often the word is each tag, most frequent first.
    """
    pairs = words_combine(parts, by)
    whole = combine_tallies([pairs], [*by, WORD])
    lists = {name: _tag_counts(pairs, [*by, WORD], name) for name in (LABEL, PREDICTED)}
    table = pa.table(
        _keys(whole, [*by, WORD]) | figures_of(whole) | {"labelled": lists[LABEL], "predicted": lists[PREDICTED]}
    ).filter(pc.greater_equal(whole.column(COUNT), min_count))
    return sorted_by(table, by, [(SUM, "descending"), (WORD, "ascending")])


def inconsistent_merge(
    parts: Sequence[pa.Table],
    tags: Sequence[str],
    by: Sequence[str] = (),
    min_count: int = 1,
    limit: int = 10_000,
    scheme: str | None = None,
) -> pa.Table:
    """Words that are labelled with several entity types (O is one), from the partials of `words_partial`.

    word, count, majority (its most frequent type), minority (how often it has another), minority_share, entropy (of
    the types, in bits), bits (count times entropy: what it takes to write down which word has which type), labelled
    (each tag with its count and the place of its highest loss). Most bits first: frequent words without a clear
    majority. Tags that differ in their prefix alone (B-PER, I-PER) are no disagreement.

    tags: the model's.
    """
    pairs = words_combine(parts, by)
    pairs = pairs.filter(pc.is_valid(pairs.column(WORD)))  # null is any id without a string, and no word of its own
    pairs = combine_tallies([pairs.drop_columns([PREDICTED])], [*by, WORD, LABEL])
    group, first = group_rows([pairs.column(name) for name in (*by, WORD)], pairs.num_rows)
    labels = pc.dictionary_encode(one_array(pairs.column(LABEL)))
    type_of = entity_types(tags, scheme)
    types = [type_of[tag] for tag in labels.dictionary.to_pylist()]
    names = sorted(set(types))
    of_label = np.array([names.index(name) for name in types], dtype=np.int64)
    counts = np.zeros((len(first), max(len(names), 1)), dtype=np.int64)
    n = pairs.column(COUNT).to_numpy()
    np.add.at(counts, (group, of_label[labels.indices.to_numpy()] if len(labels) else group), n)
    total = counts.sum(axis=1)
    chosen = np.flatnonzero(((counts > 0).sum(axis=1) > 1) & (total >= min_count))
    counts, total = counts[chosen], total[chosen]
    best = counts.argmax(axis=1)
    minority = total - counts[np.arange(len(chosen)), best]
    share = counts / np.maximum(total, 1)[:, None]
    entropy = -(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=1)
    at = pa.array(first[chosen])
    table = pa.table(
        {name: pairs.column(name).take(at) for name in (*by, WORD)}
        | {
            COUNT: pa.array(total),
            "majority": pa.array(names, pa.string()).take(pa.array(best)),
            "minority": pa.array(minority),
            "minority_share": pa.array(minority / np.maximum(total, 1)),
            "entropy": pa.array(entropy),
            "bits": pa.array(entropy * total),
            "labelled": _tag_counts(pairs, [*by, WORD], LABEL, _EXAMPLE).take(pa.array(chosen)),
        }
    )
    return top_rows(table, by, _MOST_BITS, limit)


def _most_inconsistent(parts: Sequence[pa.Table], settings: MiningSettings) -> pa.Table:
    """Rows of `inconsistent` of several parts of the words as one table."""
    return top_rows(pa.concat_tables(parts), settings.by, _MOST_BITS, settings.limit)


def _strings(values: pa.DictionaryArray) -> tuple[np.ndarray, pa.Array]:
    """Codes and strings of a dictionary; null is a string of its own where it occurs."""
    if not values.null_count:
        return values.indices.to_numpy(), values.dictionary
    size = len(values.dictionary)
    codes = pc.fill_null(values.indices, size).to_numpy(zero_copy_only=False)
    return codes, pa.concat_arrays([values.dictionary, pa.nulls(1, pa.string())])


def _keys(table: pa.Table, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    return {name: table.column(name) for name in names}


def _tag_counts(pairs: pa.Table, keys: Sequence[str], tag: str, more: Sequence[str] = ()) -> pa.ListArray:
    """For each distinct key, in the order of `group_rows`, its tags and their counts, most frequent first."""
    group, first = group_rows([pairs.column(name) for name in keys], pairs.num_rows)
    numbered = pairs.select([tag, *FIGURES, *more]).append_column(_GROUP, pa.array(group))
    rows = combine_tallies([numbered], [_GROUP, tag])
    rows = rows.sort_by([(_GROUP, "ascending"), (COUNT, "descending"), (tag, "ascending")])
    counts = np.bincount(rows.column(_GROUP).to_numpy(), minlength=len(first))
    fields = {TAG: rows.column(tag), COUNT: rows.column(COUNT)} | {name: rows.column(name) for name in more}
    structs = pa.StructArray.from_arrays([one_array(column) for column in fields.values()], list(fields))
    return pa.ListArray.from_arrays(pa.array(offsets_of(counts), pa.int32()), structs)


TOKENS = Table(
    name="tokens",
    title="Tokens, by total loss",
    shown=(TOKEN, COUNT, MEAN, SUM, MAX, STD),
    partial=lambda part, settings: tokens_partial(part.tokens),
    combine=lambda parts, settings: tokens_combine(parts, settings.by),
    final=lambda partials, settings: tokens_merge([partials["tokens"]], settings.by, settings.min_count),
    key=TOKEN,
    from_parts=FromParts(
        of="tokens",
        portion=lambda part, settings: tokens_merge([part], settings.by, settings.min_count),
        order=((SUM, "descending"), (TOKEN, "ascending")),
    ),
)
WORDS = Table(
    name="words",
    title="Words, by total loss",
    shown=(WORD, COUNT, MEAN, SUM, ERRORS, "labelled"),
    partial=lambda part, settings: words_partial(part.words),
    combine=lambda parts, settings: words_combine(parts, settings.by),
    final=lambda partials, settings: words_merge([partials["words"]], settings.by, settings.min_count),
    key=WORD,
    from_parts=FromParts(
        of="words",
        portion=lambda part, settings: words_merge([part], settings.by, settings.min_count),
        order=((SUM, "descending"), (WORD, "ascending")),
    ),
)
INCONSISTENT = Table(
    name="inconsistent",
    title="Words labelled inconsistently",
    shown=(WORD, COUNT, "minority_share", "labelled"),
    final=lambda partials, settings: inconsistent_merge(
        [partials["words"]], settings.tags, settings.by, settings.min_count, settings.limit, settings.scheme
    ),
    from_parts=FromParts(
        of="words",
        portion=lambda part, settings: inconsistent_merge(
            [part], settings.tags, settings.by, settings.min_count, settings.limit, settings.scheme
        ),
        combine=_most_inconsistent,
        final=lambda rows, partials, settings: rows,
    ),
)
