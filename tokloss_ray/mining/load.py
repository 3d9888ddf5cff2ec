"""Rows of scores/ as flat arrays of labelled words, some files at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.mining.outputs import (
    Condition,
    ScoreFile,
    by_column,
    check_columns,
    files_where,
    keeps,
    open_outputs,
    parse_where,
)
from tokloss_ray.mining.words import Words, concat_words, first_tokens
from tokloss_ray.scoring.ragged import list_lengths, offsets_of, one_array
from tokloss_ray.storage import is_local, open_location, open_random, read_whole

BATCH_TOKENS = 1 << 20
"""Tokens that are turned into tables at once: many, so that Python's share is small; bounded, so that memory is."""

_WHOLE_FILE = 64 << 20  # an object up to this size is fetched in one request; of a larger one, the columns needed
_STRINGS = (schema.WORDS, schema.INPUT_TOKENS, schema.LABELS, schema.PREDICTED_LABEL, schema.SECOND_LABEL)
_COLUMNS = (
    schema.EXAMPLE_ID,
    schema.SOURCE,
    schema.SOURCE_ROW,
    schema.WINDOW,
    schema.WORD_IDS,
    schema.LOSS,
    schema.PREDICTED_PROB,
    schema.SECOND_PROB,
    *_STRINGS,
)
_DICTIONARIES = [schema.SOURCE, *(f"{name}.list.element" for name in _STRINGS)]


def file_batches(files: Sequence[ScoreFile], tokens: int = BATCH_TOKENS) -> list[list[ScoreFile]]:
    """Consecutive files together up to about `tokens`; a larger file by itself."""
    batches: list[list[ScoreFile]] = []
    size = 0
    for file in files:
        if not batches or size + file.tokens > tokens:
            batches.append([])
            size = 0
        batches[-1].append(file)
        size += file.tokens
    return batches


def read_tokens(
    files: Iterable[ScoreFile],
    tags: tuple[str, ...],
    by: Sequence[str] = (),
    where: Iterable[Condition] = (),
    probs: bool = False,
    tokens: int = BATCH_TOKENS,
) -> Iterator[Words]:
    """The labelled tokens of files, at most about `tokens` tokens (IGN included) at a time, never half a row.

    by: columns to slice by. where: which rows. probs: with the probabilities of all tags.

    Raises:
        JobFailed: a file is gone or damaged.
    """
    conditions = by_column(where)
    parts: list[Words] = []
    size = 0
    for file in files:
        for table in _read_file(file, by, conditions, probs, tokens):
            part, count = _flatten(table, tags, by, file)
            if parts and size + count > tokens:
                yield concat_words(parts)
                parts, size = [], 0
            parts.append(part)
            size += count
    if parts:
        yield concat_words(parts)


def read_words(file: ScoreFile, tags: tuple[str, ...], by: Sequence[str] = (), probs: bool = False) -> Words:
    """The labelled words of one whole file."""
    return first_tokens(concat_words(list(read_tokens([file], tags, by, probs=probs))))


def load(
    output: str | Sequence[str],
    as_: Literal["arrow", "pandas", "ray"] = "arrow",
    columns: Sequence[str] | None = None,
    where: Sequence[str] = (),
    partial: bool = False,
) -> Any:
    """The rows of scores/ of one or several outputs (docs/output.md), partition columns included.

    output: folder or address, or several. as_: a `pyarrow.Table`, a `pandas.DataFrame` or a Ray Dataset, which is read
    where it is used and fits no memory. columns: only these. where: `COL=VALUE`, `COL!=VALUE`. partial: also of an
    unfinished run, what is committed.

        scores = tokloss_ray.load("tokloss-demo", as_="pandas", columns=["example_id", "total_loss", "lang"])

    Raises:
        Refused: it is no output, is not finished, or has no such column.
    """
    if as_ not in ("arrow", "pandas", "ray"):
        raise Refused(f"as_={as_!r}: there are arrow, pandas and ray")
    scores = open_outputs(output, partial)
    conditions = parse_where(where, scores.columns)
    files = files_where(scores.files, conditions)
    if not files:
        raise Refused(f"{scores.outputs[0]} has no {'such rows' if scores.files else 'scored rows'}")
    if columns is not None:
        there = pq.read_schema(_source(files[0])).names
        check_columns("column", columns, [*there, *scores.columns])

    def table_of(file: ScoreFile) -> pa.Table:
        return _with_constants(file, columns, by_column(conditions))

    if as_ == "ray":
        import ray.data

        return ray.data.from_items([{"file": i} for i in range(len(files))]).map_batches(
            lambda batch: pa.concat_tables([table_of(files[i]) for i in batch["file"]]), batch_size=1
        )
    table = pa.concat_tables([table_of(file) for file in files], promote_options="permissive")
    return table if as_ == "arrow" else table.to_pandas()


def _source(file: ScoreFile) -> Any:
    """What pyarrow reads a file from."""
    fs, root = open_location(file.output)
    path = f"{root}/{file.path}"
    if is_local(fs):
        return path
    if file.size <= _WHOLE_FILE:
        return pa.BufferReader(read_whole(fs, path))
    return open_random(fs, path, file.size)


def _with_constants(file: ScoreFile, columns: Sequence[str] | None, conditions: dict[str, list[Condition]]) -> pa.Table:
    needed = None if columns is None else dict.fromkeys([*columns, *conditions])
    with pq.ParquetFile(_source(file)) as parquet:
        inside = parquet.schema_arrow.names
        table = parquet.read(None if needed is None else [name for name in needed if name in inside])
    for name, value in file.constants.items():
        if name not in inside and (name in needed if needed is not None else name in file.path):
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    table = _filtered(table, conditions)
    return table if columns is None else table.select(list(columns))


def _read_file(
    file: ScoreFile, by: Sequence[str], conditions: dict[str, list[Condition]], probs: bool, tokens: int
) -> Iterator[pa.Table]:
    """The rows of a file that pass, some at a time; the windows of a row stay together."""
    extra = [name for name in dict.fromkeys([*by, *conditions]) if name not in file.constants]
    columns = [*_COLUMNS, *extra, *([schema.PROBS] if probs else [])]
    here = {name: tests for name, tests in conditions.items() if name not in file.constants}
    step = max(1, int(tokens * file.rows / max(file.tokens, 1)))
    try:
        with pq.ParquetFile(
            _source(file), read_dictionary=_DICTIONARIES, memory_map=True, pre_buffer=file.size > _WHOLE_FILE
        ) as parquet:
            kept: list[pa.Table] = []
            if file.rows <= step * 2:
                whole = parquet.read(columns, use_threads=False)
                kept.append(_filtered(whole, here))
            else:
                for batch in parquet.iter_batches(step, columns=columns, use_threads=False):
                    table = _filtered(pa.Table.from_batches([batch]), here)
                    if (cut := _last_row(table)) == 0:  # nothing, or all of one row: it may go on
                        kept.append(table)
                        continue
                    yield pa.concat_tables([*kept, table.slice(0, cut)])
                    kept = [table.slice(cut)]
            yield pa.concat_tables(kept)
    except (pa.ArrowInvalid, KeyError, FileNotFoundError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise JobFailed(
            f"cannot read {file.output}/{file.path}: {reason}; tokloss verify says what else is wrong"
        ) from error


def _last_row(table: pa.Table) -> int:
    """Where the windows of the last source row begin."""
    rows = table.column(schema.SOURCE_ROW).to_numpy()
    other = np.flatnonzero(rows != rows[-1]) if len(rows) else rows
    return int(other[-1]) + 1 if len(other) else 0


def _filtered(table: pa.Table, conditions: dict[str, list[Condition]]) -> pa.Table:
    for name, tests in conditions.items():
        values = pc.dictionary_encode(one_array(_as_text(table, name)), null_encoding="encode")
        passes = np.array([keeps(value, tests) for value in values.dictionary.to_pylist()], dtype=bool)
        table = table.filter(pa.array(passes[values.indices.to_numpy()])) if table.num_rows else table
    return table


def _as_text(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise Refused(f"column {name} holds {column.type}: only text, numbers, dates and booleans can be compared")
    return column.cast(pa.string())


def _flatten(table: pa.Table, tags: tuple[str, ...], by: Sequence[str], file: ScoreFile) -> tuple[Words, int]:
    """The labelled tokens of some rows, and how many tokens these have in all."""
    flat = {name: one_array(table.column(name)) for name in table.column_names if name not in (*by, schema.PROBS)}
    lengths = list_lengths(flat[schema.LABELS])
    starts = offsets_of(lengths)
    label = _codes(flat[schema.LABELS].flatten(), (*tags, schema.IGN), file)
    at = np.flatnonzero(label < len(tags))
    row = np.repeat(np.arange(table.num_rows), lengths)[at]
    first = _first_windows(flat[schema.SOURCE], flat[schema.SOURCE_ROW])
    sequence = np.cumsum(first)[row] - 1
    base = np.flatnonzero(first)

    chosen = pa.array(at)
    token = flat[schema.INPUT_TOKENS].flatten().take(chosen)
    word_index, num_subtokens, word = _word_columns(flat, at, row, sequence, base, first, token)

    def floats(name: str) -> np.ndarray:
        values = flat[name].flatten()
        return pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False)[at]

    probs = None
    if schema.PROBS in table.column_names:
        lists = one_array(table.column(schema.PROBS)).flatten()
        probs = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(tags))[at]
    words = Words(
        tags=tags,
        offsets=offsets_of(np.bincount(sequence, minlength=len(base))),
        example_id=flat[schema.EXAMPLE_ID].take(pa.array(base)),
        source=flat[schema.SOURCE].take(pa.array(base)).cast(pa.string()),
        source_row=flat[schema.SOURCE_ROW].to_numpy()[base],
        token_index=(at - starts[row]).astype(np.int32),
        window=flat[schema.WINDOW].to_numpy()[row],
        word_index=word_index,
        token=token,
        word=word,
        num_subtokens=num_subtokens,
        label=label[at],
        predicted=_codes(flat[schema.PREDICTED_LABEL].flatten(), tags, file)[at],
        second=_codes(flat[schema.SECOND_LABEL].flatten(), tags, file)[at],
        loss=floats(schema.LOSS),
        predicted_prob=floats(schema.PREDICTED_PROB),
        second_prob=floats(schema.SECOND_PROB),
        probs=probs,
        by={name: _slice_values(table, name, file, base) for name in by},
    )
    return _in_order(words), int(starts[-1])


def _codes(values: pa.DictionaryArray, names: tuple[str, ...], file: ScoreFile) -> np.ndarray:
    """Position of each string among `names`, as int32; -1 where it is null."""
    codes = {name: code for code, name in enumerate(names)}
    strings = values.dictionary.to_pylist()
    if unknown := [string for string in strings if string not in codes]:
        raise JobFailed(f"{file.output}/{file.path} has the tag {unknown[0]!r}, which _run.json does not have")
    table = np.array([*(codes[string] for string in strings), -1], dtype=np.int32)
    return table[pc.fill_null(values.indices, len(strings)).to_numpy(zero_copy_only=False)]


def _first_windows(source: pa.DictionaryArray, source_row: pa.Array) -> np.ndarray:
    """Which rows of the table begin a row of the input: its windows follow one another."""
    rows, codes = source_row.to_numpy(), source.indices.to_numpy()
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (rows[1:] != rows[:-1]) | (codes[1:] != codes[:-1])
    return first


def _word_columns(
    flat: dict[str, pa.Array],
    at: np.ndarray,
    row: np.ndarray,
    sequence: np.ndarray,
    base: np.ndarray,
    first: np.ndarray,
    token: pa.DictionaryArray,
) -> tuple[np.ndarray, np.ndarray, pa.DictionaryArray]:
    """Index, number of sub-tokens and string of the word of each labelled token."""
    lists = flat[schema.WORD_IDS]
    encoded = pc.is_null(lists).to_numpy(zero_copy_only=False)
    if encoded.all():  # the input was pre-encoded
        starts = offsets_of(np.bincount(sequence, minlength=len(base)))
        return (np.arange(len(at)) - starts[sequence]).astype(np.int32), np.zeros(len(at), np.int32), token
    ids = pc.fill_null(lists.flatten(), -1).to_numpy(zero_copy_only=False)
    ends = np.ones(len(ids) + 1, dtype=bool)
    ends[1:-1] = ids[1:] != ids[:-1]
    ends[offsets_of(list_lengths(lists))] = True
    runs = np.flatnonzero(ends)
    run = np.searchsorted(runs, at, side="right") - 1
    word_index = ids[at].astype(np.int32)
    # Later windows of a very long row have no words of their own: those of its first window serve.
    lengths = list_lengths(flat[schema.WORDS])
    words_at = offsets_of(lengths)[:-1]
    own = np.where(lengths > 0, np.arange(len(lengths)), base[np.cumsum(first) - 1])
    word = flat[schema.WORDS].flatten().take(pa.array(words_at[own[row]] + word_index))
    return word_index, np.diff(runs)[run].astype(np.int32), word


def _in_order(words: Words) -> Words:
    """Words by their index in each sequence: windows follow one another, but nothing promises that their words do."""
    later = np.diff(words.word_index) >= 0
    later[words.offsets[1:-1][(words.offsets[1:-1] > 0) & (words.offsets[1:-1] < len(words))] - 1] = True
    if later.all():
        return words
    order = np.lexsort((words.token_index, words.window, words.word_index, words.sequence))
    at = pa.array(order)
    names = ("token_index", "window", "word_index", "num_subtokens", "label", "predicted", "second", "loss")
    columns = {name: getattr(words, name)[order] for name in (*names, "predicted_prob", "second_prob")}
    probs = None if words.probs is None else words.probs[order]
    return replace(words, token=words.token.take(at), word=words.word.take(at), probs=probs, **columns)


def _slice_values(table: pa.Table, name: str, file: ScoreFile, base: np.ndarray) -> pa.Array:
    if name in file.constants:
        return pa.repeat(pa.scalar(file.constants[name], pa.string()), len(base))
    return one_array(_as_text(table, name)).take(pa.array(base))
