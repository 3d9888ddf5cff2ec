"""One file of a dataset with some tags replaced: everything else in it stays as it is.

Each function takes the bytes of a file and a `Fix`, which is called with the words and tags of the rows that have
corrections, and returns the new bytes; None if no row changed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tokloss_ray.errors import Refused
from tokloss_ray.inputs.json_array import begins_array, objects_in
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array

Tags = list[Any]
Fix = Callable[[int, str | None, list[str], Tags], Tags | None]
"""(source_row, id, words, tags) -> new tags, or None to leave the row alone."""
Wanted = Callable[[int, str | None], bool]
"""(source_row, id) -> whether there are corrections for the row."""
Seen = set[Any]
ColumnOf = Callable[[pa.Table, int], pa.Array | None]
"""(rows, number of the first) -> the column with the corrections in it, in its own type; None if nothing changes."""


def fix_arrow(data: bytes, name: str, column_of: ColumnOf) -> bytes | None:
    """An Arrow stream, as `datasets` saves it: batches, schema and its metadata are kept.

    name: of the column that changes; column_of makes it new.
    """
    changed, start = False, 0
    sink = io.BytesIO()
    with pa.ipc.open_stream(pa.BufferReader(data)) as stream, pa.ipc.new_stream(sink, stream.schema) as writer:
        for batch in stream:
            table = pa.Table.from_batches([batch])
            column = column_of(table, start)
            if column is not None:
                changed, table = True, replaced(table, name, column)
            for part in table.combine_chunks().to_batches():
                writer.write_batch(part)
            start += table.num_rows
    return sink.getvalue() if changed else None


def replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """A table with other values in one column."""
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), column)


def fix_column(
    table: pa.Table, start: int, names: tuple[str, str, str | None], wanted: Wanted, fix: Fix, seen: Seen
) -> pa.Array | None:
    """The column of tags with the corrections in it, in its own type; None if nothing changes."""
    words, tags = (one_array(table.column(name)) for name in names[:2])
    ids = table.column(names[2]).cast(pa.string()).to_pylist() if names[2] else [None] * table.num_rows
    values = tags.flatten()
    seen.update(values.unique().to_pylist())
    offsets = offsets_of(list_lengths(tags))
    changes: dict[int, list[Any]] = {}
    for row, id_ in enumerate(ids):
        if not wanted(start + row, id_):
            continue
        of_row = words[row].as_py() or []
        old = tags[row].as_py() if tags[row].is_valid else [None] * len(of_row)
        new = fix(start + row, id_, of_row, old)
        if new is not None and new != old:
            changes[row] = new
    if not changes:
        return None
    flat = values.to_pylist()
    for row in sorted(changes, reverse=True):  # a row that had no tags at all grows
        flat[offsets[row] : offsets[row + 1]] = changes[row]
    type_ = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_integer(type_) and any(isinstance(tag, str) for tag in flat):
        raise Refused("the dataset does not name its integer tags: list them in order with --tags")
    null, lengths = np.array(tags.is_null()), list_lengths(tags)
    for row, new in changes.items():
        null[row], lengths[row] = False, len(new)
    return list_array(pa.array(flat, type_).cast(values.type), offsets_of(lengths), null).cast(tags.type)


def fix_jsonl(data: bytes, names: tuple[str, str, str | None], wanted: Wanted, fix: Fix, seen: Seen) -> bytes | None:
    """JSON lines, or an array: in the objects that change the list of tags is replaced, and not a byte beside it."""
    pieces, done = [], 0
    for offset, text, row in json_objects(data):
        tags = row.get(names[1])
        if isinstance(tags, list):
            seen.update(tag for tag in tags if isinstance(tag, (str, int)))
        id_ = as_text(row.get(names[2])) if names[2] else None
        words = row.get(names[0]) or []
        old = [None] * len(words) if tags is None else tags
        new = fix(offset, id_, words, old) if wanted(offset, id_) else None
        if new is not None and new != tags:
            value = json.dumps(new, ensure_ascii=text.isascii())
            start, end = (len(text[:at].encode()) for at in value_span(text, names[1]))
            if names[1] not in row:
                start = end = len(text[: text.rindex("}")].encode())
                value = f", {json.dumps(names[1])}: {value}"
            pieces += [data[done : offset + start], value.encode()]
            done = offset + end
    return b"".join([*pieces, data[done:]]) if pieces else None


def json_objects(data: bytes) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The objects of JSON lines or of an array: of each the offset of its line or its first byte, its text, and what it
    says."""
    array = begins_array(data)
    offset = 0
    for item in objects_in(io.BytesIO(data)) if array else io.BytesIO(data):
        line = item if isinstance(item, bytes) else item[1]
        at = offset if isinstance(item, bytes) else item[0]
        offset += len(line)
        row = _object(line)
        if row is not None:
            yield at, line.decode(), row


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def as_text(value: Any) -> str | None:
    """An id as `score` reads it: strings as they are, null as null, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def value_span(text: str, key: str) -> tuple[int, int]:
    """Where the value of a key of the object in a line begins and ends; of the last one, if the key is there twice."""
    decoder = json.JSONDecoder()
    position, found = text.index("{") + 1, (0, 0)
    while True:
        position = _skip(text, position, " \t\r\n,")
        if text[position] == "}":
            return found
        name, position = decoder.raw_decode(text, position)
        start = _skip(text, position, " \t\r\n:")
        _, position = decoder.raw_decode(text, start)
        if name == key:
            found = start, position


def _skip(text: str, position: int, characters: str) -> int:
    while text[position] in characters:
        position += 1
    return position
