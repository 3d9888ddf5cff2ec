"""Rows of scores/ as flat arrays of labelled words, some files at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.mining.words.from_rows import (
    COLUMNS,
    LABELLED_COLUMNS,
    STRINGS,
    is_encoded,
    labelled_words,
    words_of_rows,
)
from tokloss_ray.mining.words.occurrences import WordCounts, add_counts, count_labels
from tokloss_ray.mining.words.words import Words, concat_words, first_tokens
from tokloss_ray.output.opened import (
    Condition,
    ScoreFile,
    by_column,
    check_columns,
    files_where,
    keeps,
    open_outputs,
    parse_where,
)
from tokloss_ray.output.score_files import (
    BATCH_TOKENS,
    WHOLE_FILE,
    batch_rows,
    iter_columns,
    open_score_file,
    read_columns,
    reading,
)
from tokloss_ray.ragged import one_array

_DICTIONARIES = [schema.SOURCE, *(f"{name}.list.element" for name in STRINGS)]


def file_batches(files: Sequence[ScoreFile], tokens: int = BATCH_TOKENS) -> list[list[ScoreFile]]:
    """Consecutive files together, about `tokens` in each batch and in all batches about as many."""
    ends = np.cumsum([file.tokens for file in files])
    whole = int(ends[-1]) if len(ends) else 0
    size = whole / max(1, round(whole / tokens))
    batches: dict[int, list[ScoreFile]] = {}
    for file, end in zip(files, ends, strict=True):
        # A file belongs where its middle is.
        batches.setdefault(int((end - file.tokens / 2) // max(size, 1)), []).append(file)
    return list(batches.values())


def read_tokens(
    files: Iterable[ScoreFile],
    tags: tuple[str, ...],
    by: Sequence[str] = (),
    where: Iterable[Condition] = (),
    probs: bool = False,
    tokens: int = BATCH_TOKENS,
    unlabelled: bool = False,
    entropy: bool = False,
) -> Iterator[Words]:
    """The labelled tokens of files, at most about `tokens` tokens (IGN included) at a time, never half a row.

    by: columns to slice by. where: which rows. probs: with the probabilities of all tags. unlabelled: also the first
    token of each word without a label. entropy: with entropies.

    Raises:
        JobFailed: a file is gone or damaged.
    """
    conditions = by_column(where)
    parts: list[Words] = []
    size = 0
    for file in files:
        for table in _read_file(file, _columns(by, probs, entropy), conditions, tokens):
            slices = {name: _slice_values(table, name, file) for name in by}
            with reading(file.output, file.path):  # no checksum covers the footer, which says what the values are
                part = words_of_rows(table, tags, slices, file.output, unlabelled)
            count = int(pc.sum(table.column(schema.NUM_TOKENS)).as_py() or 0)
            if parts and size + count > tokens:
                yield concat_words(parts)
                parts, size = [], 0
            parts.append(part)
            size += count
    if parts:
        yield concat_words(parts)


def read_counts(files: Iterable[ScoreFile], tags: tuple[str, ...], tokens: int = BATCH_TOKENS) -> WordCounts:
    """How the words of some files are labelled: only a few columns are read. Arguments as for `read_tokens`.

    Raises:
        JobFailed: a file is gone or damaged.
    """
    found: list[WordCounts] = []
    words: list[pa.DictionaryArray] = []
    labels: list[np.ndarray] = []

    def count() -> None:
        found.append(count_labels(pa.concat_arrays(words), np.concatenate(labels), len(tags)))
        words.clear()
        labels.clear()

    for file in files:
        for table in _labelled_parts(file, tokens):
            with reading(file.output, file.path):
                word, label = labelled_words(table, tags)
            words.append(word)  # Arrow unifies the dictionaries: a word of many small files is numbered once
            labels.append(label)
            if sum(map(len, labels)) >= tokens:
                count()
    if words:
        count()
    return add_counts(found)


def _labelled_parts(file: ScoreFile, tokens: int) -> Iterator[pa.Table]:
    """The rows of a file with the columns of `labelled_words`; the tokens only if there are no words."""
    for table in _read_file(file, LABELLED_COLUMNS, {}, tokens):
        if is_encoded(table):
            break
        yield table
    else:
        return
    yield from _read_file(file, (*LABELLED_COLUMNS, schema.INPUT_TOKENS), {}, tokens)


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
    """Read the rows of scores/ of one or more outputs; docs/output.md describes the columns.

    Args:
        output: output folder or address, or several.
        as_: "arrow" for a `pyarrow.Table`, "pandas" for a `pandas.DataFrame`, "ray" for a Ray Dataset that reads on use
            and so may exceed memory.
        columns: read only these columns.
        where: read only rows with `COLUMN=VALUE` or `COLUMN!=VALUE`.
        partial: accept an unfinished run and read what is committed.

    Returns:
        One row per sequence, partition columns included. `loss` is a list of float32 in nats, as long as `input_ids`,
        and 0.0 where `labels` is "IGN".

    Raises:
        Refused: an output is not one of `score`, is not finished, or lacks a column.
        JobFailed: a file is missing or damaged.

    Example:
        >>> import tokloss_ray
        >>> scores = tokloss_ray.load("tokloss-demo", as_="pandas", columns=["example_id", "total_loss", "lang"])
        >>> scores.shape
        (10000, 3)
    """
    if as_ not in ("arrow", "pandas", "ray"):
        raise Refused(f"as_={as_!r}: choose arrow, pandas or ray")
    scores = open_outputs(output, partial)
    conditions = parse_where(where, scores.columns)
    files = files_where(scores.files, conditions)
    if not files:
        raise Refused(f"{scores.outputs[0]} has no {'such rows' if scores.files else 'scored rows'}")
    if columns is not None:
        with open_score_file(files[0], narrow=True) as parquet:
            there = parquet.schema_arrow.names
        check_columns("column", columns, [*there, *scores.columns])

    def table_of(file: ScoreFile) -> pa.Table:
        return read_rows(file, columns, by_column(conditions))

    if as_ == "ray":
        import ray.data

        return ray.data.from_items([{"file": i} for i in range(len(files))]).map_batches(
            lambda batch: pa.concat_tables([table_of(files[i]) for i in batch["file"]]), batch_size=1
        )
    table = pa.concat_tables([table_of(file) for file in files], promote_options="permissive")
    return table if as_ == "arrow" else table.to_pandas()


def read_rows(file: ScoreFile, columns: Sequence[str] | None, conditions: dict[str, list[Condition]]) -> pa.Table:
    """The rows of a file that meet the conditions, with the columns asked for (None: all), partition columns too."""
    needed = None if columns is None else dict.fromkeys([*columns, *conditions])
    with open_score_file(file) as parquet:
        inside = parquet.schema_arrow.names
        table = read_columns(parquet, file, None if needed is None else [name for name in needed if name in inside])
    for name, value in file.constants.items():
        if name not in inside and (name in needed if needed is not None else name in file.path):
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    table = _filtered(table, {name: tests for name, tests in conditions.items() if name not in file.constants})
    return table if columns is None else table.select(list(columns))


def _columns(by: Sequence[str], probs: bool, entropy: bool) -> list[str]:
    """The columns of `words_of_rows`, and those to slice by."""
    more = [name for name, wanted in ((schema.PROBS, probs), (schema.ENTROPY, entropy)) if wanted]
    return [*COLUMNS, schema.NUM_TOKENS, *by, *more]


def _read_file(
    file: ScoreFile, names: Sequence[str], conditions: dict[str, list[Condition]], tokens: int
) -> Iterator[pa.Table]:
    """The rows of a file that pass, some at a time; the windows of a row stay together.

    names: the columns to read; those of `conditions` are read too, those that the file's place names are not.
    """
    columns = [name for name in dict.fromkeys([*names, *conditions]) if name not in file.constants]
    here = {name: tests for name, tests in conditions.items() if name not in file.constants}
    step = batch_rows(file, tokens)
    with open_score_file(
        file, read_dictionary=_DICTIONARIES, memory_map=True, pre_buffer=file.size > WHOLE_FILE
    ) as parquet:
        if lacking := [name for name in columns if name not in parquet.schema_arrow.names]:
            raise ValueError(f"it has no column {lacking[0]}")
        kept: list[pa.Table] = []
        if file.rows <= step * 2:
            kept.append(_filtered(read_columns(parquet, file, columns, threads=False), here))
        else:
            for part in iter_columns(parquet, file, columns, step):
                table = _filtered(part, here)
                if (cut := _last_row(table)) == 0:  # nothing, or all of one row: it may go on
                    kept.append(table)
                    continue
                yield pa.concat_tables([*kept, table.slice(0, cut)])
                kept = [table.slice(cut)]
        yield pa.concat_tables(kept)


def _last_row(table: pa.Table) -> int:
    """Where the windows of the last source row begin."""
    rows = table.column(schema.SOURCE_ROW).to_numpy()
    if not len(rows):
        return 0
    sources = one_array(table.column(schema.SOURCE)).indices.to_numpy()
    other = np.flatnonzero((rows != rows[-1]) | (sources != sources[-1]))
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


def _slice_values(table: pa.Table, name: str, file: ScoreFile) -> pa.Array:
    if name in file.constants:
        return pa.repeat(pa.scalar(file.constants[name], pa.string()), table.num_rows)
    return one_array(_as_text(table, name))
