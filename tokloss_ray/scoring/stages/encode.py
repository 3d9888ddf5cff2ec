"""Words and tags to token ids and labels, and long sequences to windows.

Only the `tokenizers` library is needed here: importing torch or transformers would cost every worker seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array, positions, sum_per_row
from tokloss_ray.schema import ERRORS_SCHEMA, IGNORE_INDEX
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.context import documents_of, surround
from tokloss_ray.scoring.stages.row_tokenizer import NO_WORD, RowTokenizer, Tokens
from tokloss_ray.scoring.stages.windows import window_owners, window_starts

WORDS_IN_EVERY_WINDOW = 4096
"""Each window repeats the words of its row, so that a row of scores/ can be read alone; but the windows of a row of a
million words would hold billions, so that from here on only the first window has them."""


def encode_rows(
    job: Job, tokenizer: RowTokenizer, sources: Sequence[str], rows: pa.Table, chosen: slice = slice(None)
) -> tuple[pa.Table, pa.Table]:
    """Sequences (one per row, or one per window of a long row) and the rows that cannot become any.

    sources: the files of the unit, which the column file_part counts. The sequences have example_id, file_part,
    source_row, window, words, word_ids, input_ids, label_ids, num_dropped_words and the carried columns; with context
    also which of its tokens are its own.

    chosen: the rows to encode; the others are neighbours of theirs, for the context.
    """
    begin, end, _ = chosen.indices(rows.num_rows)
    if schema.WORDS in rows.column_names:
        ids, words_of_tokens, lengths = _tokenize(tokenizer, rows)
        labels, dropped = _align(job, rows, words_of_tokens, lengths)
    else:
        column = one_array(rows.column(schema.INPUT_IDS))
        ids, lengths = column.flatten().to_numpy(), list_lengths(column)
        labels = one_array(rows.column(schema.LABEL_IDS)).flatten().to_numpy()
        words_of_tokens, dropped = None, np.zeros(rows.num_rows, dtype=np.int64)
    starts = offsets_of(lengths)[:-1]
    too_long = lengths > job.max_length
    bad = (lengths == 0) | (too_long & (job.overflow == "reject"))
    pieces: list[_Piece] = []
    documents = None if job.context is None else documents_of(rows)
    whole_from = begin

    def whole(stop: int) -> None:
        pieces.append(_whole(rows, whole_from, stop, starts, lengths, dropped, words_of_tokens is not None))
        if job.context is not None:
            assert words_of_tokens is not None  # the plan refuses token ids
            assert documents is not None
            at_rows = slice(whole_from, stop)
            found = surround(job.context, documents, words_of_tokens, lengths, at_rows, job.max_length)
            pieces[-1] = (pieces[-1][0], found.at, found.lengths, ~found.own)
            own.append(found.own)

    own: list[np.ndarray] = []
    for row in (begin + np.flatnonzero((too_long | bad)[chosen])).tolist():
        whole(row)
        if not bad[row]:
            span = slice(starts[row], starts[row] + lengths[row])
            row_words = None if words_of_tokens is None else words_of_tokens[span]
            edges = _word_edges(row_words) if row_words is not None else _id_edges(tokenizer, ids[span], labels[span])
            pieces.append(_windows(job, rows, row, starts[row], labels[span], row_words, *edges))
            own.append(np.ones(len(pieces[-1][1]), dtype=bool))
        whole_from = row + 1
    whole(end)
    sequences = _assemble(job, rows, pieces, ids, labels, words_of_tokens)
    if job.context is not None:
        offsets = offsets_of(np.concatenate([piece[2] for piece in pieces]))
        sequences = sequences.append_column(schema.OWN, list_array(np.concatenate(own), offsets))
    return sequences, _encode_errors(job, sources, rows, begin + np.flatnonzero(bad[chosen]), lengths)


def _tokenize(tokenizer: RowTokenizer, rows: pa.Table) -> Tokens:
    try:
        return tokenizer(one_array(rows.column(schema.WORDS)))
    except Exception as error:  # the tokenizers library raises no type of its own
        ids = rows.column(schema.EXAMPLE_ID)
        raise JobFailed(f"the tokenizer fails on one of the rows {ids[0]} to {ids[-1]}: {error}") from error


def _align(job: Job, rows: pa.Table, word_of_token: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label id of each token, and per row the words that have no token.

    The first token of a word carries the word's label (all of them with `label_all_subtokens`), as in token
    classification with Hugging Face transformers; every other position is ignored.
    """
    column = one_array(rows.column(schema.LABEL_IDS))
    word_labels, word_starts = column.flatten().to_numpy(), offsets_of(list_lengths(column))
    starts = offsets_of(lengths)
    first = word_of_token != NO_WORD
    same = word_of_token[1:] == word_of_token[:-1]
    inside = np.ones(len(same), dtype=bool)
    inside[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < len(word_of_token))] - 1] = False
    first[1:] &= ~(same & inside)
    dropped = np.diff(word_starts) - sum_per_row(first, starts)
    carries = word_of_token != NO_WORD if job.label_all_subtokens else first
    labels = np.full(len(word_of_token), IGNORE_INDEX, dtype=np.int32)
    labels[carries] = word_labels[(np.repeat(word_starts[:-1], lengths) + word_of_token)[carries]]
    return labels, dropped


def _word_edges(words: np.ndarray) -> tuple[int, int]:
    """How many special tokens stand before and after the words of a row; all of them before if there is no word."""
    at = np.flatnonzero(words != NO_WORD)
    return (int(at[0]), len(words) - 1 - int(at[-1])) if len(at) else (len(words), 0)


def _id_edges(tokenizer: RowTokenizer, ids: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """The same for a pre-encoded row: does it begin and end as the tokenizer's own sequences do?"""
    n, m = len(tokenizer.head), len(tokenizer.tail)
    tail = len(ids) - m
    special = (
        tail > n
        and np.array_equal(ids[:n], tokenizer.head)
        and np.array_equal(ids[tail:], tokenizer.tail)
        and (labels[:n] == IGNORE_INDEX).all()
        and (labels[tail:] == IGNORE_INDEX).all()
    )
    return (n, m) if special else (0, 0)


# A piece is a run of sequences: row, window, words to keep (-1: null) and dropped words, each [n]; the flat positions
# of their tokens; tokens per sequence; and which of these tokens have their label in another window.
_Piece = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]


def _whole(
    rows: pa.Table, start: int, stop: int, starts: np.ndarray, lengths: np.ndarray, dropped: np.ndarray, words: bool
) -> _Piece:
    """Rows that fit: one sequence each."""
    row = np.arange(start, stop)
    zero = np.zeros(len(row), dtype=np.int64)
    count = list_lengths(one_array(rows.column(schema.WORDS)))[start:stop] if words else zero
    about = {"row": row, "window": zero, "words": count, "dropped": dropped[start:stop]}
    total = int(lengths[start:stop].sum())
    begin = int(starts[start]) if start < len(starts) else 0
    return about, np.arange(begin, begin + total), lengths[start:stop], np.zeros(total, dtype=bool)


def _windows(
    job: Job,
    rows: pa.Table,
    row: int,
    start: int,
    labels: np.ndarray,
    words: np.ndarray | None,
    head: int,
    tail: int,
) -> _Piece:
    """The windows of one long row, or its beginning alone where overflow is truncated."""
    n = len(labels) - head - tail
    capacity = job.max_length - head - tail
    if capacity <= job.overlap and job.overflow == "window":
        raise ValueError("windows do not advance: the plan refuses such an overlap")
    begins = [0] if job.overflow == "truncate" else window_starts(n, capacity, job.overlap)
    body_words = None if words is None else words[head : head + n]
    owner = window_owners(np.arange(n) if body_words is None else body_words, begins, capacity, n)
    all_words = len(rows.column(schema.WORDS)[row]) if words is not None else 0
    at, lengths, hidden = [], [], []
    about: dict[str, list[int]] = {"row": [], "window": [], "words": [], "dropped": []}
    for k, a in enumerate(begins):
        b = min(a + capacity, n)
        body = np.arange(start + head + a, start + head + b)
        edges = np.arange(start, start + head), np.arange(start + head + n, start + head + n + tail)
        at.append(np.concatenate([edges[0], body, edges[1]]))
        hidden.append(np.concatenate([np.zeros(head, bool), owner[a:b] != k, np.zeros(tail, bool)]))
        lengths.append(len(at[-1]))
        lost = 0
        if body_words is not None:
            # Words without tokens are counted in the window of the word before them, each once.
            final = k == len(begins) - 1
            first = 0 if k == 0 else int(body_words[a])
            following = all_words if final else int(body_words[begins[k + 1]])
            present = np.unique(body_words[a : b if final else begins[k + 1]])
            lost = following - first - int((present < following).sum())
        elif job.overflow == "truncate":
            lost = int((labels[head + b : head + n] != IGNORE_INDEX).sum())
        words_here = all_words if k == 0 or all_words <= WORDS_IN_EVERY_WINDOW else -1
        for name, value in zip(about, (row, k, words_here, lost), strict=True):
            about[name].append(value)
    arrays = {name: np.array(values, dtype=np.int64) for name, values in about.items()}
    return arrays, np.concatenate(at), np.array(lengths, dtype=np.int64), np.concatenate(hidden)


def _assemble(
    job: Job,
    rows: pa.Table,
    pieces: list[_Piece],
    ids: np.ndarray,
    labels: np.ndarray,
    words_of_tokens: np.ndarray | None,
) -> pa.Table:
    """Gather the tokens of all sequences and repeat what belongs to their rows."""
    about = {name: np.concatenate([piece[0][name] for piece in pieces]) for name in pieces[0][0]}
    at, lengths, hidden = (np.concatenate([piece[i] for piece in pieces]) for i in (1, 2, 3))
    offsets = offsets_of(lengths)
    row = pa.array(about["row"], pa.int64())
    as_they_are = len(pieces) == 1 and job.context is None
    """Each row is a sequence of its own: there is nothing to gather."""

    def of_row(name: str, at: pa.Array = row) -> pa.Array:
        column = one_array(rows.column(name))
        return column if as_they_are else column.take(at)

    def of_tokens(values: np.ndarray) -> np.ndarray:
        return values if as_they_are else values[at]

    made = {name: of_row(name) for name in (schema.EXAMPLE_ID, schema.FILE_PART, schema.SOURCE_ROW)}
    made[schema.WINDOW] = pa.array(about["window"], pa.int32())
    if words_of_tokens is None:
        made[schema.WORDS] = pa.nulls(len(row), pa.list_(pa.string()))
        made[schema.WORD_IDS] = pa.nulls(len(row), pa.list_(pa.int32()))
    else:
        made[schema.WORDS] = of_row(schema.WORDS) if as_they_are else _words_of(rows, about["row"], about["words"])
        word_ids = of_tokens(words_of_tokens)
        made[schema.WORD_IDS] = list_array(pa.array(word_ids, pa.int32(), mask=word_ids == NO_WORD), offsets)
    made[schema.INPUT_IDS] = list_array(of_tokens(ids), offsets)
    made[schema.LABEL_IDS] = list_array(np.where(hidden, np.int32(IGNORE_INDEX), of_tokens(labels)), offsets)
    if job.columns.mask:
        mask = one_array(rows.column(schema.ATTENTION_MASK)).flatten().to_numpy()
        made[schema.ATTENTION_MASK] = list_array(of_tokens(mask), offsets)
    made[schema.NUM_DROPPED_WORDS] = pa.array(about["dropped"], pa.int32())
    where_words = pa.array(about["row"], pa.int64(), mask=about["words"] < 0)
    for field in job.columns.carried:
        made[field.name] = of_row(field.name, where_words if field.name in schema.WORD_OFFSETS else row)
    return pa.table(made)


def _words_of(rows: pa.Table, row: np.ndarray, count: np.ndarray) -> pa.ListArray:
    """The first words of some rows, so many of each; null where the count is negative."""
    column = one_array(rows.column(schema.WORDS))
    counts = np.maximum(count, 0)
    at = positions(offsets_of(list_lengths(column))[:-1][row], counts)
    return list_array(column.flatten().take(pa.array(at)), offsets_of(counts), mask=count < 0)


def _encode_errors(job: Job, sources: Sequence[str], rows: pa.Table, bad: np.ndarray, lengths: np.ndarray) -> pa.Table:
    records = []
    for i in bad.tolist():
        row = rows.slice(i, 1).to_pylist()[0]
        items = row[schema.WORDS] if job.columns.words else row[schema.INPUT_IDS]
        none = lengths[i] == 0
        detail = (
            "the tokenizer makes no tokens of it"
            if none
            else f"{lengths[i]} tokens, but at most {job.max_length} are allowed"
        )
        records.append(
            {
                "example_id": row[schema.EXAMPLE_ID],
                "source": sources[row[schema.FILE_PART]],
                "source_row": row[schema.SOURCE_ROW],
                "stage": "encode",
                "reason": "empty" if none else "too_long",
                "detail": detail,
                "payload": payload(job, row, items, row[schema.LABEL_IDS]),
            }
        )
    return pa.Table.from_pylist(records, ERRORS_SCHEMA)


def payload(job: Job, row: dict, items: list, label_ids: list[int]) -> str:
    """A row as JSON under the names, and with the tags, that the input has for it."""
    names = job.data_tags or job.tags
    ignored = None if job.columns.words else IGNORE_INDEX
    tags: list[str | int | None] = []
    for label in label_ids:
        if label == IGNORE_INDEX:
            tags.append(ignored)
        else:
            tags.append(job.tags[label] if job.columns.text_tags else names.index(job.tags[label]))
    given = {field.name: row[field.name] for field in job.columns.carried}
    given[job.columns.words or schema.INPUT_IDS] = items
    if job.columns.labels:
        given[job.columns.labels] = tags
    if job.columns.example_id:
        given[job.columns.example_id] = row[schema.EXAMPLE_ID]
    return json.dumps(given, ensure_ascii=False, default=str)
