"""Columns of text and of labelled spans in it: which they are, and what the job makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.inputs.arrow_types import is_text
from tokloss_ray.inputs.listing import Inspected
from tokloss_ray.inputs.nested import names_in, types_of, value_of
from tokloss_ray.inputs.span_shapes import LABELS, are_annotations, are_spans, are_tokens, of_spans, of_tokens
from tokloss_ray.inputs.text_words import PUNCTUATION
from tokloss_ray.inputs.unit import LABELS_COLUMNS, WORDS_COLUMNS, SpanColumns
from tokloss_ray.inputs.units import sample_json

TEXT_COLUMNS = ("text", "data.text")
SPANS_COLUMNS = ("entities", "ents", "spans", "label", "labels", "annotations")
WORDS_OF_SPANS, WORD_SPANS = "tokenized_text", "ner"
"""GLiNER's columns: words, and spans that count them."""
TOKENS_COLUMN = "tokens"
MADE_WORDS, MADE_TAGS = schema.WORDS, "tags"
"""What the columns of words and tags are called that are made of text and spans."""
OFFSETS = (
    pa.field(schema.WORD_STARTS, pa.list_(pa.int32())),
    pa.field(schema.WORD_ENDS, pa.list_(pa.int32())),
)


@dataclass(frozen=True)
class SpanOptions:
    """How the user wants spans to be read, as the settings of the same names in `ScoreConfig`."""

    text_column: str | None = None
    spans_column: str | None = None
    words: str | None = None
    widen_spans: bool = False
    label_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def given(self) -> list[str]:
        """The options that are set."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return ["--" + name.replace("_", "-") for name, value in values.items() if value]


def find_text(options: SpanOptions, words: str | None, item: Inspected) -> SpanColumns | None:
    """The column of text, if words are to be made of it without labels: where an option says so, or there is no column
    of words under the usual names. Arguments and errors as for `find_spans`."""
    names = _names(item)
    unfit = [option for option in options.given if option not in ("--text-column", "--words")]
    if unfit:
        raise Refused(f"{unfit[0]} is for labelled spans: it cannot be combined with --no-labels")
    tokens = TOKENS_COLUMN if TOKENS_COLUMN in tokens_in(item) and not options.words else None
    usual = [name for name in (schema.INPUT_IDS, *WORDS_COLUMNS) if name in names and name != tokens]
    if not options.given and (words is not None or usual):
        return None
    text = options.text_column or next((name for name in TEXT_COLUMNS if name in names), None)
    if text is not None:
        return SpanColumns(text, None, tokens, options.words or PUNCTUATION)
    if not options.given:
        return None
    raise Refused(
        f"no column with text ({options.given[0]}): {item.file.source} has the columns {', '.join(names)}; "
        f"select one with --text-column"
    )


def find_spans(options: SpanOptions, words: str | None, labels: str | None, item: Inspected) -> SpanColumns | None:
    """The columns of text and spans, if words and tags are to be made of these: where an option says so, or there are
    no columns of words and tags under the usual names, but of text and spans.

    words, labels: --tokens-column and --labels-column. item: the first file.

    Raises:
        Refused: options contradict each other, or name columns that hold something else.
    """
    given, names = options.given, _names(item)
    if given and labels is not None:
        raise Refused(f"{given[0]} is for labelled spans of text, --labels-column for a tag per word: use one of them")
    if labels is not None or (not given and (words is not None or _has_words_and_tags(item, names))):
        return None
    there = spans_in(item)
    spans, text = options.spans_column, options.text_column
    if spans in names and spans not in there:
        raise Refused(
            f"column {spans} (--spans-column) of {item.file.source} holds no spans, such as "
            f'[[0, 4, "PER"]] or [{{"start": 0, "end": 4, "label": "PER"}}]'
        )
    in_words = text is None and (words is not None or (spans is None and {WORDS_OF_SPANS, WORD_SPANS} <= set(names)))
    if in_words:
        text, spans = words or WORDS_OF_SPANS, spans or (WORD_SPANS if WORD_SPANS in there else None)
    spans = spans or next((name for name in SPANS_COLUMNS if name in there), None)
    text = text or next((name for name in TEXT_COLUMNS if name in names), None)
    if spans is not None and text is not None:
        tokens = TOKENS_COLUMN if TOKENS_COLUMN in tokens_in(item) and not (options.words or in_words) else None
        of_labels = _label_names(item.schema, spans) if item.schema is not None else None
        way, label_map = options.words or PUNCTUATION, tuple(options.label_map.items())
        annotations = item.schema is None and any(map(are_annotations, _values(item).get(spans, ())))
        return SpanColumns(text, spans, tokens, way, options.widen_spans, in_words, label_map, of_labels, annotations)
    if not given:
        return None
    lacking = "no column with spans" if spans is None else "no column with the text of the spans"
    advice = spans_proposal(item) or f"select one with {'--spans-column' if spans is None else '--text-column'}"
    raise Refused(f"{lacking} ({given[0]}): {item.file.source} has the columns {', '.join(names)}; {advice}")


def spans_proposal(item: Inspected) -> str:
    """How to name the columns of text and spans that have none of the usual names, in a clause; empty if there are
    none."""
    texts = texts_in(item)
    text = next((name for name in (*TEXT_COLUMNS, *texts) if name in texts), None)
    spans = next((name for name in (*SPANS_COLUMNS, *spans_in(item)) if name in spans_in(item)), None)
    if text is None or spans is None:
        return ""
    said = {
        f"--text-column {text}": f"column {text} is text",
        f"--spans-column {spans}": f"column {spans} holds spans",
    }
    unusual = [option for option in said if option.split()[1] not in (*TEXT_COLUMNS, *SPANS_COLUMNS)]
    return f"{' and '.join(said[option] for option in unusual)}: use {' '.join(unusual)}" if unusual else ""


def _label_names(schema_: pa.Schema, spans: str) -> tuple[str, ...] | None:
    """The names that `datasets` recorded for the integer labels of spans in a file's metadata, if any."""
    metadata = (schema_.metadata or {}).get(b"huggingface", b"{}")
    feature = value_of(json.loads(metadata).get("info", {}).get("features", {}), spans)
    while isinstance(feature, (dict, list)):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
            continue
        label = next((feature[name] for name in LABELS if isinstance(feature.get(name), dict)), None)
        while isinstance(label, dict) and label.get("_type") != "ClassLabel":
            label = label.get("feature")  # of a struct of lists
        if label is not None:
            return tuple(label["names"])
        feature = feature.get("feature")
    return None


def _has_words_and_tags(item: Inspected, names: list[str]) -> bool:
    """Whether a file has words and tags, or is pre-encoded, under the usual names."""
    if {schema.INPUT_IDS, "labels"} <= set(names):
        return True
    words, labels = (next((n for n in usual if n in names), None) for usual in (WORDS_COLUMNS, LABELS_COLUMNS))
    return words is not None and labels is not None and words not in tokens_in(item) and labels not in spans_in(item)


def spans_in(item: Inspected) -> list[str]:
    """The columns of a file that hold spans; of JSON lines, those of most of the first rows that have them."""
    if item.schema is not None:
        return [name for name, type_ in types_of(item.schema).items() if of_spans(type_)]
    found = _values(item).items()
    return [n for n, values in found if _mostly(are_spans, values) and (any(values) or n in SPANS_COLUMNS)]


def tokens_in(item: Inspected) -> list[str]:
    """The columns of a file that say where words begin and end in the text."""
    if item.schema is not None:
        return [name for name, type_ in types_of(item.schema).items() if of_tokens(type_)]
    return [name for name, values in _values(item).items() if _mostly(are_tokens, values) and any(values)]


def texts_in(item: Inspected) -> list[str]:
    """The columns of a file that hold text."""
    if item.schema is not None:
        return [name for name, type_ in types_of(item.schema).items() if is_text(type_)]
    return [n for n, values in _values(item).items() if all(isinstance(value, str) for value in values)]


def _names(item: Inspected) -> list[str]:
    return list(types_of(item.schema) if item.schema is not None else _values(item, nulls=True))


def _values(item: Inspected, nulls: bool = False) -> dict[str, list[Any]]:
    """What the first rows of a JSON lines file have under each name, without nulls; names of nulls alone if wanted."""
    rows = sample_json(item.file)
    names: Iterable[str] = dict.fromkeys(name for row in rows for name in names_in(row))
    found = {name: [value for row in rows if (value := value_of(row, name)) is not None] for name in names}
    return {name: values for name, values in found.items() if values or nulls}


def _mostly(fits: Callable[[Any], bool], values: list[Any]) -> bool:
    return sum(map(fits, values)) * 2 > len(values)


def spans_problem(columns: SpanColumns, kind: Mapping[str, pa.DataType]) -> str | None:
    """Why the columns of a file cannot be text and spans, by their types; None if they can."""
    text = kind[columns.text]
    if columns.in_words:
        inner = getattr(text, "value_type", None)
        if inner is None or not is_text(inner):
            return f"its column {columns.text} is {text}, but lists of strings (words) are required"
    elif not is_text(text):
        return f"its column {columns.text} is {text}, but text is required"
    if columns.spans is not None and not of_spans(kind[columns.spans]) and not pa.types.is_null(kind[columns.spans]):
        return f"its column {columns.spans} is {kind[columns.spans]}, which holds no spans"
    if columns.tokens is not None and not of_tokens(kind[columns.tokens]):
        return f"its column {columns.tokens} is {kind[columns.tokens]}, which does not say where words begin and end"
    return None
