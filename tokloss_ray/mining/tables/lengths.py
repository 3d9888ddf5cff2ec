"""Loss and errors by the length of the sequence, the place in it, sub-tokens per word and frequency of the word.

Schema in docs/mining.md. Buckets end at powers of two: 1, 2, 3 to 4, 5 to 8, 9 to 16 and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.tables.grouping import (
    COUNT,
    ERRORS,
    FIGURES,
    MEAN,
    combine_tallies,
    figures_of,
    sorted_by,
    tally,
)
from tokloss_ray.mining.tables.table import FromParts, Table
from tokloss_ray.mining.tables.tokens import WORD, words_combine
from tokloss_ray.mining.words.words import Words

PROPERTY, LOW, HIGH = "property", "low", "high"
LENGTH, POSITION, SUBTOKENS, FREQUENCY = "sequence_length", "position", "subtokens", "word_frequency"
_PROPERTIES = (LENGTH, POSITION, SUBTOKENS, FREQUENCY)
_BUCKETS = pa.array(np.arange(64), pa.int8())
_UNKNOWN = 63  # sub-tokens of pre-encoded input


def bucket(values: np.ndarray) -> np.ndarray:
    """Number of the bucket of positive integers: k for 2^(k-1) < value <= 2^k, 0 for 1."""
    return np.frexp(np.maximum(values, 1) - 0.5)[1].astype(np.int64)


def lengths_partial(words: Words) -> pa.Table:
    """Losses by bucket of three properties: labelled words of the sequence, place of the word, its sub-tokens."""
    codes = {
        LENGTH: bucket(np.diff(words.offsets))[words.sequence],
        POSITION: bucket(words.word_index + 1),
        SUBTOKENS: np.where(words.num_subtokens > 0, bucket(words.num_subtokens), _UNKNOWN),
    }
    # One pass over the words for all of them; what is then summed up are a few hundred rows.
    joint = tally(words, {f"_{name}": (code, _BUCKETS) for name, code in codes.items()})[0]
    return lengths_combine([_by_one(joint, name, list(words.by)) for name in codes], list(words.by))


def lengths_combine(parts: Sequence[pa.Table], by: Sequence[str] = ()) -> pa.Table:
    """Partials as one partial."""
    return combine_tallies(parts, [*by, PROPERTY, "bucket"])


def lengths_merge(parts: Sequence[pa.Table], words_parts: Sequence[pa.Table] = (), by: Sequence[str] = ()) -> pa.Table:
    """property, low, high, count, mean, sum, max, std, errors, error_rate; from `low` to `high`, both included.

    words_parts: partials of `words_partial`, for the property `word_frequency`: how often the word is labelled in the
    whole corpus (in the slice, where there are slices).
    """
    both = [*parts, _frequencies(words_combine(words_parts, by), by)] if words_parts else list(parts)
    tallied = lengths_combine(both, by)
    k = tallied.column("bucket").to_numpy().astype(np.int64)
    figures = figures_of(tallied)
    rate = tallied.column(ERRORS).to_numpy() / np.maximum(tallied.column(COUNT).to_numpy(), 1)
    place = [_PROPERTIES.index(name) for name in tallied.column(PROPERTY).to_pylist()]
    table = pa.table(
        {name: tallied.column(name) for name in (*by, PROPERTY)}
        | {LOW: pa.array(np.where(k == 0, 1, (1 << np.maximum(k - 1, 0)) + 1)), HIGH: pa.array(1 << k)}
        | figures
        | {"error_rate": pa.array(rate), "_place": pa.array(place, pa.int8())}
    )
    return sorted_by(table, by, [("_place", "ascending"), (LOW, "ascending")]).drop_columns(["_place"])


def _by_one(joint: pa.Table, name: str, by: Sequence[str]) -> pa.Table:
    """A tally by several properties as one by a single property, where it is known."""
    key = f"_{name}"
    known = joint.filter(pc.not_equal(joint.column(key), _UNKNOWN))
    of_one = combine_tallies([known.select([*by, key, *FIGURES])], [*by, key])
    columns = {column: of_one.column(column) for column in by}
    columns[PROPERTY] = pa.repeat(pa.scalar(name, pa.string()), of_one.num_rows)
    columns["bucket"] = of_one.column(key)
    return pa.table(columns | {column: of_one.column(column) for column in FIGURES})


def _frequencies(pairs: pa.Table, by: Sequence[str]) -> pa.Table:
    """Words by the bucket of their count, as a partial."""
    whole = combine_tallies([pairs], [*by, WORD])
    columns = {name: whole.column(name) for name in by}
    columns[PROPERTY] = pa.repeat(pa.scalar(FREQUENCY, pa.string()), whole.num_rows)
    columns["bucket"] = pa.array(bucket(whole.column(COUNT).to_numpy()), pa.int8())
    columns |= {name: whole.column(name) for name in FIGURES}
    return lengths_combine([pa.table(columns)], by)


LENGTHS = Table(
    name="lengths",
    title="Loss and errors by length",
    shown=(PROPERTY, LOW, HIGH, COUNT, MEAN, "error_rate"),
    partial=lambda part, settings: lengths_partial(part.words),
    combine=lambda parts, settings: lengths_combine(parts, settings.by),
    final=lambda partials, settings: lengths_merge([partials["lengths"]], [partials["words"]], settings.by),
    from_parts=FromParts(
        of="words",
        portion=lambda part, settings: _frequencies(part, settings.by),
        combine=lambda parts, settings: lengths_combine(parts, settings.by),
        final=lambda rows, partials, settings: lengths_merge([partials["lengths"], rows], by=settings.by),
    ),
)
