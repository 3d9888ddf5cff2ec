"""The labelled words of some sequences, flat: what every mining table is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.ragged import list_array, offsets_of, positions

if TYPE_CHECKING:
    from tokloss_ray.tags.schemes import Spans

NO_STRING = "?"
"""Stands in a text for a token id that the tokenizer has no string for (in pre-encoded input it is a word too)."""


@dataclass(frozen=True)
class Words:
    """N words of S sequences, in the order of sequence and word: those that are labelled, unless others are asked for.

    A word is what carries a label: the token that has it (the first of its sub-tokens), joined with the word as given.
    With `--label-all-subtokens` the first labelled token speaks for its word. A row that was scored in several windows
    is one sequence again here, so that an entity is never cut by a window.

    The same form also holds all labelled tokens of the sequences, for tables over tokens; the two differ only with
    `--label-all-subtokens`.

    Attributes:
        tags: the model's tags by code, C of them.
        offsets: [S + 1] int64, where the words of each sequence begin.
        output: [S] strings, the output that each sequence is of, as it was given.
        example_id, source: [S] strings; source_row: [S] int64.
        by: columns that tables are sliced by, each [S] strings, null where the value is null.
        token_index: [N] int32, position of the token in its window; window: [N] int32, 0 for short sequences.
        word_index: [N] int32, index of the word in its row; for pre-encoded input, where words are not known, the
            number of the labelled token in its row.
        token: [N] strings, dictionary-encoded, as the tokenizer spells it (null for an id it does not use); word: [N]
            strings, the token's where the input was pre-encoded.
        num_subtokens: [N] int32, tokens of the word that the window shows; 0 for pre-encoded input.
        label, predicted, second: [N] int32 codes; label and second are -1 where there is none.
        loss, predicted_prob, second_prob: [N] float32.
        probs: [N, C] float32, or None without `--keep-probs`; entropy: [N] float32, or None where it was not kept.
    """

    tags: tuple[str, ...]
    offsets: np.ndarray
    output: pa.Array
    example_id: pa.Array
    source: pa.Array
    source_row: np.ndarray
    token_index: np.ndarray
    window: np.ndarray
    word_index: np.ndarray
    token: pa.DictionaryArray
    word: pa.DictionaryArray
    num_subtokens: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    second: np.ndarray
    loss: np.ndarray
    predicted_prob: np.ndarray
    second_prob: np.ndarray
    probs: np.ndarray | None = None
    entropy: np.ndarray | None = None
    by: dict[str, pa.Array] = field(default_factory=dict)

    @cached_property
    def spans(self) -> dict[tuple[str, str, bool], tuple[Spans, Spans]]:
        """What `spans.both_spans` has read of these words: half a dozen tables ask for the same."""
        return {}

    @cached_property
    def sequence(self) -> np.ndarray:
        """[N] int64: the sequence of each word."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def __len__(self) -> int:
        """N."""
        return len(self.label)


KEY = ("output", "example_id", "source", "source_row")
"""The columns by which rows of a table name a row of scores/. Source and row alone are not enough: several outputs may
be of files of the same names."""
_ABOUT_WORDS = tuple(f.name for f in fields(Words) if f.name not in ("tags", "offsets", "by", *KEY))


def key_columns(words: Words, sequence: np.ndarray | pa.Array) -> dict[str, pa.Array]:
    """The columns `KEY` of some sequences, by their numbers."""
    at = sequence if isinstance(sequence, pa.Array) else pa.array(sequence)
    values = (words.output, words.example_id, words.source, pa.array(words.source_row, pa.int64()))
    return {name: value.take(at) for name, value in zip(KEY, values, strict=True)}


def take_words(words: Words, at: np.ndarray) -> Words:
    """Some of the words, [n] positions in the order of sequences; all sequences stay, if without words."""
    counts = np.bincount(words.sequence[at], minlength=len(words.offsets) - 1)
    return replace(words, offsets=offsets_of(counts), **_taken(words, _ABOUT_WORDS, at))


def take_sequences(words: Words, order: np.ndarray) -> Words:
    """Some sequences, [n] positions in any order, with their words."""
    lengths = np.diff(words.offsets)[order]
    at = positions(words.offsets[:-1][order], lengths)
    return replace(
        words,
        offsets=offsets_of(lengths),
        by={name: values.take(pa.array(order)) for name, values in words.by.items()},
        **_taken(words, KEY, order),
        **_taken(words, _ABOUT_WORDS, at),
    )


def _taken(words: Words, names: Sequence[str], at: np.ndarray) -> dict[str, Any]:
    """Columns at some positions."""
    columns = {name: getattr(words, name) for name in names}
    chosen = pa.array(at)
    return {
        name: values if values is None else values.take(chosen) if isinstance(values, pa.Array) else values[at]
        for name, values in columns.items()
    }


def first_tokens(tokens: Words) -> Words:
    """Of labelled tokens, the first of each word: the words. The same object if each word has one labelled token."""
    same = np.flatnonzero(tokens.word_index[1:] == tokens.word_index[:-1]) + 1
    same = same[~np.isin(same, tokens.offsets)]  # the first word of a sequence follows none of its own
    if not len(same):
        return tokens
    first = np.ones(len(tokens), dtype=bool)
    first[same] = False
    return take_words(tokens, np.flatnonzero(first))


def concat_words(parts: Sequence[Words]) -> Words:
    """Words of several files, one after another; all with the same tags and slice columns. At least one."""
    if len(parts) == 1:
        return parts[0]

    def joined(arrays: list[Any]) -> Any:
        if arrays[0] is None:
            return None
        # Arrow unifies the dictionaries of the parts.
        return pa.concat_arrays(arrays) if isinstance(arrays[0], pa.Array) else np.concatenate(arrays)

    names = (*KEY, *_ABOUT_WORDS)
    columns: dict[str, Any] = {name: joined([getattr(part, name) for part in parts]) for name in names}
    return replace(
        parts[0],
        offsets=offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        by={name: pa.concat_arrays([part.by[name] for part in parts]) for name in parts[0].by},
        **columns,
    )


def no_words(tags: tuple[str, ...], by: Sequence[str] = (), probs: bool = False, entropy: bool = False) -> Words:
    """No sequences at all. by: columns to slice by. probs, entropy: as if probabilities of all tags, or entropies, were
    kept."""
    strings, codes = (
        pa.array([], pa.string()),
        pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string())),
    )
    index, figure = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return Words(
        tags=tags,
        offsets=np.zeros(1, np.int64),
        output=strings,
        example_id=strings,
        source=strings,
        source_row=np.zeros(0, np.int64),
        token_index=index,
        window=index,
        word_index=index,
        token=codes,
        word=codes,
        num_subtokens=index,
        label=index,
        predicted=index,
        second=index,
        loss=figure,
        predicted_prob=figure,
        second_prob=figure,
        probs=np.zeros((0, len(tags)), np.float32) if probs else None,
        entropy=figure if entropy else None,
        by=dict.fromkeys(by, strings),
    )


def words_as_text(words: pa.DictionaryArray, offsets: np.ndarray) -> pa.Array:
    """Runs of words as one string each, joined by spaces. words: [N]; offsets: [R + 1], where the runs begin."""
    known = pc.fill_null(words.cast(pa.string()), NO_STRING)
    return pc.binary_join(list_array(known, offsets), " ")
