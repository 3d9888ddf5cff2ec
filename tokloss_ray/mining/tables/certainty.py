"""How sure the model is, which needs no labels; and where it is least sure among the words that have none.

Schemas are in docs/mining.md. Of a word with probability p of its predicted tag, 1 - p is the chance that the
prediction is wrong, as far as the model knows. So the sum over some words, `expected_errors`, is how many of them are
expected to be wrong, and what labelling them would tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.ranks.selection import candidates
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables.grouping import (
    COUNT,
    ERRORS,
    SUM,
    Order,
    group_rows,
    sorted_by,
    sum_counts,
    tally,
    top_rows,
)
from tokloss_ray.mining.tables.table import FromParts, Table
from tokloss_ray.mining.tables.tokens import PREDICTED, TAG, WORD
from tokloss_ray.mining.words.words import KEY, Words, key_columns
from tokloss_ray.ragged import list_array, offsets_of, one_array, positions

LABELLED, EXPECTED, ENTROPY = "labelled", "expected_errors", "entropy"
MEAN_PROB, MEAN_ENTROPY = "mean_prob", "mean_entropy"
_SUMS = (COUNT, EXPECTED, ENTROPY)
_PLACE = (*KEY, "word_index")
_SURE_LAST: Order = [("predicted_prob", "ascending"), *((name, "ascending") for name in _PLACE)]
_MOST_EXPECTED: Order = [(EXPECTED, "descending"), *((name, "ascending") for name in KEY)]


def doubt(words: Words) -> np.ndarray:
    """[N] float64, from 0 to 1: what the predicted tag's probability leaves to the others."""
    return np.maximum(1 - words.predicted_prob.astype(np.float64), 0)


def certainty_partial(words: Words) -> pa.Table:
    """Sums by predicted tag, of labelled words and of others. words: all of them."""
    has_label = (words.label >= 0).astype(np.int64)
    keys = {
        LABELLED: (has_label, pa.array([False, True])),
        PREDICTED: (words.predicted, pa.array(words.tags, pa.string())),
    }
    return _sums(words, keys)


def certainty_merge(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """labelled, predicted, count, errors (of labelled words), expected_errors, mean_prob, mean_entropy; words without a
    label first, then most expected errors first."""
    sums = sum_counts(parts, [*by, LABELLED, PREDICTED], (ERRORS, *_SUMS))
    errors = pc.if_else(sums.column(LABELLED), sums.column(ERRORS), pa.scalar(None, pa.int64()))
    names = [*by, LABELLED, PREDICTED, COUNT]
    table = pa.table({name: sums.column(name) for name in names} | {ERRORS: errors} | _means(sums))
    return sorted_by(table, by, [(LABELLED, "ascending"), (EXPECTED, "descending"), (PREDICTED, "ascending")])


def uncertain_words_partial(words: Words) -> pa.Table:
    """Sums by word and predicted tag. words: those without a label."""
    strings = words.word
    return _sums(words, {WORD: (strings.indices.to_numpy(), strings.dictionary), PREDICTED: _tags(words)})


def uncertain_words_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return sum_counts(parts, [*by, WORD, PREDICTED], _SUMS)


def uncertain_words_merge(parts: Sequence[pa.Table], by: Sequence[str] = (), min_count: int = 1) -> pa.Table:
    """word, count, expected_errors, mean_prob, mean_entropy, predicted (how often it is predicted as each tag, most
    frequent first); most expected errors first."""
    pairs = uncertain_words_combine(parts, by)
    pairs = sorted_by(pairs, [*by, WORD], [(COUNT, "descending"), (PREDICTED, "ascending")])
    whole = sum_counts([pairs], [*by, WORD], _SUMS)
    _, first = group_rows([pairs.column(name) for name in (*by, WORD)], pairs.num_rows)
    offsets = np.append(np.sort(first), pairs.num_rows)
    fields = {TAG: pairs.column(PREDICTED), COUNT: pairs.column(COUNT)}
    tags = pa.StructArray.from_arrays([one_array(column) for column in fields.values()], list(fields))
    names = {name: whole.column(name) for name in (*by, WORD, COUNT)}
    table = pa.table(names | _means(whole) | {PREDICTED: list_array(tags, offsets)})
    return sorted_by(
        table.filter(pc.greater_equal(table.column(COUNT), min_count)),
        by,
        [(EXPECTED, "descending"), (WORD, "ascending")],
    )


def uncertain_places_partial(words: Words, limit: int = 10_000) -> pa.Table:
    """The words of which the model is least sure, the first `limit` of each slice. words: those without a label."""
    at = candidates(doubt(words), words, limit)
    chosen, sequence = pa.array(at), words.sequence[at]
    tags = pa.array(words.tags, pa.string())
    second = pa.array(words.second[at], mask=words.second[at] < 0)
    table = pa.table(
        {name: values.take(pa.array(sequence)) for name, values in words.by.items()}
        | key_columns(words, sequence)
        | {
            "window": pa.array(words.window[at], pa.int32()),
            "token_index": pa.array(words.token_index[at], pa.int32()),
            "word_index": pa.array(words.word_index[at], pa.int32()),
            "token": words.token.take(chosen).cast(pa.string()),
            WORD: words.word.take(chosen).cast(pa.string()),
            PREDICTED: tags.take(pa.array(words.predicted[at])),
            "predicted_prob": pa.array(words.predicted_prob[at], pa.float32()),
            "second_label": tags.take(second),
            "second_prob": pa.array(words.second_prob[at], pa.float32(), mask=words.second[at] < 0),
            ENTROPY: _entropies(words, at),
        }
    )
    return top_rows(table, list(words.by), _SURE_LAST, limit)


def uncertain_sequences_partial(words: Words, limit: int = 10_000) -> pa.Table:
    """The sequences with the most expected errors, the first `limit` of each slice. words: those without a label."""
    counts = np.diff(words.offsets)
    some = np.flatnonzero(counts)  # reduceat needs a word in each
    starts = words.offsets[some]
    expected = np.add.reduceat(doubt(words), starts) if len(some) else np.zeros(0)
    entropy = np.zeros(len(some))
    if words.entropy is not None and len(some):
        entropy = np.add.reduceat(words.entropy.astype(np.float64), starts)
    least = np.minimum.reduceat(words.predicted_prob, starts) if len(some) else np.zeros(0, np.float32)
    kept = candidates(expected, words, limit, some)
    sequence, n = some[kept], counts[some[kept]]
    at = positions(words.offsets[sequence], n)
    flat = {
        "words": words.word.take(pa.array(at)).cast(pa.string()),
        PREDICTED: pa.array(words.tags, pa.string()).take(pa.array(words.predicted[at])),
        "probs": pa.array(words.predicted_prob[at], pa.float32()),
    }
    table = pa.table(
        {name: values.take(pa.array(sequence)) for name, values in words.by.items()}
        | key_columns(words, sequence)
        | {
            "num_words": pa.array(n, pa.int32()),
            EXPECTED: pa.array(expected[kept]),
            MEAN_PROB: pa.array(1 - expected[kept] / n),
            "min_prob": pa.array(least[kept], pa.float32()),
            MEAN_ENTROPY: pa.array(entropy[kept] / n, mask=np.full(len(kept), words.entropy is None)),
        }
        | {name: list_array(values, offsets_of(n)) for name, values in flat.items()}
    )
    return top_rows(table, list(words.by), _MOST_EXPECTED, limit)


def labelled_and_not(tables: Mapping[str, pa.Table]) -> tuple[int, int]:
    """How many words have a label, and how many have none, in the tables of a run of mining."""
    table = tables[CERTAINTY.name]
    sums = {
        flag: pc.sum(table.filter(pc.equal(table.column(LABELLED), flag)).column(COUNT)).as_py()
        for flag in (True, False)
    }
    return sums[True] or 0, sums[False] or 0


def _sums(words: Words, keys: dict[str, tuple[np.ndarray, pa.Array]]) -> pa.Table:
    """The keys, then count, errors, expected_errors and entropy, summed up."""
    table, group = tally(replace(words, loss=doubt(words)), keys)
    weights = np.full(len(words), np.nan) if words.entropy is None else words.entropy.astype(np.float64)
    entropy = np.bincount(group, weights=weights, minlength=table.num_rows).astype(np.float64)
    names = [name for name in table.column_names if name in (*words.by, *keys)]
    columns = {name: table.column(name) for name in (*names, COUNT, ERRORS)}
    return pa.table(columns | {EXPECTED: table.column(SUM), ENTROPY: pa.array(entropy)})


def _means(sums: pa.Table) -> dict[str, pa.Array]:
    """expected_errors, mean_prob and mean_entropy; the last is null where entropies were not kept."""
    n, expected, entropy = (sums.column(name).to_numpy() for name in _SUMS)
    return {
        EXPECTED: pa.array(expected, pa.float64()),
        MEAN_PROB: pa.array(1 - expected / np.maximum(n, 1), pa.float64()),
        MEAN_ENTROPY: pa.array(entropy / np.maximum(n, 1), pa.float64(), mask=np.isnan(entropy)),
    }


def _entropies(words: Words, at: np.ndarray) -> pa.Array:
    return pa.nulls(len(at), pa.float32()) if words.entropy is None else pa.array(words.entropy[at], pa.float32())


def _tags(words: Words) -> tuple[np.ndarray, pa.Array]:
    return words.predicted, pa.array(words.tags, pa.string())


def _places(parts: Sequence[pa.Table], settings: MiningSettings) -> pa.Table:
    return top_rows(pa.concat_tables(parts), settings.by, _SURE_LAST, settings.limit)


def _sequences(parts: Sequence[pa.Table], settings: MiningSettings) -> pa.Table:
    return top_rows(pa.concat_tables(parts), settings.by, _MOST_EXPECTED, settings.limit)


CERTAINTY = Table(
    name="certainty",
    title="How sure the model is, by predicted tag",
    shown=(PREDICTED, LABELLED, COUNT, MEAN_PROB, EXPECTED, ERRORS, MEAN_ENTROPY),
    partial=lambda part, settings: certainty_partial(part.every),
    combine=lambda parts, settings: sum_counts(parts, [*settings.by, LABELLED, PREDICTED], (ERRORS, *_SUMS)),
    final=lambda partials, settings: certainty_merge([partials["certainty"]], settings.by),
    of="all",
)
UNCERTAIN_WORDS = Table(
    name="uncertain_words",
    title="Words without a label, by expected errors",
    shown=(WORD, COUNT, EXPECTED, MEAN_PROB, MEAN_ENTROPY, PREDICTED),
    partial=lambda part, settings: uncertain_words_partial(part.unlabelled),
    combine=lambda parts, settings: uncertain_words_combine(parts, settings.by),
    final=lambda partials, settings: uncertain_words_merge(
        [partials["uncertain_words"]], settings.by, settings.min_count
    ),
    key=WORD,
    from_parts=FromParts(
        of="uncertain_words",
        portion=lambda part, settings: uncertain_words_merge([part], settings.by, settings.min_count),
        order=((EXPECTED, "descending"), (WORD, "ascending")),
    ),
    of="unlabelled",
)
UNCERTAIN_PLACES = Table(
    name="uncertain_places",
    title="Words without a label of which the model is least sure",
    shown=(WORD, PREDICTED, "predicted_prob", "second_label", "second_prob", "example_id"),
    partial=lambda part, settings: uncertain_places_partial(part.unlabelled, settings.limit),
    combine=_places,
    of_rows=True,
    final=lambda partials, settings: _places([partials["uncertain_places"]], settings),
    of="unlabelled",
)
UNCERTAIN_SEQUENCES = Table(
    name="uncertain_sequences",
    title="Sequences with words without a label, by expected errors",
    shown=("example_id", EXPECTED, MEAN_PROB, "num_words", "words"),
    partial=lambda part, settings: uncertain_sequences_partial(part.unlabelled, settings.limit),
    combine=_sequences,
    of_rows=True,
    final=lambda partials, settings: _sequences([partials["uncertain_sequences"]], settings),
    of="unlabelled",
)
