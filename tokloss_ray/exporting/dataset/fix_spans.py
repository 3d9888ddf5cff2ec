"""Corrected tags back into labelled spans of text: spans that nobody decided on stay as they are, in every field.

Words and tags of a row are made of its text and spans as `score` made them. Where an entity has changed, the spans on
its words go, and new ones come, written like others of the file (`span_style.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.dataset.fix_rows import Fix, Seen, Tags, Wanted, as_text, json_objects, value_span
from tokloss_ray.exporting.dataset.span_style import Entity, Style, learn, raw_spans, type_of, with_entities
from tokloss_ray.inputs.format import RawChunk
from tokloss_ray.inputs.jsonl import checked, json_table
from tokloss_ray.inputs.nested import with_nested
from tokloss_ray.inputs.span_columns import MADE_TAGS, MADE_WORDS
from tokloss_ray.inputs.span_shapes import LABELS
from tokloss_ray.inputs.spans import to_words
from tokloss_ray.inputs.unit import Columns, RowRules
from tokloss_ray.ragged import one_array
from tokloss_ray.tags.schemes import BILOU, IO, IOB1, IOB2, IOBES, OUTSIDE, TagSet, read_tag_set
from tokloss_ray.tags.sentence_spans import spans_of

Row = dict[str, Any]
Spelling = tuple[str, str, str]
"""A scheme, its prefixes, and what stands between prefix and type."""
_PREFIXES = {IOB2: "BI", IOB1: "BI", IO: "I", IOBES: "BIES", BILOU: "BILU"}


@dataclass(frozen=True)
class Decided:
    """What corrections say of the rows of a file.

    Attributes:
        wanted, fix: as in `fix_rows`.
        agrees: (source_row, id, tags) -> whether words that change have the tags with which they were exported.
        tags: all tags that words have had or get.
        seen: gets the tags that words of the file may have.
    """

    wanted: Wanted
    fix: Fix
    agrees: Callable[[int, str | None, Tags], bool]
    tags: tuple[str, ...]
    seen: Seen


def fix_span_json(data: bytes, columns: Columns, decided: Decided) -> bytes | None:
    """JSON lines, or an array: in the objects that change, the value of the column of spans is replaced."""
    assert columns.spans is not None
    name = columns.spans.spans
    assert name is not None
    style = Style()
    for _, _, row in json_objects(data):
        _learn(style, columns, with_nested(row, columns.names), decided)
    pieces, done = [], 0
    for offset, text, row in json_objects(data):
        row = with_nested(row, columns.names)
        id_ = as_text(row.get(columns.example_id)) if columns.example_id else None
        if not decided.wanted(offset, id_):
            continue
        new = _new_value(columns, style, decided, row, offset, id_)
        if new is not None:
            value = json.dumps(new, ensure_ascii=text.isascii())
            start, end = (len(text[:at].encode()) for at in value_span(text, name))
            if name not in row:
                start = end = len(text[: text.rindex("}")].encode())
                value = f", {json.dumps(name)}: {value}"
            pieces += [data[done : offset + start], value.encode()]
            done = offset + end
    return b"".join([*pieces, data[done:]]) if pieces else None


def fix_span_column(table: pa.Table, start: int, columns: Columns, decided: Decided) -> pa.Array | None:
    """The column of spans of a table whose first row has number `start`, with the corrections in it; None if nothing
    changes."""
    assert columns.spans is not None
    name, labels = columns.spans.spans, columns.spans.label_names or ()
    assert name is not None
    column = one_array(table.column(name))
    style = Style()
    for value in column.to_pylist():
        _learn(style, columns, {name: _as_objects(value, labels)}, decided)
    ids = table.column(columns.example_id).cast(pa.string()).to_pylist() if columns.example_id else None
    places = np.arange(table.num_rows)
    values: list[Any] = []
    for number in range(table.num_rows):
        id_ = ids[number] if ids else None
        if not decided.wanted(start + number, id_):
            continue
        row = table.slice(number, 1).to_pylist()[0]
        row[name] = _as_objects(row[name], labels)
        new = _new_value(columns, style, decided, row, start + number, id_)
        if new is not None:
            places[number] = table.num_rows + len(values)
            values.append(_as_stored(new, column.type, labels))
    if not values:
        return None
    return pa.concat_arrays([column, pa.array(values, column.type)]).take(pa.array(places))


def _as_objects(value: Any, names: tuple[str, ...]) -> Any:
    """A value of a column of spans as a list of objects with labels by name."""
    if isinstance(value, dict):
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if names and value is not None:
        value = [{k: names[v] if k in LABELS and isinstance(v, int) else v for k, v in item.items()} for item in value]
    return value


def _as_stored(spans: list[Row], type_: pa.DataType, names: tuple[str, ...]) -> Any:
    """The reverse of `_as_objects`."""
    if names:
        unknown = next((v for item in spans for k, v in item.items() if k in LABELS and v not in names), None)
        if unknown is not None:
            raise Refused(f"a span gets the label {unknown}, which the dataset does not have: {', '.join(names)}")
        spans = [{k: names.index(v) if k in LABELS else v for k, v in item.items()} for item in spans]
    if pa.types.is_struct(type_):
        return {f.name: [item.get(f.name) for item in spans] for f in type_}
    return spans


def _learn(style: Style, columns: Columns, row: Row, decided: Decided) -> None:
    """Look at how the spans of a row are written; `seen` gets the tags that their labels may have."""
    assert columns.spans is not None
    for type_ in learn(style, columns.spans, row):
        for scheme, prefixes, between in _spellings(decided.tags):
            decided.seen.update(_tag_set((scheme, prefixes, between), (type_,)).tags)


def _new_value(columns: Columns, style: Style, decided: Decided, row: Row, number: int, id_: str | None) -> Any:
    """The new value of the column of spans of a row, None if it does not change.

    Raises:
        Refused: the spans do not fit the text, or the corrections not the row.
    """
    assert columns.spans is not None
    assert columns.spans.spans is not None
    if row.get(columns.spans.spans) is None:  # a row without labels
        row = row | {columns.spans.spans: []}
    canonical, problem = checked(columns, row)
    if problem[0]:
        raise Refused(f"a row with corrections cannot be read: {problem[1]}")
    if canonical[columns.spans.spans] is None:
        raise Refused(f"a row with corrections has no spans to correct ({columns.spans.spans} is null): label it first")
    types = [type_of(columns.spans, span) for span in raw_spans(columns.spans, row)]
    spellings = _spellings(decided.tags)
    for spelling in spellings:
        tag_set = _tag_set(spelling, (*types, *style.labels, *_types(decided.tags, spelling)))
        read = _words_and_tags(columns, canonical, tag_set.tags)
        words, tags = (read.column(name)[0].as_py() for name in (MADE_WORDS, MADE_TAGS))
        if decided.agrees(number, id_, tags) or spelling is spellings[-1]:
            break
    new = decided.fix(number, id_, words, tags)
    if new is None:
        return None
    before, after = (spans_of(of, tag_set) for of in (tags, new))
    at = [read.column(name)[0].as_py() for name in schema.WORD_OFFSETS if name in read.column_names]
    starts, ends = at or (list(range(len(words))), list(range(len(words))))  # of words the last one counts
    gone = [Entity(s.start, s.end, starts[s.start], ends[s.end - 1], s.type) for s in before if s not in after]
    come = [Entity(s.start, s.end, starts[s.start], ends[s.end - 1], s.type) for s in after if s not in before]
    return with_entities(style, columns.spans, row, canonical, gone, come)


def _words_and_tags(columns: Columns, row: Row, tags: tuple[str, ...]) -> pa.Table:
    """A canonical row as a table with its words and tags, as `score` reads it.

    Raises:
        Refused: its spans do not fit its text.
    """
    if columns.spans is not None and columns.spans.words == "model":
        raise Refused("apply-fixes cannot split text as a model does (--words model): score it with another --words")
    table = json_table(columns, [row], pa.string())
    rules = cast(RowRules, SimpleNamespace(columns=columns, tags=tags, tokenizer_json=""))
    read = to_words(rules, RawChunk(table, np.zeros(1, dtype=np.int64), []))
    if read.broken:
        raise Refused(f"a row with corrections cannot be read: {read.broken[0]['detail']}")
    return read.table


@lru_cache(maxsize=8)
def _spellings(tags: tuple[str, ...]) -> list[Spelling]:
    """How tags like these may be spelled: several ways where corrections have a few of the model's tags only."""
    others = [tag for tag in tags if tag != OUTSIDE]
    found = read_tag_set((*others, OUTSIDE))
    if others and (found is None or any(tag[0] not in "BIESLU" or tag[1:2] not in ("-", "_") for tag in others)):
        return [(IO, "", "")]
    letters = {tag[0] for tag in others}
    between = next((tag[1] for tag in others), "-")
    return [(scheme, of, between) for scheme, of in _PREFIXES.items() if letters <= set(of)]


def _types(tags: Iterable[str], spelling: Spelling) -> list[str]:
    return [tag[2:] if spelling[1] else tag for tag in tags if tag != OUTSIDE]


@lru_cache(maxsize=64)
def _tag_set(spelling: Spelling, types: tuple[str, ...]) -> TagSet:
    """The tags of some types."""
    scheme, prefixes, between = spelling
    tags = [f"{prefix}{between}{type_}" for type_ in dict.fromkeys(types) for prefix in prefixes or [""]]
    found = read_tag_set((OUTSIDE, *tags), scheme)
    assert found is not None  # a scheme is given
    return found
