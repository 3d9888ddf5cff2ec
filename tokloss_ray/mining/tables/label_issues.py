"""The words whose label is most likely wrong, the sentences, and the entities with what to change them to.

Tables (slice columns first in each), the most suspicious row first, the first `limit` of each slice:

`label_issues`: `output`, `example_id`, `source`, `source_row`, `window`, `token_index` (in the window), `word_index`
(in the row), `token`, `word`, `label`, `predicted`, `suggested_label` (the best tag other than the label), `score`
float64, `loss` float32. Each labelled word has a score (`label_scores`); with a confident rank only the issues of that
rule are rows.

`sentence_issues`: `output`, `example_id`, `source`, `source_row`, `score` (of its worst word), `word_index`, `word`,
`label`, `suggested_label` (of that word), `suspicious` (words whose label is not the prediction), `num_labels`.

Confident ranks are a matter of all words together. Their partials therefore hold the label and the probabilities of
every word, 4 bytes per word and tag, and memory grows with the corpus (280 MB for 10 million words of 7 tags). With
`probs` the issues are exactly those of cleanlab; without, from the probabilities of the label and of the two best tags,
the others taken for 0. They are found over all words, slices or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.ranks import confident
from tokloss_ray.mining.ranks.label_scores import (
    CONFIDENT_JOINT,
    CONFIDENT_LEARNING,
    PRIOR_ADJUSTED,
    check_rank,
    label_scores,
)
from tokloss_ray.mining.tables.grouping import Order, slices, top_rows
from tokloss_ray.mining.words.words import KEY, Words, key_columns
from tokloss_ray.ragged import one_array

SCORE = "score"
_RULES = {CONFIDENT_JOINT: confident.NOISE_RATE, CONFIDENT_LEARNING: confident.OFF_DIAGONAL}
_CODE, _PROBS = "label_code", "probs"
_TIES = (*KEY, "word_index")
_ORDER: Order = [(SCORE, "descending"), *((name, "ascending") for name in _TIES)]


def label_issues_partial(
    words: Words,
    labels: Mapping[str, int] | None = None,
    rank: str = PRIOR_ADJUSTED,
    limit: int = 10_000,
    scheme: str | None = None,
    scored: tuple[np.ndarray, np.ndarray] | None = None,
) -> pa.Table:
    """The first `limit` words of each slice; of a confident rank all words.

    labels: labelled words of the whole corpus by tag, the same for all parts; without it those of `words`, which is
    right for a single part. scored: what `label_scores` returns, where it is at hand.

    Raises:
        Refused: no such rank, or it needs probabilities that were not kept.
    """
    check_rank(rank, words.probs is not None)
    score, suggested = scored or label_scores(words, labels, rank, scheme)
    if rank not in _RULES:
        at = candidates(score, words, limit)
        return top_rows(_rows(words, at, score, suggested), list(words.by), _ORDER, limit)
    # A word whose label is the prediction is no issue: of these nothing but the probabilities is needed.
    none = words.label == words.predicted
    table = _rows(words, pa.array(np.arange(len(words)), mask=none), score, suggested)
    probs = pa.FixedSizeListArray.from_arrays(pa.array(_all_probs(words).ravel()), len(words.tags))
    return table.append_column(_CODE, pa.array(words.label, pa.int32())).append_column(_PROBS, probs)


def label_issues_combine(
    parts: Sequence[pa.Table], by: Sequence[str] = (), rank: str = PRIOR_ADJUSTED, limit: int = 10_000
) -> pa.Table:
    """Partials as one partial."""
    table = pa.concat_tables(parts)
    return table if rank in _RULES else top_rows(table, by, _ORDER, limit)


def label_issues_merge(
    parts: Sequence[pa.Table], by: Sequence[str] = (), rank: str = PRIOR_ADJUSTED, limit: int = 10_000
) -> pa.Table:
    """The table `label_issues`."""
    table = pa.concat_tables(parts)
    if rank in _RULES:
        size = table.schema.field(_PROBS).type.list_size
        probs = one_array(table.column(_PROBS)).flatten().to_numpy().reshape(-1, size)
        found = confident.issues(table.column(_CODE).to_numpy(), probs, _RULES[rank])
        table = table.drop_columns([_CODE, _PROBS]).take(pa.array(np.flatnonzero(found)))
    return top_rows(table, by, _ORDER, limit)


def candidates(score: np.ndarray, words: Words, limit: int, sequence: np.ndarray | None = None) -> np.ndarray:
    """Positions of the rows that may be among the first `limit` of their slice by score; more where scores are equal.

    sequence: of each row; by default, of each word.
    """
    if len(score) <= limit:
        return np.arange(len(score))
    if not words.by:
        return np.flatnonzero(score >= -np.partition(-score, limit - 1)[limit - 1])
    of_sequence, _ = slices(words)
    part = of_sequence[words.sequence if sequence is None else sequence]
    order = np.lexsort((-score, part))
    begin = np.flatnonzero(np.diff(part[order], prepend=-1))
    size = np.diff(np.append(begin, len(order)))
    least = np.full(part.max() + 1, -np.inf)
    large = size >= limit
    least[part[order[begin[large]]]] = score[order[begin[large] + limit - 1]]
    return np.flatnonzero(score >= least[part])


def _rows(words: Words, at: np.ndarray | pa.Array, score: np.ndarray, suggested: np.ndarray) -> pa.Table:
    """The words at some positions as rows of `label_issues`; all null where the position is."""
    at = at if isinstance(at, pa.Array) else pa.array(at)
    tags, sequence = pa.array(words.tags, pa.string()), pa.array(words.sequence).take(at)
    of_word = {
        "window": pa.array(words.window),
        "token_index": pa.array(words.token_index),
        "word_index": pa.array(words.word_index),
        "token": words.token,
        "word": words.word,
        "label": pa.array(words.label),
        "predicted": pa.array(words.predicted),
        "suggested_label": pa.array(suggested, mask=suggested < 0),
        SCORE: pa.array(score),
        "loss": pa.array(words.loss, pa.float32()),
    }
    # Slices are known of every word.
    where = pa.array(words.sequence) if at.null_count else sequence
    columns = {name: values.take(where) for name, values in words.by.items()}
    columns = key_columns(words, sequence) | columns
    columns |= {name: _plain(values.take(at)) for name, values in of_word.items()}
    columns |= {name: tags.take(columns[name]) for name in ("label", "predicted", "suggested_label")}
    return pa.table({name: columns[name] for name in (*words.by, *columns)})


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values


def _all_probs(words: Words) -> np.ndarray:
    """[N, C] float32: the probabilities of all tags, or those that are known, without `--keep-probs`."""
    if words.probs is not None:
        return words.probs
    probs = np.zeros((len(words), len(words.tags)), dtype=np.float32)
    row = np.arange(len(words))
    has = words.second >= 0
    probs[row[has], words.second[has]] = words.second_prob[has]
    probs[row, words.label] = np.exp(-words.loss)
    probs[row, words.predicted] = words.predicted_prob
    return probs


def sentence_issues_partial(
    words: Words,
    labels: Mapping[str, int] | None = None,
    rank: str = PRIOR_ADJUSTED,
    limit: int = 10_000,
    scheme: str | None = None,
    scored: tuple[np.ndarray, np.ndarray] | None = None,
) -> pa.Table:
    """The first `limit` sentences of each slice; a sentence is as suspicious as its worst word. Arguments as above."""
    check_rank(rank, words.probs is not None)
    score, suggested = scored or label_scores(words, labels, rank, scheme)
    counts = np.diff(words.offsets)
    some = np.flatnonzero(counts)
    starts = words.offsets[some]
    most = np.maximum.reduceat(score, starts) if len(some) else np.zeros(0)
    # The first word of those that have the sentence's score.
    worst = np.flatnonzero(score == np.repeat(most, counts[some]))
    worst = worst[np.unique(words.sequence[worst], return_index=True)[1]]
    differ = np.append(0, np.cumsum(words.label != words.predicted))
    kept = candidates(most, words, limit, some)
    table = _rows(words, worst[kept], score, suggested)
    about = {
        "suspicious": pa.array((differ[words.offsets[some + 1]] - differ[starts])[kept], pa.int32()),
        "num_labels": pa.array(counts[some][kept], pa.int32()),
    }
    names = (*words.by, *KEY, SCORE, "word_index", "word", "label", "suggested_label")
    return top_rows(pa.table({name: table.column(name) for name in names} | about), list(words.by), _ORDER, limit)


def sentence_issues_combine(parts: Sequence[pa.Table], by: Sequence[str] = (), limit: int = 10_000) -> pa.Table:
    """Partials as one partial."""
    return top_rows(pa.concat_tables(parts), by, _ORDER, limit)


sentence_issues_merge = sentence_issues_combine
