"""Rows of two outputs that have nothing in common but their ids, some at a time.

Each output is read once. Where both together are too large, their rows go to disk, divided by a hash of the id, and
come back part by part: equal ids are in the same part. Only what is compared is kept of a word.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.diff.compared import ComparedOutput, Pairs
from tokloss_ray.mining.words.words import KEY, Words
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array
from tokloss_ray.spill import Spill

_BATCHES = 8
"""A part holds so many times the tokens that are compared at once: ids come without words, and cost little."""
_INTEGERS = ("word_index", "label", "predicted")


def rows_by_id(a: ComparedOutput, b: ComparedOutput, batch_tokens: int) -> Pairs:
    """The rows of both outputs whose ids have the same hash.

    Raises:
        JobFailed: a file is missing or damaged, or the disk for temporary files is full.
    """
    tokens = sum(file.tokens for side in (a, b) for file in side.files)
    parts = max(1, -(-tokens // (_BATCHES * batch_tokens)))
    for ours, theirs in _parts(a, b, parts):
        yield ours, theirs, (ours.example_id, theirs.example_id)


def _parts(a: ComparedOutput, b: ComparedOutput, parts: int) -> Iterator[tuple[Words, Words]]:
    if parts == 1:
        yield a.joined(a.read(a.files)), b.joined(b.read(b.files))
        return
    with ExitStack() as stack:
        spills = [stack.enter_context(Spill(parts)) for _ in range(2)]
        for side, spill in zip((a, b), spills, strict=True):
            for words in side.read(side.files):
                spill.add(_to_table(words), _part_of(words, parts))
        for part in range(parts):
            tables = [spill.read(part) for spill in spills]
            ours, theirs = (
                side.joined([] if table is None else [_from_table(table, side)])
                for side, table in zip((a, b), tables, strict=True)
            )
            yield ours, theirs


def _part_of(words: Words, parts: int) -> np.ndarray:
    hashes = [zlib.crc32(name.encode()) for name in words.example_id.to_pylist()]
    return np.array(hashes, dtype=np.int64) % parts


def _to_table(words: Words) -> pa.Table:
    """A row a sequence: what names it, what it is sliced by, and lists of what is compared of its words."""
    flat = {name: getattr(words, name) for name in (*_INTEGERS, "loss")} | {"word": words.word.cast(pa.string())}
    return pa.table(
        {name: getattr(words, name) for name in KEY}
        | {f"by.{name}": values for name, values in words.by.items()}
        | {name: list_array(values, words.offsets) for name, values in flat.items()}
    )


def _from_table(table: pa.Table, side: ComparedOutput) -> Words:
    """The words again; what is not compared of them is empty."""
    columns = {name: one_array(table.column(name)) for name in table.column_names}
    word = columns["word"].flatten().dictionary_encode()
    number = len(word)
    nothing, no_figure = np.zeros(number, np.int32), np.zeros(number, np.float32)
    return Words(
        tags=side.scores.tags,
        offsets=offsets_of(list_lengths(columns["word"])),
        output=columns["output"],
        example_id=columns["example_id"],
        source=columns["source"],
        source_row=columns["source_row"].to_numpy(),
        token_index=nothing,
        window=nothing,
        token=word,
        word=word,
        num_subtokens=nothing,
        second=nothing,
        predicted_prob=no_figure,
        second_prob=no_figure,
        loss=columns["loss"].flatten().to_numpy(),
        by={name: columns[f"by.{name}"] for name in side.by},
        **{name: columns[name].flatten().to_numpy() for name in _INTEGERS},
    )
