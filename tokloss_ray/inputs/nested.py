"""Columns within columns, by dotted names: `data.tokens` is the field `tokens` of the column `data`.

A column whose own name has the dot comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def types_of(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The type of each column, and behind them of each field of structs, under its dotted name."""
    found = dict(zip(schema.names, schema.types, strict=True))
    for name, type_ in list(found.items()):
        for inner, of_inner in _fields(name, type_):
            found.setdefault(inner, of_inner)
    return found


def _fields(name: str, type_: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    if pa.types.is_struct(type_):
        for field in type_:
            yield f"{name}.{field.name}", field.type
            yield from _fields(f"{name}.{field.name}", field.type)


def pick(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """The columns of these names that there are; a field of a null is null."""
    columns = {name: found for name in names if (found := _column(batch, name)) is not None}
    # Not from a dictionary of columns: a batch of none has rows, too.
    if not columns:
        return batch.select([])
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _column(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    if name in batch.schema.names:
        return batch.column(name)
    for first, rest in _splits(name):
        if first in batch.schema.names and pa.types.is_struct(batch.schema.field(first).type):
            array = batch.column(first)
            path = _path(array.type, rest)
            if path is not None:
                return pc.struct_field(array, path)
    return None


def _path(type_: pa.DataType, name: str) -> list[str] | None:
    """The names of the fields that lead to a dotted name within a struct."""
    if not pa.types.is_struct(type_):
        return None
    if type_.get_field_index(name) >= 0:
        return [name]
    for first, rest in _splits(name):
        if type_.get_field_index(first) >= 0 and (path := _path(type_.field(first).type, rest)) is not None:
            return [first, *path]
    return None


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """A dotted name cut at each of its dots."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        yield ".".join(parts[:i]), ".".join(parts[i:])


def value_of(row: dict[str, Any], name: str) -> Any:
    """What a JSON object has under a name, None if nothing."""
    if name in row:
        return row[name]
    for first, rest in _splits(name):
        if isinstance(row.get(first), dict) and (found := value_of(row[first], rest)) is not None:
            return found
    return None


def with_nested(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A JSON object in which fields of others have their dotted names, too."""
    missing = [name for name in names if "." in name and name not in row]
    return row | {name: value_of(row, name) for name in missing} if missing else row


def names_in(row: dict[str, Any]) -> list[str]:
    """The names of a JSON object, and behind them the dotted ones of the objects in it."""
    inner = (f"{name}.{key}" for name, value in row.items() if isinstance(value, dict) for key in names_in(value))
    return list(dict.fromkeys([*row, *inner]))
