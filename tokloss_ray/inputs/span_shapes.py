"""Spans as the tools of annotators write them, in one canonical form.

Lists, `[start, end, label]`: spaCy, doccano. Objects with start, end and a label under several names: Prodigy, spaCy,
doccano with relations, Label Studio's JSON-MIN and `datasets`. Label Studio's annotations, of which the first counts
that was not cancelled. Lists that count words, `[first, last, label]`: GLiNER.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.inputs.arrow_types import as_list, is_text, without_views
from tokloss_ray.inputs.unit import SpanColumns
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array

STARTS = ("start", "start_offset", "start_char", "begin")
ENDS = ("end", "end_offset", "end_char")
LABELS = ("label", "labels", "type", "tag", "entity", "entity_group", "entity_type", "class")
"""What spans that are objects call their parts."""
SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", pa.string()), ("text", pa.string())])
TOKEN = pa.struct([("start", pa.int64()), ("end", pa.int64())])


class Unlike(Exception):
    """A value that is not as it should be; the message is its reason, the argument after it the detail."""


def are_spans(value: Any) -> bool:
    """Whether a JSON value is spans of characters."""
    try:
        spans_of(value, "")
    except Unlike as error:
        return error.args[0] == "null_field"
    return True


def are_word_spans(value: Any) -> bool:
    """Whether a JSON value is spans that may count words: lists alone."""
    return isinstance(value, list) and all(_is_triple(item) for item in value)


def are_tokens(value: Any) -> bool:
    """Whether a JSON value is words with the characters at which they begin and end."""
    return isinstance(value, list) and all(
        isinstance(item, dict) and _is_int(item.get("start")) and _is_int(item.get("end")) for item in value
    )


def canonical_row(columns: SpanColumns, row: dict[str, Any]) -> dict[str, Any]:
    """The text, spans and tokens of a JSON row in canonical form.

    Raises:
        Unlike: one of them is not as it should be.
    """
    made: dict[str, Any] = {}
    text = row.get(columns.text)
    if text is not None:
        if columns.in_words and not (isinstance(text, list) and all(isinstance(word, str | None) for word in text)):
            raise Unlike("not_a_string", f"{columns.text} is not a list of strings")
        if not columns.in_words and not isinstance(text, str):
            raise Unlike("not_a_string", f"{columns.text} holds {json.dumps(text)[:100]}")
    made[columns.text] = text
    spans = row.get(columns.spans) if columns.spans else None
    if columns.annotations and isinstance(spans, list) and annotation_of(spans) is None:
        spans = None  # nobody has annotated it
    if columns.spans and spans is not None:
        if columns.in_words and not are_word_spans(spans):
            raise Unlike("malformed", f"{columns.spans} is not a list of [first word, last word, label]")
        spans = spans_of(spans, columns.spans)
        if columns.in_words:
            spans = [span | {"end": span["end"] + 1} for span in spans]
        elif text is not None:
            spans = [_as_code_points(text, span) for span in spans]
    if columns.spans:
        made[columns.spans] = spans
    if columns.tokens is not None:
        tokens = row.get(columns.tokens)
        if tokens is not None and not are_tokens(tokens):
            raise Unlike("malformed", f"{columns.tokens} has a word without start and end")
        made[columns.tokens] = None if tokens is None else [{"start": t["start"], "end": t["end"]} for t in tokens]
    return made


def spans_of(value: Any, name: str) -> list[dict[str, Any]]:
    """Spans in canonical form, in their order; `name` is the column's, for messages.

    Raises:
        Unlike: they are in none of the shapes.
    """
    if not isinstance(value, list):
        raise Unlike("malformed", f"{name} is not a list")
    if are_annotations(value):
        value = [region["value"] for region in regions_of(value, name)]
    return [_span(item, name) for item in value]


def regions_of(annotations: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The regions of the annotation of Label Studio that counts, without those that label no text.

    Raises:
        Unlike: all were cancelled.
    """
    chosen = annotation_of(annotations)
    if chosen is None:
        raise Unlike("null_field", f"{name} has no annotation that was not cancelled")
    return [region for region in chosen.get("result") or [] if is_region(region)]


def are_annotations(value: Any) -> bool:
    """Whether a JSON value is annotations of Label Studio, at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "result" in v for v in value)


def annotation_of(annotations: list[Any]) -> dict[str, Any] | None:
    """The annotation of Label Studio that counts: the first that was not cancelled."""
    return next((item for item in annotations if not (isinstance(item, dict) and item.get("was_cancelled"))), None)


def is_region(region: Any) -> bool:
    """Whether a result of Label Studio labels a part of the text."""
    value = region.get("value") if isinstance(region, dict) else None
    return isinstance(value, dict) and "start" in value and "end" in value and "labels" in value


def _span(item: Any, name: str) -> dict[str, Any]:
    if _is_triple(item):
        return {"start": item[0], "end": item[1], "label": item[2], "text": None}
    if isinstance(item, dict):
        start, end, label = (next((item[key] for key in keys if key in item), None) for keys in (STARTS, ENDS, LABELS))
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        text = item.get("text")
        if _is_int(start) and _is_int(end) and isinstance(label, str):
            return {"start": start, "end": end, "label": label, "text": text if isinstance(text, str) else None}
    raise Unlike("malformed", f"{name} has {json.dumps(item, ensure_ascii=False)[:100]}, which is no span")


def _is_triple(item: Any) -> bool:
    return (
        isinstance(item, (list, tuple))
        and len(item) == 3
        and _is_int(item[0])
        and _is_int(item[1])
        and isinstance(item[2], str)
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_code_points(text: str, span: dict[str, Any]) -> dict[str, Any]:
    """A span that says what it covers, and counts UTF-16 units as JavaScript does, counting code points."""
    marked, start, end = span["text"], span["start"], span["end"]
    if marked is None or text.isascii() or (end <= len(text) and text[start:end] == marked):
        return span
    units = text.encode("utf-16-le")
    if 0 <= start < end and units[2 * start : 2 * end].decode("utf-16-le", "replace") == marked:
        before = len(units[: 2 * start].decode("utf-16-le", "replace"))
        return span | {"start": before, "end": before + len(marked)}
    return span


def of_spans(type_: pa.DataType) -> bool:
    """Whether a type of Arrow holds spans: lists of structs, or structs of lists as `datasets` once wrote them."""
    return _fields(type_) is not None


def of_tokens(type_: pa.DataType) -> bool:
    """Whether a type of Arrow holds words with the characters at which they begin and end."""
    inner = getattr(type_, "value_type", None)
    return inner is not None and pa.types.is_struct(inner) and {"start", "end"} <= {field.name for field in inner}


def _fields(type_: pa.DataType) -> tuple[str, str, str] | None:
    """The names of start, end and label in a type."""
    inner = type_ if pa.types.is_struct(type_) else getattr(type_, "value_type", None)
    if inner is None or not pa.types.is_struct(inner):
        return None
    kinds = {field.name: field.type for field in inner}
    if inner is type_:
        kinds = {name: getattr(kind, "value_type", pa.null()) for name, kind in kinds.items()}
    numbers = [name for name, kind in kinds.items() if pa.types.is_integer(kind)]
    texts = [name for name, kind in kinds.items() if is_text(kind) or pa.types.is_integer(kind)]
    found = (
        next((name for name in STARTS if name in numbers), None),
        next((name for name in ENDS if name in numbers), None),
        next((name for name in LABELS if name in texts), None),
    )
    return None if None in found else found  # type: ignore[return-value]


def canonical_types(columns: SpanColumns) -> dict[str, pa.DataType]:
    """The types of the columns of text, spans and tokens in canonical form."""
    types = {columns.text: pa.list_(pa.string()) if columns.in_words else pa.string()}
    if columns.spans is not None:
        types[columns.spans] = pa.list_(SPAN)
    if columns.tokens is not None:
        types[columns.tokens] = pa.list_(TOKEN)
    return types


def canonical_table(columns: SpanColumns, table: pa.Table) -> pa.Table:
    """The columns of text, spans and tokens of a table in canonical form; those of JSON rows have it already."""
    made = {columns.text: _texts(columns, table)}
    if columns.spans is not None:
        made[columns.spans] = spans_column(columns, table)
    if columns.tokens is not None:
        made[columns.tokens] = _tokens(one_array(table.column(columns.tokens)))
    for name, column in made.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _texts(columns: SpanColumns, table: pa.Table) -> pa.Array:
    column = table.column(columns.text)
    return as_list(column, pa.string()) if columns.in_words else without_views(one_array(column)).cast(pa.string())


def _tokens(array: pa.Array) -> pa.Array:
    if array.type == pa.list_(TOKEN) or pa.types.is_null(array.type):
        return array.cast(pa.list_(TOKEN))
    items = array.flatten()
    fields = [pc.struct_field(items, name).cast(pa.int64()) for name in ("start", "end")]
    null = array.is_null().to_numpy(zero_copy_only=False)
    return list_array(pa.StructArray.from_arrays(fields, fields=list(TOKEN)), offsets_of(list_lengths(array)), null)


def spans_column(columns: SpanColumns, table: pa.Table) -> pa.Array:
    """The spans of a table in canonical form; all null for text without labels."""
    if columns.spans is None:
        return pa.nulls(table.num_rows, pa.list_(SPAN))
    array = one_array(table.column(columns.spans))
    if array.type == pa.list_(SPAN):
        return array
    null = pc.is_null(array).to_numpy(zero_copy_only=False)
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.list_(SPAN))
    names = _fields(array.type)
    assert names is not None  # so it was found
    if pa.types.is_struct(array.type):
        lists = [pc.struct_field(array, name) for name in names]
        lengths = list_lengths(lists[0])
        start, end, label = (part.flatten() for part in lists)
        marked = None
    else:
        lengths, items = list_lengths(array), array.flatten()
        start, end, label = (pc.struct_field(items, name) for name in names)
        index = items.type.get_field_index("text")
        marked = pc.struct_field(items, "text") if index >= 0 and is_text(items.type.field(index).type) else None
    if pa.types.is_integer(label.type):
        label = _named(label, columns.label_names or ())
    texts = pa.nulls(len(label), pa.string()) if marked is None else without_views(marked).cast(pa.string())
    fields = [start.cast(pa.int64()), end.cast(pa.int64()), without_views(label).cast(pa.string()), texts]
    spans = pa.StructArray.from_arrays(fields, fields=list(SPAN))
    return list_array(spans, offsets_of(lengths), null)


def _named(labels: pa.Array, names: tuple[str, ...]) -> pa.Array:
    """The names of integer labels; null where there is none."""
    known = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
    return pa.array(names, pa.string()).take(pc.if_else(known, labels, None))
