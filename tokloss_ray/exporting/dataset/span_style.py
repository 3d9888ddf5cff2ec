"""How the spans of a file are written, and a row's spans with some taken out and others put in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from tokloss_ray.inputs.span_shapes import ENDS, LABELS, STARTS, annotation_of, are_annotations, is_region
from tokloss_ray.inputs.unit import SpanColumns

Row = dict[str, Any]
_REGION = {"from_name": "label", "to_name": "text", "type": "labels"}


class Entity(NamedTuple):
    """Words first to stop - 1, where they begin and end in the text (of spans of words: which they are), and a type."""

    first: int
    stop: int
    start: int
    end: int
    type: str


@dataclass
class Style:
    """How the spans of a file are written, as far as one has looked.

    Attributes:
        like: a span; region: a region of Label Studio around one.
        labels: of each type of the model the label that the file has for it.
        utf_16: offsets count UTF-16 units.
    """

    like: Any = None
    region: Row | None = None
    labels: dict[str, str] = field(default_factory=dict)
    utf_16: bool = False


def learn(style: Style, columns: SpanColumns, row: Row) -> list[str]:
    """Look at the spans of a row; returns the types that are new."""
    new = []
    names = dict(columns.label_map)
    for span in raw_spans(columns, row):
        label = _label(span)
        if label is None:
            continue
        type_ = names.get(label, label)
        if type_ not in style.labels:
            style.labels[type_] = label
            new.append(type_)
        if style.like is None:
            style.like = span
            style.region = next((r for r in _regions(row.get(columns.spans or "")) if r["value"] is span), None)
        text = row.get(columns.text)
        if not style.utf_16 and isinstance(span, dict) and isinstance(text, str) and not text.isascii():
            start, end = (_of(span, keys) for keys in (STARTS, ENDS))
            style.utf_16 = isinstance(span.get("text"), str) and text[start:end] != span["text"]
    return new


def raw_spans(columns: SpanColumns, row: Row) -> list[Any]:
    """The spans of a row as they are written."""
    value = row.get(columns.spans) if columns.spans else None
    if not isinstance(value, list):
        return []
    regions = _regions(value)
    return [region["value"] for region in regions] if regions or are_annotations(value) else value


def type_of(columns: SpanColumns, span: Any) -> str:
    """What the model calls the label of a span."""
    label = _label(span) or ""
    return dict(columns.label_map).get(label, label)


def with_entities(
    style: Style, columns: SpanColumns, row: Row, canonical: Row, gone: list[Entity], come: list[Entity]
) -> Any:
    """The value of the column of spans without the spans on the words of some entities, and with others.

    Spans stand by their beginning if they did.
    """
    assert columns.spans is not None
    value, text = row[columns.spans], canonical[columns.text]
    raw, spans = raw_spans(columns, row), canonical[columns.spans]
    places = [(span["start"], span["end"]) for span in spans]

    def is_gone(place: tuple[int, int]) -> bool:
        if columns.in_words:
            return any(place[0] < entity.stop and entity.first < place[1] for entity in gone)
        return any(place[0] < entity.end and entity.start < place[1] for entity in gone)

    kept = [(place[0], span) for place, span in zip(places, raw, strict=True) if not is_gone(place)]
    sorted_ = all(a <= b for (a, _), (b, _) in pairwise(places))
    made = [(entity.start, _like(style, columns, raw, entity, text)) for entity in come]
    new = [*kept, *made]
    if sorted_:
        new.sort(key=lambda item: item[0])
    spans_now = [span for _, span in new]
    if not are_annotations(value):
        return spans_now
    return _in_annotation(style, value, spans_now)


def _in_annotation(style: Style, value: list[Row], spans: list[Row]) -> list[Row]:
    """Annotations of Label Studio with these spans in the one that counts; what labels no text stays in front."""
    chosen = annotation_of(value)
    assert chosen is not None  # it was read
    results = chosen.get("result") or []
    covers = {id(region["value"]): region for region in results if is_region(region)}
    others = [region for region in results if not is_region(region)]

    def cover(span: Row) -> Row:
        if id(span) in covers:
            return covers[id(span)]
        like = style.region or {}
        about = {key: like.get(key, default) for key, default in _REGION.items()}
        digest = hashlib.sha256(repr(sorted(span.items())).encode()).hexdigest()
        return {"id": digest[:10], **about, "value": span}

    new = {**chosen, "result": [*others, *map(cover, spans)]}
    return [new if annotation is chosen else annotation for annotation in value]


def _like(style: Style, columns: SpanColumns, raw: list[Any], entity: Entity, text: Any) -> Any:
    """A new span, written like the first of its row, else like one of the file."""
    model = raw[0] if raw else style.like
    label = style.labels.get(entity.type) or _label_for(columns, entity.type)
    start, end = entity.start, entity.end
    if style.utf_16:
        start, end = (len(text[:at].encode("utf-16-le")) // 2 for at in (start, end))
    if not isinstance(model, dict):
        return [start, end, label]
    made: dict[str, Any] = {}
    for key, value in model.items():
        if key in STARTS or key in ENDS:
            made[key] = start if key in STARTS else end
        elif key == _key(model, LABELS):
            made[key] = [label] if isinstance(value, list) else label
        elif key == "text" and isinstance(value, str):
            made[key] = text[entity.start : entity.end]
        elif key in ("token_start", "token_end"):
            made[key] = entity.first if key == "token_start" else entity.stop - 1
        elif key == "id" and isinstance(value, int):
            made[key] = max([value, *(s["id"] for s in raw if isinstance(s.get("id"), int))]) + 1
    return made


def _label_for(columns: SpanColumns, type_: str) -> str:
    return next((label for label, name in columns.label_map if name == type_), type_)


def _regions(value: Any) -> list[Row]:
    """The regions of the annotation of Label Studio that counts; none of other shapes."""
    if not are_annotations(value):
        return []
    chosen = annotation_of(value)
    return [] if chosen is None else [region for region in chosen.get("result") or [] if is_region(region)]


def _label(span: Any) -> str | None:
    label = span[2] if isinstance(span, list) and len(span) == 3 else None
    if isinstance(span, dict):
        label = _of(span, LABELS)
    label = label[0] if isinstance(label, list) and len(label) == 1 else label
    return label if isinstance(label, str) else None


def _key(span: Row, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if key in span), None)


def _of(span: Row, keys: tuple[str, ...]) -> Any:
    key = _key(span, keys)
    return None if key is None else span[key]
