"""The words whose label is most likely wrong, the sentences, and the entities with what to change them to.

Tables (slice columns first in each), the most suspicious row first, the first `limit` of each slice:

`label_issues`: `output`, `example_id`, `source`, `source_row`, `window`, `token_index` (in the window), `word_index`
(in the row), `token`, `word`, `label`, `predicted`, `suggested_label` (the best tag other than the label), `score`
float64, `loss` float32, `why` (in words, what speaks against the label), `suggested_prob` float32, `other_places`,
`same_label`, `same_suggestion` int64 (labelled places of the same word beside this one, and how many of them have the
label, and the suggested one; null if the rank does not look at them), `issue_start`, `issue_words` int32 (word index at
which the entities begin that the word belongs to, and how many of their words have another label than the prediction).
Each labelled word has a score (`label_scores`); with a confident rank (`confident`) only the issues of that rule are
rows.

`sentence_issues`: `output`, `example_id`, `source`, `source_row`, `score` (of its worst word), `word_index`, `word`,
`label`, `suggested_label` (of that word), `suspicious` (words whose label is not the prediction), `num_labels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.ranks.label_scores import DEFAULT, RANKS, Ranking, issues_of_words
from tokloss_ray.mining.ranks.selection import ORDER, SCORE, candidates, highest
from tokloss_ray.mining.tables.grouping import top_rows
from tokloss_ray.mining.tables.reasons import PLACES, reasons
from tokloss_ray.mining.tables.table import Table
from tokloss_ray.mining.words.words import KEY, key_columns


def label_issues_partial(ranking: Ranking, limit: int = 10_000) -> pa.Table:
    """What `label_issues` needs of the words of a part: the first `limit` of each slice, unless the rank has a rule of
    its own."""
    return ranking.rank.selection.partial(
        ranking.words, ranking.score, limit, lambda at: _with_evidence(ranking, at, _rows(ranking, at))
    )


def label_issues_combine(
    parts: Sequence[pa.Table], by: Sequence[str] = (), rank: str = DEFAULT, limit: int = 10_000
) -> pa.Table:
    """Partials as one partial."""
    return RANKS[rank].selection.combine(parts, by, limit)


def label_issues_merge(
    parts: Sequence[pa.Table], by: Sequence[str] = (), rank: str = DEFAULT, limit: int = 10_000
) -> pa.Table:
    """The table `label_issues`."""
    table = RANKS[rank].selection.final(parts, by, limit)
    return table.add_column(table.column_names.index("loss") + 1, "why", reasons(table))


def _rows(ranking: Ranking, at: np.ndarray | pa.Array) -> pa.Table:
    """The words at some positions as rows of `label_issues`; all null where the position is."""
    words = ranking.words
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
        "suggested_label": pa.array(ranking.suggested, mask=ranking.suggested < 0),
        SCORE: pa.array(ranking.score),
        "loss": pa.array(words.loss, pa.float32()),
    }
    # Slices are known of every word.
    where = pa.array(words.sequence) if at.null_count else sequence
    columns = {name: values.take(where) for name, values in words.by.items()}
    columns = key_columns(words, sequence) | columns
    columns |= {name: _plain(values.take(at)) for name, values in of_word.items()}
    columns |= {name: tags.take(columns[name]) for name in ("label", "predicted", "suggested_label")}
    return pa.table({name: columns[name] for name in (*words.by, *columns)})


def _with_evidence(ranking: Ranking, at: np.ndarray | pa.Array, rows: pa.Table) -> pa.Table:
    """The rows of the words at some positions, with what their scores were made of."""
    at = at if isinstance(at, pa.Array) else pa.array(at)
    none = at.is_null().to_numpy(zero_copy_only=False)
    index = pc.fill_null(at, 0).to_numpy(zero_copy_only=False)
    words, suggested = ranking.words, ranking.suggested[index]
    first = suggested == words.predicted[index]
    prob = np.where(first, words.predicted_prob[index], words.second_prob[index])
    start, size = issues_of_words(words, ranking.tag_set, index)
    counts: tuple[pa.Array, ...] = (pa.nulls(len(at), pa.int64()),) * len(PLACES)
    if (known := ranking.places) is not None:
        suggestion = np.where(first, known.predicted[index], known.second[index])
        found = (known.others[index], known.label[index], suggestion)
        counts = tuple(pa.array(values, pa.int64(), mask=none) for values in found)
    columns = {
        "suggested_prob": pa.array(prob, pa.float32(), mask=none | (suggested < 0)),
        **dict(zip(PLACES, counts, strict=True)),
        "issue_start": pa.array(start, pa.int32(), mask=none),
        "issue_words": pa.array(size, pa.int32(), mask=none),
    }
    for name, values in columns.items():
        rows = rows.append_column(name, values)
    return rows


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values


def sentence_issues_partial(ranking: Ranking, limit: int = 10_000) -> pa.Table:
    """The first `limit` sentences of each slice; a sentence is as suspicious as its worst word."""
    words, score = ranking.words, ranking.score
    counts = np.diff(words.offsets)
    some = np.flatnonzero(counts)
    starts = words.offsets[some]
    most = np.maximum.reduceat(score, starts) if len(some) else np.zeros(0)
    # The first word of those that have the sentence's score.
    worst = np.flatnonzero(score == np.repeat(most, counts[some]))
    worst = worst[np.unique(words.sequence[worst], return_index=True)[1]]
    differ = np.append(0, np.cumsum(words.label != words.predicted))
    kept = candidates(most, words, limit, some)
    table = _rows(ranking, worst[kept])
    about = {
        "suspicious": pa.array((differ[words.offsets[some + 1]] - differ[starts])[kept], pa.int32()),
        "num_labels": pa.array(counts[some][kept], pa.int32()),
    }
    names = (*words.by, *KEY, SCORE, "word_index", "word", "label", "suggested_label")
    return top_rows(pa.table({name: table.column(name) for name in names} | about), list(words.by), ORDER, limit)


def sentence_issues_combine(parts: Sequence[pa.Table], by: Sequence[str] = (), limit: int = 10_000) -> pa.Table:
    """Partials as one partial."""
    return highest(parts, by, limit)


sentence_issues_merge = sentence_issues_combine


LABEL_ISSUES = Table(
    name="label_issues",
    title="Labels that are probably wrong",
    shown=("word", "label", "suggested_label", SCORE, "example_id", "why"),
    partial=lambda part, settings: label_issues_partial(part.ranking, settings.limit),
    combine=lambda parts, settings: label_issues_combine(parts, settings.by, settings.rank, settings.limit),
    of_rows=True,
    final=lambda partials, settings: label_issues_merge(
        [partials["label_issues"]], settings.by, settings.rank, settings.limit
    ),
)
SENTENCE_ISSUES = Table(
    name="sentence_issues",
    title="Sentences, by their worst label",
    shown=("example_id", SCORE, "suspicious", "num_labels", "word"),
    partial=lambda part, settings: sentence_issues_partial(part.ranking, settings.limit),
    combine=lambda parts, settings: sentence_issues_combine(parts, settings.by, settings.limit),
    of_rows=True,
    final=lambda partials, settings: sentence_issues_merge([partials["sentence_issues"]], settings.by, settings.limit),
)
