"""Words and tags from text and labelled spans, whatever the format of the file they were read from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from tokloss_ray import schema
from tokloss_ray.inputs.format import RawChunk
from tokloss_ray.inputs.span_columns import MADE_TAGS, MADE_WORDS
from tokloss_ray.inputs.span_shapes import canonical_table, spans_column
from tokloss_ray.inputs.text_words import MODEL, Pieces, Texts, code_points, split, words_of
from tokloss_ray.inputs.unit import Columns, RowRules, SpanColumns
from tokloss_ray.ragged import any_per_row, list_array, list_lengths, offsets_of, one_array
from tokloss_ray.tags.schemes import IO, OUTSIDE, Spans, TagSet, read_tag_set, write_spans

_SHOWN = 60
"""Characters of a span that a message shows."""


class Found(NamedTuple):
    """S spans of some texts.

    row, start, end: of each its text, and where it begins and ends in this, as given, [S] int64. first, last: its first
    and last word among all words, [S] int64. wrong, cuts, overlaps: which are outside of their text or have no word in
    it, cut a word, have a word that another has, [S] bool.
    """

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    last: np.ndarray
    wrong: np.ndarray
    cuts: np.ndarray
    overlaps: np.ndarray


class Split(NamedTuple):
    """Texts, or lists of words, and their words: the characters (None of lists), the pieces, the words as strings."""

    texts: Texts | None
    offsets: np.ndarray
    pieces: Pieces
    words: pa.Array


def to_words(rules: RowRules, raw: RawChunk) -> RawChunk:
    """Rows of text and spans as rows of words and tags; those of which a span does not fit join the broken ones."""
    columns = rules.columns.spans
    assert columns is not None
    table = canonical_table(columns, raw.table)
    parts = split_texts(columns, table, rules)
    spans = spans_column(columns, table)
    offsets, flat = offsets_of(list_lengths(spans)), spans.flatten()
    found = find_words(parts, flat, offsets)
    reasons = _reasons(columns, table, parts, found, offsets)
    fine = ~(found.wrong | found.overlaps)
    labels = mapped(pc.struct_field(flat, "label"), columns.label_map)
    tags = pa.nulls(len(parts.words), pa.string())
    if columns.spans is not None:
        tags = tags_of(_tag_set(rules.tags), parts, _some(found, fine), labels.filter(pa.array(fine)))
    of_words = offsets_of(parts.pieces.counts)
    made = {MADE_WORDS: list_array(parts.words, of_words)}
    if columns.spans is not None:  # text whose spans are null has no labels
        made[MADE_TAGS] = list_array(tags, of_words, _is_null(spans))
    if parts.texts is not None:
        begin = np.repeat(parts.offsets[:-1], parts.pieces.counts)
        for name, at in zip(schema.WORD_OFFSETS, (parts.pieces.starts, parts.pieces.ends), strict=True):
            made[name] = list_array((at - begin).astype(np.int32), of_words)
    kept = {name: table.column(name) for name in table.column_names if name not in made}
    good = reasons == ""
    broken = [_broken(rules, table, parts, found, i, reasons[i], raw) for i in np.flatnonzero(~good).tolist()]
    new = pa.table(kept | made)
    return RawChunk(new.filter(pa.array(good)), raw.source_rows[good], [*raw.broken, *broken], raw.schema)


def split_texts(columns: SpanColumns, table: pa.Table, rules: RowRules) -> Split:
    """The words of a canonical table's texts."""
    column = one_array(table.column(columns.text))
    if columns.in_words:
        counts, words = list_lengths(column), column.flatten()
        at = np.arange(len(words))
        return Split(None, offsets_of(counts), Pieces(at, at + 1, counts), words)
    texts = code_points(column)
    if columns.tokens is not None:
        tokens = one_array(table.column(columns.tokens))
        counts, items = list_lengths(tokens), tokens.flatten()
        begin = np.repeat(texts.offsets[:-1], counts)
        starts, ends = (_numbers(pc.struct_field(items, name)) + begin for name in ("start", "end"))
        size = len(texts.codes)
        pieces = Pieces(np.clip(starts, 0, size), np.clip(ends, 0, size), counts)
        good = _rows_in_order(texts, starts, ends, counts)
        if not good.all():  # their words do not matter, but those of others must stay in order
            pieces = _without(pieces, good)
    else:
        pieces = split(texts, columns.words, _tokenizer(rules.tokenizer_json) if columns.words == MODEL else None)
    return Split(texts, texts.offsets, pieces, words_of(texts, pieces))


def _rows_in_order(texts: Texts, starts: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which rows have tokens that stand one after another in their text."""
    offsets = offsets_of(counts)
    row = np.repeat(np.arange(len(counts)), counts)
    before = np.append(0, ends)[:-1]
    before[offsets[:-1][counts > 0]] = texts.offsets[:-1][counts > 0]
    bad = (starts < before) | (ends <= starts) | (ends > texts.offsets[1:][row])
    return ~any_per_row(bad, offsets)


def _without(pieces: Pieces, good: np.ndarray) -> Pieces:
    kept = np.repeat(good, pieces.counts)
    return Pieces(pieces.starts[kept], pieces.ends[kept], np.where(good, pieces.counts, 0))


def find_words(parts: Split, flat: pa.Array, offsets: np.ndarray) -> Found:
    """The words that canonical spans cover. offsets: of the spans of each text."""
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    start, end = (_numbers(pc.struct_field(flat, name)) for name in ("start", "end"))
    sizes = np.diff(parts.offsets)[row]
    wrong = (start < 0) | (end > sizes) | (start >= end) | _is_null(pc.struct_field(flat, "label"))
    begin = parts.offsets[:-1][row]
    a, b = begin + np.clip(start, 0, sizes), begin + np.clip(end, 0, sizes)
    wrong |= _says_otherwise(parts, a, b, pc.struct_field(flat, "text"), wrong)
    # Words behind all others, so that a span without a word has some to look at.
    starts, ends = (np.append(at, parts.offsets[-1] + 1) for at in (parts.pieces.starts, parts.pieces.ends))
    first = np.searchsorted(parts.pieces.ends, a, side="right")
    last = np.searchsorted(parts.pieces.starts, b, side="left") - 1
    wrong |= first > last
    cuts = ~wrong & ((a > starts[first]) | (b < ends[last]))
    overlaps = np.zeros(len(row), dtype=bool)
    right = np.flatnonzero(~wrong)
    right = right[np.argsort(first[right], kind="stable")]
    if len(right):
        overlaps[right[1:]] = first[right][1:] <= np.maximum.accumulate(last[right])[:-1]
    return Found(row, start, end, first, last, wrong, cuts, overlaps)


def _says_otherwise(parts: Split, a: np.ndarray, b: np.ndarray, said: pa.Array, wrong: np.ndarray) -> np.ndarray:
    """Which spans say that they cover another text than stands there."""
    if parts.texts is None or said.null_count == len(said):
        return np.zeros(len(a), dtype=bool)
    there = words_of(parts.texts, Pieces(np.minimum(a, b), b, np.zeros(0)))
    differs = pc.fill_null(pc.not_equal(there, said), False).to_numpy(zero_copy_only=False)
    return differs & ~wrong


def mapped(labels: pa.Array, label_map: Sequence[tuple[str, str]]) -> pa.Array:
    """Labels as the model calls them."""
    if not label_map:
        return labels
    names = dict(label_map)
    encoded = pc.dictionary_encode(labels)
    new = [names.get(name, name) for name in encoded.dictionary.to_pylist()]
    return pa.array(new, pa.string()).take(encoded.indices)


def tags_of(tag_set: TagSet, parts: Split, found: Found, labels: pa.Array) -> pa.Array:
    """The tag of each word, in the model's own scheme. A label that is no type of the model gives tags that are none
    of its tags."""
    kind = pc.fill_null(pc.index_in(labels, pa.array(tag_set.types, pa.string())), -1).to_numpy(zero_copy_only=False)
    known = kind >= 0
    order = np.flatnonzero(known)
    order = order[np.argsort(found.first[order], kind="stable")]
    # A word between texts: the last span of one does not touch the first of the next.
    first, last, row = (getattr(found, name)[order] for name in ("first", "last", "row"))
    counts = parts.pieces.counts
    of_text = np.repeat(np.arange(len(counts)), counts)
    spans = Spans(first + row, last + 1 + row, kind[order].astype(np.int64))
    codes = write_spans(spans, len(of_text) + len(counts), tag_set)[np.arange(len(of_text)) + of_text]
    unknown = pc.unique(labels.filter(pa.array(~known)))
    names = pa.array([*tag_set.tags, *(f"B-{label}" for label in unknown.to_pylist())], pa.string())
    strange = pc.index_in(labels, unknown).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(~known).tolist():
        codes[found.first[i] : found.last[i] + 1] = len(tag_set.tags) + int(strange[i])
    return names.take(pa.array(codes))


def _some(found: Found, which: np.ndarray) -> Found:
    return Found(*(values[which] for values in found))


def _reasons(columns: SpanColumns, table: pa.Table, parts: Split, found: Found, offsets: np.ndarray) -> np.ndarray:
    """Of each row the reason for which it is refused, or ""."""
    reasons = np.full(table.num_rows, "", dtype=object)

    def mark(bad: np.ndarray, reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    for name in columns.names:
        if name != columns.spans:
            mark(_is_null(one_array(table.column(name))), "null_field")
    counts = parts.pieces.counts
    if columns.in_words:
        mark(any_per_row(_is_null(parts.words), offsets_of(counts)), "null_field")
    if columns.tokens is not None:
        mark((counts == 0) & (list_lengths(one_array(table.column(columns.tokens))) > 0), "malformed")
    mark(counts == 0, "empty")
    mark(any_per_row(found.wrong, offsets), "wrong_span")
    if not columns.widen:
        mark(any_per_row(found.cuts, offsets), "span_cuts_word")
    mark(any_per_row(found.overlaps, offsets), "overlapping_spans")
    return reasons


def _broken(
    rules: RowRules, table: pa.Table, parts: Split, found: Found, i: int, reason: str, raw: RawChunk
) -> dict[str, Any]:
    """A row that is refused."""
    columns = rules.columns.spans
    assert columns is not None
    row = table.slice(i, 1).to_pylist()[0]
    record = {
        "source_row": int(raw.source_rows[i]),
        "reason": reason,
        "detail": _detail(columns, row, parts, found, i, reason),
        "payload": json.dumps(payload_row(rules.columns, row), ensure_ascii=False, default=str),
    }
    if rules.columns.example_id and row[rules.columns.example_id] is not None:
        record["example_id"] = str(row[rules.columns.example_id])
    return record


def payload_row(columns: Columns, row: dict[str, Any]) -> dict[str, Any]:
    """A row as errors/ shows it: of one with spans the text and the spans, and the tags that were made of them."""
    if columns.spans is None:
        return row
    if columns.spans.spans is None:
        return {k: v for k, v in row.items() if k not in (MADE_WORDS, *schema.WORD_OFFSETS)}
    spans = row[columns.spans.spans]
    said = None if spans is None else [{k: v for k, v in s.items() if k != "text" or v is not None} for s in spans]
    return {k: v for k, v in row.items() if k not in (MADE_WORDS, *schema.WORD_OFFSETS)} | {columns.spans.spans: said}


def _detail(columns: SpanColumns, row: dict[str, Any], parts: Split, found: Found, i: int, reason: str) -> str:
    """What exactly is wrong with one row, for a person."""
    text = row[columns.text]
    if reason == "null_field":
        nulls = [name for name in columns.names if name != columns.spans and row[name] is None]
        return f"{', '.join(nulls)} is null" if nulls else f"{columns.text}[{text.index(None)}] is null"
    if reason == "empty":
        return f"{columns.text} has no words"
    if reason == "malformed":
        return f"{columns.tokens} do not stand one after another in {columns.text}"
    which = {"wrong_span": found.wrong, "span_cuts_word": found.cuts, "overlapping_spans": found.overlaps}[reason]
    at = int(np.flatnonzero((found.row == i) & which)[0])
    number = at - int(np.searchsorted(found.row, i))
    assert columns.spans is not None  # without there is nothing wrong with them
    span = row[columns.spans][number]
    start, end, name = span["start"], span["end"], f"{columns.spans}[{number}]"
    if reason == "wrong_span":
        unit = "words" if columns.in_words else "characters"
        if span["label"] is None:
            return f"{name} has no label"
        if start is None or end is None or not 0 <= start < end <= len(text):
            return f"{name} goes from {start} to {end}, but {columns.text} has {len(text)} {unit}"
        if span["text"] is not None and text[start:end] != span["text"]:
            return (
                f"{name} says that characters {start} to {end} are {_short(span['text'])}, but they are "
                f"{_short(text[start:end])}: offsets must count Unicode code points"
            )
        return f"{name} has no word in it: {_short(text[start:end])}"
    words = parts.words
    if reason == "span_cuts_word":
        first, last = int(found.first[at]), int(found.last[at])
        begin = parts.offsets[i]
        cut = first if begin + start > parts.pieces.starts[first] else last
        return f"{name}, {_short(text[start:end])}, cuts the word {_short(words[cut].as_py())}"
    other = next(
        j
        for j in np.flatnonzero(found.row == i).tolist()
        if j != at and found.first[j] <= found.last[at] and found.first[at] <= found.last[j]
    )
    return f"{columns.spans}[{other - at + number}] and {name}, {_short(text[start:end])}, share a word"


def _short(text: Any) -> str:
    text = " ".join(text) if isinstance(text, list) else text
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _numbers(array: pa.Array) -> np.ndarray:
    return pc.fill_null(array, -1).to_numpy(zero_copy_only=False)


def _is_null(array: pa.Array) -> np.ndarray:
    return array.is_null().to_numpy(zero_copy_only=False)


@lru_cache(maxsize=8)
def _tag_set(tags: tuple[str, ...]) -> TagSet:
    """The model's tags, and behind them those that it lacks of a type: a word that needs one is refused, not given
    another."""
    found = read_tag_set(tags)
    assert found is not None  # the plan refuses others
    if any(tag in found.types for tag in tags):
        return found  # without prefixes
    named = [tag for tag in tags if tag != OUTSIDE]
    letters = dict.fromkeys([*(tag[0] for tag in named), *("" if found.scheme == IO else "BI")])
    more = [f"{letter}{tag[1:]}" for tag in named for letter in letters]
    return read_tag_set(tuple(dict.fromkeys([*tags, *more])), found.scheme) or found


@lru_cache(maxsize=2)
def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)
