"""Sentences with their neighbours around them: the model sees both, and what it says of the sentence is kept.

The neighbours of a row are the rows next to it of the same document that can be scored; a document never goes on in
another file. Their tokens are put before and behind those of the row, without special tokens between. Where that is
more than the model takes, each side gets half of the room (the left one an odd token), or more of it if the other side
needs less, and what is next to the row is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.inputs.validate import Chunk
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array, positions
from tokloss_ray.schema import ERRORS_SCHEMA
from tokloss_ray.scoring.stages.row_tokenizer import NO_WORD


class Context(NamedTuple):
    """How much of its document stands on each side of a row: so many sentences, or so many tokens; one of them is 0."""

    sentences: int
    tokens: int

    @property
    def rows(self) -> int:
        """Neighbours on each side that suffice: each has a token at least."""
        return max(self.sentences, self.tokens)


class Surrounded(NamedTuple):
    """Rows with their context.

    Attributes:
        at: [T] flat positions of the tokens of all sequences.
        lengths: [rows], tokens of each sequence.
        own: [T] bool, whether a token is of the row itself.
    """

    at: np.ndarray
    lengths: np.ndarray
    own: np.ndarray


def surround(
    context: Context, document: np.ndarray, words: np.ndarray, lengths: np.ndarray, chosen: slice, most: int
) -> Surrounded:
    """Some consecutive rows with their context.

    Args:
        document: [rows], equal for rows next to each other that are of one document.
        words: [tokens], NO_WORD for special tokens.
        lengths: [rows], tokens of each row.
        chosen: the rows to be surrounded.
        most: tokens that a sequence may have; none of the chosen rows has more.
    """
    starts = offsets_of(lengths)
    body = np.flatnonzero(words != NO_WORD)
    edges = np.searchsorted(body, starts)  # where in `body` each row begins, and the end
    row = np.arange(len(lengths))[chosen]
    first, last = _ends_of_runs(document)
    if context.sentences:
        low = edges[np.maximum(row - context.sentences, first[row])]
        high = edges[np.minimum(row + context.sentences, last[row]) + 1]
    else:
        low = np.maximum(edges[row] - context.tokens, edges[first[row]])
        high = np.minimum(edges[row + 1] + context.tokens, edges[last[row] + 1])
    left, right = edges[row] - low, high - edges[row + 1]
    has_words = edges[row + 1] > edges[row]
    room = np.where(has_words, most - lengths[row], 0)
    left = np.minimum(left, np.maximum((room + 1) // 2, room - right))
    right = np.minimum(right, room - left)
    begin, end = starts[row], starts[row + 1]
    inner = np.where(has_words, body[np.minimum(edges[row], max(len(body) - 1, 0))] if len(body) else end, end)
    outer = np.where(has_words, body[np.maximum(edges[row + 1] - 1, 0)] + 1 if len(body) else end, end)
    # The tokens of the neighbours lie apart, between special tokens of their own: they are numbered behind all others.
    total = len(words)
    parts = np.stack([begin, total + edges[row] - left, inner, total + edges[row + 1], outer], axis=1)
    sizes = np.stack([inner - begin, left, outer - inner, right, end - outer], axis=1)
    at = np.concatenate([np.arange(total), body])[positions(parts.ravel(), sizes.ravel())]
    own = np.repeat(np.tile([True, False, True, False, True], len(row)), sizes.ravel())
    return Surrounded(at, sizes.sum(axis=1), own)


def _ends_of_runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each value the first and the last place of the run of equal values that it is in."""
    n = len(values)
    begins = np.append(True, values[1:] != values[:-1])[:n]
    first = np.maximum.accumulate(np.where(begins, np.arange(n), 0))
    stops = np.append(np.flatnonzero(begins)[1:], n) if n else np.zeros(0, dtype=np.int64)
    return first, (stops - 1)[np.cumsum(begins) - 1] if n else first


def documents_of(rows: pa.Table) -> np.ndarray:
    """[rows] int64: the document of each row, by number. A row that does not say is a document by itself."""
    part = one_array(rows.column(schema.FILE_PART)).to_numpy()
    named = one_array(rows.column(schema.DOCUMENT))
    begins = np.ones(rows.num_rows, dtype=bool)
    if rows.num_rows:
        other = pc.fill_null(pc.not_equal(named.slice(1), named.slice(0, len(named) - 1)), True)
        begins[1:] = (part[1:] != part[:-1]) | other.to_numpy(zero_copy_only=False)
    return np.cumsum(begins)


class Portion(NamedTuple):
    """Rows to encode: those from `start` to `stop` of `rows`, the others being neighbours; the rows of errors/ up to
    the last of them; and how many rows, good and bad, were read for it."""

    rows: pa.Table
    start: int
    stop: int
    errors: pa.Table
    read: int


def portions(
    chunks: Iterable[Chunk],
    sources: Sequence[str],
    count: int,
    before: pa.Table | None,
    after: Callable[[], pa.Table | None],
) -> Iterator[Portion]:
    """Chunks of a unit, each with `count` rows of those before and behind it.

    sources: the files of the unit. before, after: rows of the same files next to the unit's own, if it has not all.
    """
    held: list[pa.Table] = []
    errors: list[pa.Table] = []
    read = 0

    def portion(own: pa.Table, behind: pa.Table, last: bool) -> Portion:
        nonlocal errors, read, before
        front = own.slice(0, 0) if before is None else before
        found = pa.concat_tables([ERRORS_SCHEMA.empty_table(), *errors])
        mine = np.ones(found.num_rows, dtype=bool) if last else _up_to_last(found, own, sources)
        made = Portion(
            pa.concat_tables([front, own, behind]),
            front.num_rows,
            front.num_rows + own.num_rows,
            found.filter(pa.array(mine)),
            read,
        )
        errors, read = [found.filter(pa.array(~mine))], 0
        seen = pa.concat_tables([front, own])
        before = seen.slice(max(0, seen.num_rows - count))
        return made

    for chunk in chunks:
        held.append(chunk.rows)
        errors.append(chunk.errors)
        read += chunk.rows.num_rows + chunk.errors.num_rows
        rows = pa.concat_tables(held)
        if rows.num_rows > count:
            split = rows.num_rows - count
            yield portion(rows.slice(0, split), rows.slice(split), last=False)
            rows = rows.slice(split)
        held = [rows]
    if held:
        rows, behind = pa.concat_tables(held), after()
        yield portion(rows, rows.slice(0, 0) if behind is None else behind, last=True)


def _up_to_last(errors: pa.Table, own: pa.Table, sources: Sequence[str]) -> np.ndarray:
    """[errors] bool: which rows of errors/ stand before the last of some rows."""
    parts = pc.index_in(one_array(errors.column(schema.SOURCE)), pa.array(sources, pa.string())).to_numpy()
    numbers = one_array(errors.column(schema.SOURCE_ROW)).to_numpy()
    part, number = (own.column(name)[-1].as_py() for name in (schema.FILE_PART, schema.SOURCE_ROW))
    return (parts < part) | ((parts == part) & (numbers <= number))


def without_context(sequences: pa.Table) -> pa.Table:
    """Scored sequences without the tokens of their neighbours."""
    column = one_array(sequences.column(schema.OWN))
    own = column.flatten()
    sizes = list_lengths(column)
    row = np.repeat(np.arange(len(sizes)), sizes)[own.to_numpy(zero_copy_only=False)]
    offsets = offsets_of(np.bincount(row, minlength=len(sizes)))
    made = {}
    for field in sequences.schema:
        values = one_array(sequences.column(field.name))
        of_tokens = field.name in schema.OF_TOKENS and not values.null_count
        made[field.name] = list_array(values.flatten().filter(own), offsets) if of_tokens else values
    del made[schema.OWN]
    return pa.table(made)
