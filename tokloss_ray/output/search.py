"""Finding sequences in an output: the worst, those with a token or a mistake, those of label issues, one by its id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.output.opened import ScoreFile, Scores, open_outputs
from tokloss_ray.output.score_files import read_batches
from tokloss_ray.output.windows import NO_WORD, at_row_ends, join_rows, unlabelled_words
from tokloss_ray.ragged import any_per_row, list_lengths, offsets_of, one_array
from tokloss_ray.schema import IGN
from tokloss_ray.threads import map_in_threads

_ROW = (schema.SOURCE, schema.SOURCE_ROW)
_KEY = (*_ROW, schema.WINDOW)
_SHOWN = [
    schema.EXAMPLE_ID,
    *_KEY,
    schema.INPUT_TOKENS,
    schema.WORD_IDS,
    schema.LABELS,
    schema.PREDICTED_LABEL,
    schema.PREDICTED_PROB,
    schema.LOSS,
    schema.TOTAL_LOSS,
    schema.MEAN_LOSS,
    schema.MAX_LOSS,
]
EXPECTED = "expected_errors"
"""Of the words without a label in a sequence: the sum of what the predicted tags' probabilities leave to others."""
_SCORES = {field.name: field for field in schema.SCORES_FIELDS}


def _joined(table: pa.Table) -> pa.Table:
    """Sequences of which windows are joined, and what is expected of their words without a label."""
    table = join_rows(table)
    word_ids = one_array(table.column(schema.WORD_IDS))
    lengths = list_lengths(word_ids)
    expected = np.zeros(table.num_rows)
    if not word_ids.null_count:
        ids = pc.fill_null(word_ids.flatten(), NO_WORD).to_numpy(zero_copy_only=False)
        labels = one_array(table.column(schema.LABELS)).flatten()
        labelled = pc.not_equal(labels, IGN).to_numpy(zero_copy_only=False)
        at = unlabelled_words(ids, labelled, lengths, np.ones(table.num_rows, dtype=bool))
        prob = one_array(table.column(schema.PREDICTED_PROB)).flatten().to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(table.num_rows), lengths)[at]
        expected = np.bincount(row, weights=1 - prob[at].astype(np.float64), minlength=table.num_rows)
    return table.append_column(EXPECTED, pa.array(expected, pa.float64()))


_NONE = _joined(pa.schema([_SCORES[name] for name in _SHOWN]).empty_table())


def open_scores(output: str) -> Scores:
    """An output to show sequences of; of an unfinished run, what is committed.

    Raises:
        Refused: not an output, or nothing is committed yet.
    """
    scores = open_outputs(output, partial=True)
    if not scores.files:
        state = "has no scored rows" if scores.finished else "has no committed shard yet"
        raise Refused(f"{output} {state}")
    return scores


def find_sequences(
    scores: Scores,
    count: int,
    rank: str = "total",
    token: str | None = None,
    label: str | None = None,
    predicted: str | None = None,
) -> tuple[pa.Table, int]:
    """The `count` worst sequences of those asked for, worst first; and how many there are in all.

    rank: by `total`, `mean` or `max` loss, or by `certainty`: most `EXPECTED` first. token: only with this token or
    word. label, predicted: only with a token of this label, or prediction, or both; with one of them alone, the other
    must be a different tag.

    Raises:
        JobFailed: a file is missing or damaged.
    """
    columns = [*_SHOWN, *([schema.WORDS] if token is not None else [])]

    def of_file(file: ScoreFile) -> tuple[pa.Table, int]:
        best, found = _NONE, 0
        for part in at_row_ends(read_batches(file, columns)):
            table = _joined(part)
            keep = np.ones(table.num_rows, dtype=bool)
            if token is not None:
                keep = _contains(table.column(schema.INPUT_TOKENS), token)
                keep |= _contains(table.column(schema.WORDS), token)
            if label is not None or predicted is not None:
                keep &= _has_pair(table, label, predicted)
            table = table.filter(pa.array(keep)).select(_NONE.column_names)
            found += table.num_rows
            best = _sorted(pa.concat_tables([best, table]), rank).slice(0, count)
        return best, found

    best, found = _NONE, 0
    for table, number in map_in_threads(of_file, scores.files):
        best = _sorted(pa.concat_tables([best, table]), rank).slice(0, count)
        found += number
    return best, found


Issues = dict[tuple[str, int, int], dict[int, str]]
"""Source, source_row and window of a sequence: token index and the tag that is suggested."""


def sequences_of_issues(scores: Scores, issues: pa.Table, count: int) -> tuple[pa.Table, Issues]:
    """The sequences of the first label issues, `count` of them in the order of the table, and their issues, by window.

    issues: of this output alone.
    """
    names = (*_KEY, "token_index", "suggested_label")
    rows = zip(*(issues.column(name).to_pylist() for name in names), strict=True)
    marks: Issues = {}
    chosen: dict[tuple[Any, ...], None] = {}
    for source, source_row, window, token_index, suggested in rows:
        one = (source, source_row, window)
        if one[:2] in chosen or len(chosen) < count:
            chosen.setdefault(one[:2])
            marks.setdefault(one, {})[token_index] = suggested
    numbers = pa.array(list({row for _, row in chosen}), pa.int64())

    def is_one(table: pa.Table) -> np.ndarray:
        likely = pc.is_in(table.column(schema.SOURCE_ROW), numbers).to_numpy()
        keys = zip(*(table.filter(pa.array(likely)).column(name).to_pylist() for name in _ROW), strict=True)
        likely[likely] = [key in chosen for key in keys]
        return likely

    table = _rows_where(scores, _ROW, is_one)
    place: dict[tuple[Any, ...], list[int]] = {}
    for i, key in enumerate(zip(*(table.column(name).to_pylist() for name in _ROW), strict=True)):
        place.setdefault(key, []).append(i)
    return table.take(pa.array([i for key in chosen for i in place.get(key, ())], pa.int64())), marks


Notes = dict[tuple[str, int, int], list[str]]
"""Source, source_row and window of a sequence: what is to be said of its issues."""


def notes_of_issues(issues: pa.Table, marks: Issues) -> Notes:
    """What speaks against each marked label, and how often the word has the same label and suggestion among all issues.

    issues: the rows of `label_issues`, `marks` some of them. Tables of an earlier version do not say why: no notes.
    """
    if "why" not in issues.column_names:
        return {}
    group = ("word", "label", "suggested_label")
    differ = issues.filter(pc.not_equal(issues.column("label"), issues.column("predicted")))
    counts = differ.select(group).group_by(list(group)).aggregate([([], "count_all")]).to_pylist()
    times = {tuple(row[name] for name in group): row["count_all"] for row in counts}
    rows = issues.filter(pc.is_in(issues.column(schema.SOURCE_ROW), pa.array({key[1] for key in marks}, pa.int64())))
    notes: Notes = {}
    for row in rows.sort_by("token_index").to_pylist():
        key = (row[schema.SOURCE], row[schema.SOURCE_ROW], row[schema.WINDOW])
        if key in marks and row["why"] is not None:
            number = times.get(tuple(row[name] for name in group), 0)
            again = f" ({number:,} such issues)" if number > 1 else ""
            notes.setdefault(key, []).append(f"{row['word'] or '?'}: {row['why']}{again}")
    return notes


def sequences_by_id(scores: Scores, example_id: str) -> pa.Table:
    """The sequences with an id, or the windows they became, in order."""
    found = _rows_where(
        scores, [schema.EXAMPLE_ID], lambda table: pc.equal(table.column(schema.EXAMPLE_ID), example_id).to_numpy()
    )
    return found.sort_by([(name, "ascending") for name in _KEY])


def _rows_where(scores: Scores, columns: Sequence[str], chosen: Callable[[pa.Table], np.ndarray]) -> pa.Table:
    """The rows that `chosen` picks by a few columns; of files without any, no others are read.

    chosen: [rows] bool of a table with `columns`.
    """

    def of_file(file: ScoreFile) -> pa.Table:
        keep = [chosen(table) for table in read_batches(file, columns, narrow=True)]
        if not any(rows.any() for rows in keep):
            return _NONE
        tables = zip(read_batches(file, _SHOWN), keep, strict=True)
        return _joined(pa.concat_tables([table.filter(pa.array(rows)) for table, rows in tables]))

    return pa.concat_tables(map_in_threads(of_file, scores.files))


def _sorted(table: pa.Table, rank: str) -> pa.Table:
    by = {"total": schema.TOTAL_LOSS, "mean": schema.MEAN_LOSS, "max": schema.MAX_LOSS, "certainty": EXPECTED}[rank]
    ties = [(name, "ascending") for name in (schema.EXAMPLE_ID, *_KEY)]
    return table.sort_by([(by, "descending"), *ties])


def _has_pair(table: pa.Table, label: str | None, predicted: str | None) -> np.ndarray:
    """[rows] bool: whether a labelled token has this label and this prediction."""
    labels, predictions = (one_array(table.column(name)) for name in (schema.LABELS, schema.PREDICTED_LABEL))
    flat, guessed = labels.flatten(), predictions.flatten()
    hits = pc.not_equal(flat, guessed) if label is None or predicted is None else pc.not_equal(flat, IGN)
    for values, wanted in ((flat, label), (guessed, predicted)):
        if wanted is not None:
            hits = pc.and_(hits, pc.equal(values, wanted))
    hits = pc.and_(hits, pc.not_equal(flat, IGN)).to_numpy(zero_copy_only=False)
    return any_per_row(hits, offsets_of(list_lengths(labels)))


def _contains(column: pa.ChunkedArray, text: str) -> np.ndarray:
    """[rows] bool: whether the string is in the list."""
    array = one_array(column)
    hits = pc.fill_null(pc.equal(array.flatten(), text), False).to_numpy(zero_copy_only=False)
    result = np.zeros(len(array), dtype=bool)
    result[np.repeat(np.arange(len(array)), list_lengths(array))[hits]] = True
    return result
