"""Which columns the job reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.inputs.arrow_types import is_text
from tokloss_ray.inputs.listing import Inspected, declared_tags
from tokloss_ray.inputs.nested import names_in, types_of, value_of
from tokloss_ray.inputs.proposals import proposal
from tokloss_ray.inputs.span_columns import (
    MADE_TAGS,
    MADE_WORDS,
    OFFSETS,
    SpanOptions,
    find_spans,
    find_text,
    spans_problem,
)
from tokloss_ray.inputs.tag_names import text_tags
from tokloss_ray.inputs.unit import LABELS_COLUMNS, WORDS_COLUMNS, Columns
from tokloss_ray.inputs.units import sample_json, text_records
from tokloss_ray.output.names import MAX_FOLDER_NAME, partition_folder


@dataclass(frozen=True)
class ColumnOptions:
    """Which columns the user named, as the settings of the same names in `ScoreConfig`."""

    tokens_column: str | None = None
    labels_column: str | None = None
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    add_column: Mapping[str, str] = field(default_factory=dict)
    spans: SpanOptions = field(default_factory=SpanOptions)
    labels: bool = True
    documents: bool = False
    document_column: str | None = None


def find_columns(options: ColumnOptions, inspected: list[Inspected]) -> Columns:
    """Find the columns in every file.

    Raises:
        Refused: a column is missing or holds what it must not, with the columns there are.
    """
    _short_folders(options)
    kinds = [(item, kind) for item in inspected if (kind := _kinds(item)) is not None]
    if not kinds:
        for item in inspected:
            if item.schema is None and next(text_records(item.file), None) is not None:
                raise Refused(f"{item.file.source} is not JSON Lines: none of its first lines is a JSON object")
        labels_column = options.labels_column or LABELS_COLUMNS[0]
        return Columns(options.tokens_column or WORDS_COLUMNS[0], labels_column if options.labels else None)
    if options.labels:
        spans = find_spans(options.spans, options.tokens_column, options.labels_column, kinds[0][0])
    else:
        spans = find_text(options.spans, options.tokens_column, kinds[0][0])
    words: str | None
    labels: str | None
    if spans is not None:
        words, labels = MADE_WORDS, MADE_TAGS if options.labels else None
    else:
        words, labels = _main_columns(options, list(kinds[0][1]), kinds[0][0])
    mask = _mask_column(kinds) if words is None else None
    carried_names = [n for n in dict.fromkeys([*options.keep, *options.partition_by]) if n not in options.add_column]
    for name in (words, labels if spans is None else spans.spans):
        if name in carried_names:
            raise Refused(f"column {name} is already in the output, as {'words' if name == words else 'labels'}")
    if spans is None:
        main = {"--tokens-column": words or schema.INPUT_IDS, "--labels-column": labels}
    else:
        main = {"--tokens-column" if spans.in_words else "--text-column": spans.text, "--spans-column": spans.spans}
    wanted: dict[str, str | None] = {
        **main,
        "--id-column": options.id_column,
        "--document-column": options.document_column,
        **{f"--{'keep' if n in options.keep else 'partition-by'} {n}": n for n in carried_names},
    }
    for item, kind in kinds:
        for option, name in wanted.items():
            # A record may leave out what is only carried along; some file must have it, to know its type.
            optional = item.schema is None and name in carried_names and any(name in other for _, other in kinds)
            if name is not None and name not in kind and not optional:
                raise Refused(
                    f"no column {name} ({option.split()[0]}): {item.file.source} has the columns {', '.join(kind)}"
                )
            if item.schema is not None and name is not None and item.schema.names.count(name) > 1:
                raise Refused(f"{item.file.source} has two columns named {name}")
        if spans is None:
            _right_types(item, kind, words, labels)
        elif item.schema is not None and (problem := spans_problem(spans, kind)):
            raise Refused(f"{item.file.source}: {problem}")
        _right_carried(item, kind, options)
    carried = tuple(_carried(name, kinds) for name in carried_names)
    if spans is None:
        found = Columns(words, labels, mask, options.id_column, carried, text_tags(kinds[0][0], labels))
    else:
        offsets = () if spans.in_words else OFFSETS
        found = Columns(words, labels, None, options.id_column, (*carried, *offsets), True, spans=spans)
    return replace(found, documents=options.documents, document=options.document_column)


def nested_column(columns: Columns, inspected: list[Inspected]) -> str | None:
    """The first column of words, tags, spans or ids that is a field of another column, by its dotted name."""
    spans = None if columns.spans is None else columns.spans.spans
    for name in filter(None, (columns.words, columns.labels, spans, columns.example_id)):
        if "." not in name:
            continue
        for item in inspected:
            there = sample_json(item.file) if item.schema is None else [dict.fromkeys(item.schema.names)]
            if there and not any(name in row for row in there):
                return name
    return None


def _short_folders(options: ColumnOptions) -> None:
    """Refuse partition columns whose name, or whose constant, no folder can have."""
    for name in options.partition_by:
        constant = options.add_column.get(name)
        size = len(partition_folder(name, constant))
        if size > MAX_FOLDER_NAME:
            what = f"--partition-by {name}" if constant is None else f"--add-column {name}={constant}"
            raise Refused(f"{what} makes a folder name of {size} bytes, but the limit is {MAX_FOLDER_NAME}: shorten it")


def _carried(name: str, kinds: list[tuple[Inspected, dict[str, pa.DataType]]]) -> pa.Field:
    """A column that is copied to the output, with the one type it has in all files."""
    where, type_ = next((item.file.source, _plain(kind[name])) for item, kind in kinds if name in kind)
    for item, kind in kinds:
        if item.schema is not None and _plain(kind[name]) != type_:
            raise Refused(f"column {name} is {type_} in {where} and {kind[name]} in {item.file.source}")
    return pa.field(name, type_)


def _mask_column(kinds: list[tuple[Inspected, dict[str, pa.DataType]]]) -> str | None:
    """The attention mask of pre-encoded input, if it has one: files with a schema must agree, JSON rows need not."""
    have = [(item.file.source, schema.ATTENTION_MASK in kind) for item, kind in kinds if item.schema is not None]
    having, lacking = (next((source for source, has in have if has is which), None) for which in (True, False))
    if having and lacking:
        raise Refused(f"{having} has a column {schema.ATTENTION_MASK}, {lacking} has none: they must agree")
    return schema.ATTENTION_MASK if any(schema.ATTENTION_MASK in kind for _, kind in kinds) else None


def _main_columns(options: ColumnOptions, names: list[str], item: Inspected) -> tuple[str | None, str | None]:
    """The columns of words (None if the input is pre-encoded) and of labels (None if they are not to be read)."""
    encoded_labels = options.labels_column or "labels"
    words = options.tokens_column or next((n for n in WORDS_COLUMNS if n in names), None)
    if options.tokens_column is None and schema.INPUT_IDS in names:
        if options.labels and encoded_labels in names:
            return None, encoded_labels
        if not options.labels and words is None:
            return None, None
    listing = f"{item.file.source} has the columns {', '.join(names)}"
    labels = options.labels_column or next((n for n in LABELS_COLUMNS if n in names), None)
    if words is None:
        advice = proposal(item, None, labels) or "select one with --tokens-column"
        raise Refused(f"no column with words: {listing}; {advice}")
    if not options.labels:
        return words, None
    if labels is None:
        advice = proposal(item, words, None) or "select one with --labels-column (score --no-labels needs none)"
        raise Refused(f"no column with tags: {listing}; {advice}")
    return words, labels


def _kinds(item: Inspected) -> dict[str, pa.DataType] | None:
    """Column types of a file; those of JSON lines from its first rows. None for a text file without rows."""
    if item.schema is not None:
        return types_of(item.schema)
    rows = sample_json(item.file)
    if not rows:
        return None
    kinds: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(key for row in rows for key in names_in(row)):
        seen = {type(value) for row in rows if (value := value_of(row, name)) is not None}
        kinds[name] = next((t for ok, t in _JSON_TYPES if seen and seen <= ok), pa.string())
    return kinds


_JSON_TYPES = (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64()))


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type a carried column has in the output: dictionaries and string views as plain strings."""
    return pa.string() if is_text(type_) else type_


def _right_types(item: Inspected, kind: dict[str, pa.DataType], words: str | None, labels: str | None) -> None:
    if item.schema is None:
        return  # JSON is checked row by row

    def refuse(name: str, wants: str) -> None:
        known = (None if name == words else words, None if name == labels else labels)
        advice = proposal(item, *known)
        raise _wrong_type(item, kind, name, wants, f"; {advice}" if advice else "")

    first = words or schema.INPUT_IDS
    inner = _item_type(kind[first])
    if inner is None or (not (is_text(inner) if words else pa.types.is_integer(inner)) and not pa.types.is_null(inner)):
        refuse(first, "a list of strings (words)" if words else "a list of integers (token ids)")
    tag = None if labels is None else _item_type(kind[labels])
    if labels is not None and (tag is None or not (_is_tag(tag) or pa.types.is_null(tag))):
        refuse(labels, "a list of tags, as integers or strings,")


def _wrong_type(item: Inspected, kind: dict[str, pa.DataType], name: str, wants: str, more: str = "") -> Refused:
    return Refused(f"column {name} of {item.file.source} is {kind[name]}, but {wants} is required{more}")


def _right_carried(item: Inspected, kind: dict[str, pa.DataType], options: ColumnOptions) -> None:
    """Refuse columns of ids and partitions that hold more than a value a row."""
    if item.schema is None:
        return
    id_type = kind.get(options.id_column) if options.id_column else None
    if options.id_column and id_type is not None and not (is_text(id_type) or pa.types.is_integer(id_type)):
        raise _wrong_type(item, kind, options.id_column, "text or an integer per row (ids)")
    document = kind.get(options.document_column) if options.document_column else None
    if options.document_column and document is not None and pa.types.is_nested(document):
        raise _wrong_type(item, kind, options.document_column, "one value per row (documents)")
    for name in options.partition_by:
        if name in kind and (pa.types.is_nested(kind[name]) or _is_binary(kind[name])):
            raise _wrong_type(item, kind, name, "one value per row that can name a folder")


def schema_problem(columns: Columns, schema_: pa.Schema) -> str | None:
    """Why a file does not fit those that were looked into before the job began; None if it does."""
    kind = types_of(schema_)
    for name in columns.names:
        if name not in kind:
            return f"it has no column {name}, but the columns {', '.join(kind)}"
        if schema_.names.count(name) > 1:
            return f"it has two columns named {name}"
    if columns.words is None and columns.mask is None and schema.ATTENTION_MASK in kind:
        return f"it has a column {schema.ATTENTION_MASK}, unlike the files looked into first"
    if columns.spans is not None:
        if problem := spans_problem(columns.spans, kind):
            return problem
    else:
        if problem := _other_types(columns, kind):
            return problem
    for field_ in columns.carried:
        if field_.name in kind and _plain(kind[field_.name]) != field_.type:
            return f"its column {field_.name} is {kind[field_.name]}, but {field_.type} in the files looked into first"
    names = declared_tags(schema_, columns.labels) if columns.declared is not None and columns.labels else None
    if names and names != columns.declared:
        return f"it declares other tag names for column {columns.labels} than the files looked into first"
    return None


def _other_types(columns: Columns, kind: dict[str, pa.DataType]) -> str | None:
    lists = {columns.words or schema.INPUT_IDS: is_text if columns.words else pa.types.is_integer}
    if columns.labels is not None:
        lists[columns.labels] = _is_tag
    for name, fits in lists.items():
        inner = _item_type(kind[name])
        if inner is None or not (fits(inner) or pa.types.is_null(inner)):
            return f"its column {name} is {kind[name]}"
    return None


def _is_tag(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or is_text(type_)


def _item_type(type_: pa.DataType) -> pa.DataType | None:
    """What a list holds, None for other types."""
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return type_.value_type if is_list else None


def _is_binary(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)
