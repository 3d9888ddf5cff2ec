"""Rows of scores/ as flat arrays: columns of lists become one entry per labelled token."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.mining.words.words import Words, take_words
from tokloss_ray.output.windows import NO_WORD, first_windows, unlabelled_words
from tokloss_ray.ragged import list_lengths, offsets_of, one_array

STRINGS = (schema.WORDS, schema.INPUT_TOKENS, schema.LABELS, schema.PREDICTED_LABEL, schema.SECOND_LABEL)
"""Lists of strings; read as dictionaries."""

COLUMNS = (
    schema.EXAMPLE_ID,
    schema.SOURCE,
    schema.SOURCE_ROW,
    schema.WINDOW,
    schema.WORD_IDS,
    schema.LOSS,
    schema.PREDICTED_PROB,
    schema.SECOND_PROB,
    *STRINGS,
)
"""What `words_of_rows` needs; and `probs`, where it is there."""


LABELLED_COLUMNS = (schema.SOURCE, schema.SOURCE_ROW, schema.WORD_IDS, schema.WORDS, schema.LABELS)
"""What `labelled_words` needs; of pre-encoded input `input_tokens` too."""


def labelled_words(table: pa.Table, tags: tuple[str, ...]) -> tuple[pa.DictionaryArray, np.ndarray]:
    """The words and labels of `words_of_rows`, from a few columns: one entry for each labelled word.

    Raises:
        ValueError: a tag is not among `tags`.
    """
    flat = {name: one_array(table.column(name)) for name in table.column_names}
    lengths = list_lengths(flat[schema.LABELS])
    label = _codes(flat[schema.LABELS].flatten(), (*tags, schema.IGN))
    at = np.flatnonzero(label < len(tags))
    row = np.repeat(np.arange(table.num_rows), lengths)[at]
    if is_encoded(table):
        return flat[schema.INPUT_TOKENS].flatten().take(pa.array(at)), label[at]
    ids = pc.fill_null(flat[schema.WORD_IDS].flatten(), -1).to_numpy(zero_copy_only=False)[at]
    first = np.ones(len(at), dtype=bool)  # of the labelled tokens of a word
    first[1:] = (ids[1:] != ids[:-1]) | (row[1:] != row[:-1])
    place = _place_of_words(flat, _first_windows(flat[schema.SOURCE], flat[schema.SOURCE_ROW]), row[first], ids[first])
    return flat[schema.WORDS].flatten().take(pa.array(place)), label[at][first]


def is_encoded(table: pa.Table) -> bool:
    """Whether the input of these rows of scores/ was pre-encoded: their words are not known."""
    return table.num_rows > 0 and table.column(schema.WORD_IDS).null_count == table.num_rows


def words_of_rows(
    table: pa.Table, tags: tuple[str, ...], by: dict[str, pa.Array], output: str, unlabelled: bool = False
) -> Words:
    """The labelled tokens of some rows of scores/: strings as dictionaries, the windows of a row one after another.

    by: slice columns, a string for each row of the table. output: whose rows they are. unlabelled: also the first token
    of each word that has no label; of pre-encoded input, whose words are not known, there are none.

    Raises:
        ValueError: a tag is not among `tags`.
    """
    flat = {name: one_array(table.column(name)) for name in COLUMNS}
    lengths = list_lengths(flat[schema.LABELS])
    starts = offsets_of(lengths)
    label = _codes(flat[schema.LABELS].flatten(), (*tags, schema.IGN))
    first = _first_windows(flat[schema.SOURCE], flat[schema.SOURCE_ROW])
    labelled = label < len(tags)
    at = np.flatnonzero(labelled)
    if unlabelled:
        at = np.union1d(at, _unlabelled(flat[schema.WORD_IDS], labelled, lengths, first))
        label = np.where(labelled, label, np.int32(-1))
    row = np.repeat(np.arange(table.num_rows), lengths)[at]
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
    entropy = None
    if schema.ENTROPY in table.column_names:
        entropy = one_array(table.column(schema.ENTROPY)).flatten().to_numpy(zero_copy_only=False)[at]
    words = Words(
        tags=tags,
        offsets=offsets_of(np.bincount(sequence, minlength=len(base))),
        output=pa.repeat(pa.scalar(output), len(base)),
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
        predicted=_codes(flat[schema.PREDICTED_LABEL].flatten(), tags)[at],
        second=_codes(flat[schema.SECOND_LABEL].flatten(), tags)[at],
        loss=floats(schema.LOSS),
        predicted_prob=floats(schema.PREDICTED_PROB),
        second_prob=floats(schema.SECOND_PROB),
        probs=probs,
        entropy=entropy,
        by={name: values.take(pa.array(base)) for name, values in by.items()},
    )
    return _in_order(words)


def _codes(values: pa.DictionaryArray, names: tuple[str, ...]) -> np.ndarray:
    """Position of each string among `names`, as int32; -1 where it is null."""
    codes = {name: code for code, name in enumerate(names)}
    strings = values.dictionary.to_pylist()
    if unknown := [string for string in strings if string not in codes]:
        raise ValueError(f"it has the tag {unknown[0]!r}, which is not in _run.json")
    table = np.array([*(codes[string] for string in strings), -1], dtype=np.int32)
    return table[pc.fill_null(values.indices, len(strings)).to_numpy(zero_copy_only=False)]


def _first_windows(source: pa.DictionaryArray, source_row: pa.Array) -> np.ndarray:
    """Which rows of the table begin a row of the input: its windows follow one another."""
    return first_windows(source.indices.to_numpy(), source_row.to_numpy())


def _unlabelled(word_ids: pa.ListArray, labelled: np.ndarray, lengths: np.ndarray, first: np.ndarray) -> np.ndarray:
    """`unlabelled_words`; none in pre-encoded input, whose words are not known."""
    if word_ids.null_count:
        return np.zeros(0, dtype=np.int64)
    ids = pc.fill_null(word_ids.flatten(), NO_WORD).to_numpy(zero_copy_only=False)
    return unlabelled_words(ids, labelled, lengths, first)


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
    run = (np.cumsum(ends) - 1)[at]
    word_index = ids[at].astype(np.int32)
    word = flat[schema.WORDS].flatten().take(pa.array(_place_of_words(flat, first, row, word_index)))
    return word_index, np.diff(np.flatnonzero(ends))[run].astype(np.int32), word


def _place_of_words(flat: dict[str, pa.Array], first: np.ndarray, row: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Where among all words those of some tokens stand. first: which rows begin a row of the input. row, index: of each
    token, its row and the index of its word."""
    # Later windows of a very long row have no words of their own: those of its first window serve.
    lengths = list_lengths(flat[schema.WORDS])
    base = np.flatnonzero(first)
    own = np.where(lengths > 0, np.arange(len(lengths)), base[np.cumsum(first) - 1])
    return offsets_of(lengths)[:-1][own[row]] + index


def _in_order(words: Words) -> Words:
    """Words by their index in each sequence: windows follow one another, but nothing promises that their words do."""
    later = np.diff(words.word_index) >= 0
    later[words.offsets[1:-1][(words.offsets[1:-1] > 0) & (words.offsets[1:-1] < len(words))] - 1] = True
    if later.all():
        return words
    return take_words(words, np.lexsort((words.token_index, words.window, words.word_index, words.sequence)))
