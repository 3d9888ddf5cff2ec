"""Which columns words and tags are likely to be in, where they have none of the usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pyarrow as pa

from tokloss_ray.inputs.arrow_types import is_text
from tokloss_ray.inputs.csv_table import CSV
from tokloss_ray.inputs.listing import Inspected
from tokloss_ray.inputs.nested import names_in, types_of, value_of
from tokloss_ray.inputs.span_columns import spans_proposal
from tokloss_ray.inputs.unit import LABELS_COLUMNS, WORDS_COLUMNS
from tokloss_ray.inputs.units import sample_json

_WORDS = re.compile(r"token|word|form|text|sent", re.IGNORECASE)
_TAGS = re.compile(r"tag|label|ner|pos|bio|iob|gold|class|entit", re.IGNORECASE)
_ONE_WORD = "a cell must hold a list; files of one word per line are read as CoNLL columns (docs/data.md)"


def proposal(item: Inspected, words: str | None, labels: str | None) -> str:
    """How to name the columns that are likely to be meant, in a clause; empty if none is.

    words, labels: the columns that are known already.
    """
    if words is None and labels is None and (of_spans := spans_proposal(item)):
        return of_spans
    lists = _lists(item)
    texts = [name for name, what in lists.items() if what == "strings"]
    said, options = [], []
    if words is None:
        words = _best(texts, _WORDS, _TAGS)
        if words is None:
            return _ONE_WORD if item.file.format == CSV.name else ""
        said.append(f"column {words} is a list of strings")
        options.append(f"--tokens-column {words}")
    if labels is None or labels not in lists:
        labels = _best((name for name in lists if name != words), _TAGS, _WORDS)
        if labels is not None and labels not in LABELS_COLUMNS:
            said.append(f"column {labels} is a list of {lists[labels]}")
            options.append(f"--labels-column {labels}")
    return f"{' and '.join(said)}: use {' '.join(options)}" if options else ""


def _best(names: Iterable[str], like: re.Pattern, unlike: re.Pattern) -> str | None:
    """The name that is most like those of its kind, the first of several."""

    def rank(name: str) -> tuple[bool, bool]:
        last = name.rsplit(".", 1)[-1]
        usual = last in (WORDS_COLUMNS if like is _WORDS else LABELS_COLUMNS)
        return not usual, not (like.search(last) and not unlike.search(last))

    found = [name for name in names if like.search(name) or not unlike.search(name.rsplit(".", 1)[-1])]
    return min(found, key=rank, default=None)


def _lists(item: Inspected) -> dict[str, str]:
    """The columns of a file that are lists of strings or of integers, and of which."""
    if item.file.format == "conll":  # each column is one, under several names
        return {}
    if item.schema is not None:
        types = {name: getattr(type_, "value_type", None) for name, type_ in types_of(item.schema).items()}
        kinds = {name: _kind(type_) for name, type_ in types.items() if isinstance(type_, pa.DataType)}
        return {name: kind for name, kind in kinds.items() if kind}
    rows = sample_json(item.file)
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for row in rows for name in names_in(row)):
        values = [value for row in rows if (value := value_of(row, name)) is not None]
        items = {type(item) for value in values if isinstance(value, list) for item in value if item is not None}
        if values and all(isinstance(value, list) for value in values) and items in ({str}, {int}):
            found[name] = "strings" if items == {str} else "integers"
    return found


def _kind(type_: pa.DataType) -> str:
    return "strings" if is_text(type_) else "integers" if pa.types.is_integer(type_) else ""
