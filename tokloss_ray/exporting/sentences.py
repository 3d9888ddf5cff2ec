"""The sentences of an output, word by word: what annotators get to see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.mining.mined import read_mined
from tokloss_ray.mining.words.load import read_rows
from tokloss_ray.output.opened import ScoreFile, by_column, files_where, open_outputs, parse_where
from tokloss_ray.output.run import input_order
from tokloss_ray.output.score_files import reading
from tokloss_ray.ragged import one_array
from tokloss_ray.schema import IGN

KEY = [schema.SOURCE, schema.SOURCE_ROW]
COLUMNS = [
    schema.EXAMPLE_ID,
    *KEY,
    schema.WINDOW,
    schema.WORDS,
    schema.WORD_IDS,
    schema.LABELS,
    schema.PREDICTED_LABEL,
    schema.PREDICTED_PROB,
    schema.LOSS,
]


_PLACE = "_place"


@dataclass(frozen=True)
class Sentence:
    """One input row with all its words; windows are put together again.

    Attributes:
        labels: the annotation, None where a word carries none.
        predicted: the model's tag at the word's first token, None where the model did not see the word.
        probs: probability of `predicted`; losses: cross-entropy of the label, None where there is none.
        distributions: for each word the probabilities of all tags; None if they were not asked for, or not written.
        decided: the tags that reviewers gave it, as far as they did; None: they are not asked for.
    """

    example_id: str
    source: str
    source_row: int
    words: list[str]
    labels: list[str | None]
    predicted: list[str | None]
    probs: list[float | None]
    losses: list[float | None]
    decided: list[str | None] | None = None
    distributions: list[list[float] | None] | None = None

    @property
    def corrected(self) -> list[str | None]:
        """What annotators start from."""
        return self.labels if self.decided is None else self.decided

    @property
    def total_loss(self) -> float:
        """Sum over the labelled words."""
        return sum(loss for loss in self.losses if loss is not None)


@dataclass(frozen=True)
class Correction:
    """What a file of corrected labels says about one row.

    Attributes:
        words: word index: the word as it was exported.
        changes: word index: (tag as it was exported or None, tag it is to have); only words that were changed.
    """

    example_id: str
    source: str
    source_row: int
    words: dict[int, str] = field(default_factory=dict)
    changes: dict[int, tuple[str | None, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How a message names the row."""
        return self.example_id or f"{self.source}:{self.source_row}"


def read_sentences(
    output: str, keys: pa.Table | None = None, where: Sequence[str] = (), distributions: bool = False
) -> Iterator[Sentence]:
    """The sentences of a finished output, in the order of the input; with `keys`, those rows, in the order of the keys.

    keys: the columns source and source_row, each row once. distributions: with the probabilities of all tags.

    Raises:
        Refused: the input was pre-encoded, so that there are no words; or there are no such probabilities.
    """
    if distributions and not open_outputs(output).has_probs:
        raise Refused(f"{output} has no probabilities of all tags: score with --keep-probs")
    tables = shard_tables(output, [*COLUMNS, schema.PROBS] if distributions else COLUMNS, where)
    if keys is None:
        for path, table in tables:
            yield from _sentences_of(table, output, path)
            del table  # before the next shard is read
        return
    rank = {key: i for i, key in enumerate(zip(*(keys.column(name).to_pylist() for name in KEY), strict=True))}
    rows = pa.array(keys.column(schema.SOURCE_ROW).to_pylist(), pa.int64())
    found: list[Sentence] = []
    for path, table in tables:
        likely = table.filter(pc.is_in(table.column(schema.SOURCE_ROW), rows))
        found += [s for s in _sentences_of(likely, output, path) if (s.source, s.source_row) in rank]
    yield from sorted(found, key=lambda s: rank[s.source, s.source_row])


def shard_tables(output: str, columns: list[str], where: Sequence[str] = ()) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each committed shard in the order of the input, windows one after another, with its first file.

    where: `COLUMN=VALUE` or `COLUMN!=VALUE`, as in `tokloss mine`.

    Raises:
        Refused: no output, not finished, or there is no such column.
    """
    scores = open_outputs(output)
    conditions = parse_where(where, scores.columns)
    files = files_where(scores.files, conditions)
    place = {source: i for i, source in enumerate(input_order(output))}
    # The files of a shard, one for each partition, have the same name.
    for _, of_shard in groupby(files, key=lambda file: file.path.rsplit("/", 1)[-1]):
        of_files = list(of_shard)

        def rows(of_files: list[ScoreFile] = of_files) -> pa.Table:
            parts = [read_rows(file, columns, by_column(conditions)) for file in of_files]
            return _in_input_order(pa.concat_tables(parts, promote_options="permissive"), place)

        yield of_files[0].path, rows()


def _in_input_order(rows: pa.Table, place: dict[str, int]) -> pa.Table:
    """The rows of a shard by input file, row and window. place: of each input file in the input."""
    order = [(schema.SOURCE_ROW, "ascending"), (schema.WINDOW, "ascending")]
    sources = pc.dictionary_encode(one_array(rows.column(schema.SOURCE)))
    if len(sources.dictionary) < 2:
        row, window = (rows.column(name).to_numpy() for name, _ in order)
        later = (row[1:] > row[:-1]) | ((row[1:] == row[:-1]) & (window[1:] >= window[:-1]))
        return rows if later.all() else rows.sort_by(order)
    places = pa.array([place.get(source, len(place)) for source in sources.dictionary.to_pylist()], pa.int64())
    placed = rows.append_column(_PLACE, places.take(sources.indices))
    return placed.sort_by([(_PLACE, "ascending"), (schema.SOURCE, "ascending"), *order]).drop_columns([_PLACE])


def _sentences_of(table: pa.Table, output: str, path: str) -> Iterator[Sentence]:
    """The sentences in rows of scores/ that stand in the order of source, source_row and window; path: their file."""
    with reading(output, path):
        yield from join_windows(table)


def join_windows(table: pa.Table) -> Iterator[Sentence]:
    """The sentences in rows of scores/ with the columns `COLUMNS`, in the order of source, source_row and window.

    Raises:
        Refused: the input was pre-encoded, so that there are no words.
    """
    rows: Iterable[dict[str, Any]] = (row for batch in table.to_batches(1024) for row in batch.to_pylist())
    for (source, source_row), windows in groupby(rows, key=lambda row: (row[KEY[0]], row[KEY[1]])):
        first = next(windows)
        words = first[schema.WORDS]
        if words is None:
            raise Refused(
                f"{first[schema.EXAMPLE_ID]} was scored from token ids, so it has no words to relabel: "
                f"score the dataset with its words"
            )
        n = len(words)
        key = first[schema.EXAMPLE_ID], source, source_row
        sentence = Sentence(*key, words, [None] * n, [None] * n, [None] * n, [None] * n)
        if schema.PROBS in first:
            sentence = replace(sentence, distributions=[None] * n)
        for window in (first, *windows):
            _take_window(sentence, window)
        yield sentence


def _take_window(sentence: Sentence, row: dict[str, Any]) -> None:
    """Each word's figures come from the first token that carries its label, or else from the first it has."""
    columns = (schema.WORD_IDS, schema.LABELS, schema.PREDICTED_LABEL, schema.PREDICTED_PROB, schema.LOSS)
    for token, (word, label, predicted, prob, loss) in enumerate(zip(*(row[name] for name in columns), strict=True)):
        if word is None or sentence.labels[word] is not None:
            continue
        if label != IGN:
            sentence.labels[word], sentence.losses[word] = label, loss
        elif sentence.predicted[word] is not None:
            continue
        sentence.predicted[word], sentence.probs[word] = predicted, prob
        if sentence.distributions is not None:
            sentence.distributions[word] = row[schema.PROBS][token]


def worst_keys(output: str, count: int, where: Sequence[str] = ()) -> pa.Table:
    """Keys of the rows with the highest total loss, over all their windows; ties by source and source_row."""
    best: list[pa.Table] = []
    for _, table in shard_tables(output, [*KEY, schema.WINDOW, schema.TOTAL_LOSS], where):
        sums = table.group_by(KEY).aggregate([(schema.TOTAL_LOSS, "sum")])
        order = [(f"{schema.TOTAL_LOSS}_sum", "descending"), *((name, "ascending") for name in KEY)]
        best = [pa.concat_tables([*best, sums]).sort_by(order).slice(0, count)]
    return best[0].select(KEY) if best else _no_keys()


def keys_of_id(output: str, example_ids: Iterable[str]) -> pa.Table:
    """Keys of the rows with these ids, in the order of the input.

    Raises:
        Refused: an id that no row has.
    """
    wanted = pa.array(list(dict.fromkeys(example_ids)), pa.string())
    parts = [
        table.filter(pc.is_in(table.column(schema.EXAMPLE_ID), wanted))
        for _, table in shard_tables(output, [schema.EXAMPLE_ID, *KEY, schema.WINDOW])
    ]
    found = pa.concat_tables(parts) if parts else _no_keys().append_column(schema.EXAMPLE_ID, pa.array([], pa.string()))
    have = set(found.column(schema.EXAMPLE_ID).to_pylist())
    lost = next((name for name in wanted.to_pylist() if name not in have), None)
    if lost is not None:
        raise Refused(f"{output} has no sentence with the id {lost}")
    return unique_keys(found)


def mined_keys(output: str, table: str, count: int, option: str) -> pa.Table:
    """Keys of the first `count` rows that a ranked table of `tokloss mine` has for this output, in their order.

    option: by which they were asked for.

    Raises:
        Refused: there is no such table, it is not about the output as it is now, or it ends before.
    """
    mined = read_mined(output, table)
    if mined.cut and mined.rows.num_rows < count:
        raise Refused(
            f"the table of {table.replace('_', ' ')} has {mined.rows.num_rows:,} for {output}, fewer than {option} "
            f"{count}: mine {output} alone, or with a higher --limit"
        )
    return unique_keys(mined.rows.slice(0, count))


def unique_keys(table: pa.Table) -> pa.Table:
    """The columns source and source_row, each pair once, where it first stands."""
    pairs = list(dict.fromkeys(zip(*(table.column(name).to_pylist() for name in KEY), strict=True)))
    return pa.table(
        {KEY[0]: pa.array([p[0] for p in pairs], pa.string()), KEY[1]: pa.array([p[1] for p in pairs], pa.int64())}
    )


def _no_keys() -> pa.Table:
    return pa.table({KEY[0]: pa.array([], pa.string()), KEY[1]: pa.array(np.array([], dtype=np.int64))})
