"""The windows of a row as one sequence again: which of their tokens stand for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array
from tokloss_ray.schema import IGN

NO_WORD = -1
WINDOWS, PLACES = "windows", "places"


def first_windows(source: np.ndarray, source_row: np.ndarray) -> np.ndarray:
    """[rows] bool: which rows of scores/ begin a row of the input. Its windows follow one another.

    source: codes of the files; source_row: their rows. [rows] each.
    """
    first = np.ones(len(source_row), dtype=bool)
    first[1:] = (source_row[1:] != source_row[:-1]) | (source[1:] != source[:-1])
    return first


def standing_tokens(word_ids: np.ndarray, labelled: np.ndarray, lengths: np.ndarray, first: np.ndarray) -> np.ndarray:
    """[tokens] bool: the tokens of some rows of scores/ that are left where windows are joined.

    Each word stands where it is labelled. A word without a label stands where the smaller of its left and right context
    is largest, which is where it would have been labelled; at the edge towards another window it may be cut, and stands
    elsewhere if it can. Special tokens are those before the first window and after the last one.

    word_ids: [tokens], NO_WORD for special tokens. labelled: [tokens] bool. lengths: tokens of each row, [rows].
    first: `first_windows`, [rows].
    """
    keep = np.ones(len(word_ids), dtype=bool)
    if first.all():
        return keep
    sequence = np.cumsum(first) - 1
    last = np.append(first[1:], True)
    row = np.repeat(np.arange(len(lengths)), lengths)
    at = np.flatnonzero(~(first & last)[row])
    ids, row = word_ids[at], row[at]
    begins = np.ones(len(at), dtype=bool)
    begins[1:] = (ids[1:] != ids[:-1]) | (row[1:] != row[:-1])
    start = np.flatnonzero(begins)
    stop = np.append(start[1:], len(at))
    of_row, word = row[start], ids[start]
    # Where the words of each window begin and end.
    low, high = np.full(len(lengths), len(at)), np.full(len(lengths), -1)
    of_word = np.flatnonzero(ids != NO_WORD)
    np.minimum.at(low, row[of_word], of_word)
    np.maximum.at(high, row[of_word], of_word)
    left, right = start - low[of_row], high[of_row] + 1 - stop
    context = np.minimum(left, right).astype(np.float64)
    context[(right == 0) & ~last[of_row]] = -0.5
    context[(left == 0) & ~first[of_row]] = -1
    context[np.logical_or.reduceat(labelled[at], start)] = np.inf
    stands = np.where(left < 0, first[of_row], (right < 0) & last[of_row])
    runs = np.flatnonzero(word != NO_WORD)
    key = sequence[of_row[runs]] * (int(word.max()) + 1) + word[runs]
    order = np.lexsort((of_row[runs], -context[runs], key))
    best = np.ones(len(order), dtype=bool)
    best[1:] = key[order][1:] != key[order][:-1]
    chosen = runs[order[best]]
    in_row = _in_order(of_row[chosen], np.isposinf(context[chosen]))
    stands[runs[order]] = of_row[runs[order]] == in_row[np.cumsum(best) - 1]
    keep[at] = np.repeat(stands, stop - start)
    return keep


def _in_order(window: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """The window of each word, so that no word stands in an earlier one than a word before it.

    Where windows share most of their words, contexts may say otherwise. Labelled words stay, and the others
    follow them: a window between those of two neighbours has all that stands between these.
    """
    after = np.maximum.accumulate(np.where(labelled, window, -1))
    before = np.minimum.accumulate(np.where(labelled, window, np.iinfo(window.dtype).max)[::-1])[::-1]
    return np.maximum.accumulate(np.clip(window, after, before))


def unlabelled_words(word_ids: np.ndarray, labelled: np.ndarray, lengths: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Positions of the first tokens of the words that have no label, each word once. Arguments: `standing_tokens`."""
    if not len(word_ids) or labelled.all():
        return np.zeros(0, dtype=np.int64)
    begins = np.ones(len(word_ids), dtype=bool)
    begins[1:] = word_ids[1:] != word_ids[:-1]
    begins[offsets_of(lengths)[:-1]] = True
    start = np.flatnonzero(begins)
    start = start[(word_ids[start] != NO_WORD) & ~np.logical_or.reduceat(labelled, start)]
    if not len(start):
        return start
    return start[standing_tokens(word_ids, labelled, lengths, first)[start]]


def join_rows(table: pa.Table) -> pa.Table:
    """Rows of scores/ with the windows of each row of the input as one.

    Of their tokens those that stand for it are left, in order; losses are those of all. Windows stand one after another
    and are all there. Windows of token ids stay apart: which of their tokens are the same is not known.

    Two lists of int32 are added: `WINDOWS`, the window of each token, and `PLACES`, where in it the token stands. Both
    are null if no row of the table has several windows.
    """
    word_ids = one_array(table.column(schema.WORD_IDS))
    source = pc.dictionary_encode(one_array(table.column(schema.SOURCE)))
    codes = source.indices.to_numpy() if len(source) else np.zeros(0, np.int32)
    first = first_windows(codes, table.column(schema.SOURCE_ROW).to_numpy())
    if first.all() or word_ids.null_count:
        none = pa.nulls(table.num_rows, pa.list_(pa.int32()))
        return table.append_column(WINDOWS, none).append_column(PLACES, none)
    lengths = list_lengths(word_ids)
    starts = offsets_of(lengths)
    ids = pc.fill_null(word_ids.flatten(), NO_WORD).to_numpy(zero_copy_only=False)
    labels = one_array(table.column(schema.LABELS)).flatten()
    labelled = pc.not_equal(labels, IGN).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(standing_tokens(ids, labelled, lengths, first))
    row = np.repeat(np.arange(len(lengths)), lengths)
    sequence, base = np.cumsum(first) - 1, np.flatnonzero(first)
    offsets = offsets_of(np.bincount(sequence[row[at]], minlength=len(base)))
    made: dict[str, pa.Array] = {}
    for field in table.schema:
        column = one_array(table.column(field.name))
        if pa.types.is_list(field.type) and field.name != schema.WORDS:
            made[field.name] = list_array(column.flatten().take(pa.array(at)), offsets)
        else:
            made[field.name] = column.take(pa.array(base))
    losses = np.where(labelled, one_array(table.column(schema.LOSS)).flatten().to_numpy(zero_copy_only=False), 0)
    count = np.bincount(sequence[row], weights=labelled, minlength=len(base))
    total = np.bincount(sequence[row], weights=losses, minlength=len(base))
    most = np.maximum.reduceat(np.where(labelled, losses, -np.inf), starts[:-1][base])
    none = count == 0
    figures = {
        schema.TOTAL_LOSS: pa.array(total.astype(np.float32)),
        schema.MEAN_LOSS: pa.array((total / np.maximum(count, 1)).astype(np.float32), mask=none),
        schema.MAX_LOSS: pa.array(most.astype(np.float32), mask=none),
    }
    made |= {name: values for name, values in figures.items() if name in made}
    window = one_array(table.column(schema.WINDOW)).to_numpy()[row[at]]
    made[WINDOWS] = list_array(pa.array(window, pa.int32()), offsets)
    made[PLACES] = list_array(pa.array(at - starts[row[at]], pa.int32()), offsets)
    return pa.table(made)


def at_row_ends(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of rows of scores/ that are cut anywhere, cut again so that the windows of a row stay together."""
    held: list[pa.Table] = []
    for table in tables:
        rows = table.column(schema.SOURCE_ROW).to_numpy()
        sources = table.column(schema.SOURCE)
        cut = table.num_rows
        while cut and rows[cut - 1] == rows[-1] and sources[cut - 1] == sources[-1]:
            cut -= 1
        if cut:
            yield pa.concat_tables([*held, table.slice(0, cut)])
            held = []
        held.append(table.slice(cut))
    if held:
        yield pa.concat_tables(held)
