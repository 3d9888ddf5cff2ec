"""JSON lines: records by byte range, and from JSON values to Arrow columns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.inputs.format import CHUNK_ROWS, Format, Groups, RawChunk
from tokloss_ray.inputs.json_array import LOOKED_AT, begins_array, is_array, may_be_array, objects_in
from tokloss_ray.inputs.lines import lines_of, next_line, too_long
from tokloss_ray.inputs.nested import with_nested
from tokloss_ray.inputs.span_shapes import Unlike, canonical_row, canonical_types
from tokloss_ray.inputs.unit import Columns, FilePart
from tokloss_ray.storage.files import Listed, open_file, open_location

CHUNK_BYTES = 4 << 20


Record = TypeVar("Record", bound=tuple)
"""A record of text: its offset, its bytes, and what else belongs to it."""


def read_jsonl(columns: Columns, part: FilePart) -> Iterator[RawChunk]:
    """Records whose first byte lies in the part's byte range; a record is numbered by its first byte."""
    for records in batches(json_lines(part)):
        yield from _json_rows(columns, records)


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records of text that make a chunk, by number and size."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record[1])
        if len(batch) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def json_lines(part: FilePart) -> Iterator[tuple[int, bytes, int]]:
    """The lines that start in the part's byte range and are not blank, each with its offset and its number of bytes.

    Of a line that is too long the bytes are but the beginning. Of a file that is one array they are its objects, all in
    the first part: a file cannot be entered within an array.
    """
    fs, path = open_location(part.path)
    array = may_be_array(path)
    if array and part.start and is_array(part.path, part.version):
        return
    with open_file(fs, path, unpack=True) as file:
        if array and not part.start and begins_array(cast(io.BufferedReader, file).peek(LOOKED_AT)):
            yield from objects_in(file, part.stop if part.rows is not None else -1)
            return
        # The line that covers the byte before the range belongs to the part before.
        first = next_line(file, part.start, part.stop) if part.start else 0
        for offset, line, length, blank in lines_of(file, first, part.stop):
            if not blank:
                yield offset, line, length


def _json_rows(columns: Columns, records: list[tuple[int, bytes, int]]) -> Iterator[RawChunk]:
    rows: list[tuple[int, dict, bytes]] = []
    broken: list[dict] = []
    for offset, line, length in records:
        row: Any = None
        try:
            row = json.loads(line.strip()) if length == len(line) else None
            problem = ("malformed", "not a JSON object")
            if isinstance(row, dict):
                row, problem = checked(columns, with_nested(row, columns.names))
        except (ValueError, RecursionError) as error:
            problem = ("malformed", str(error))
        if length > len(line):
            problem = ("malformed", too_long(length))
        if problem[0]:
            broken.append(broken_row(columns, offset, line, row if isinstance(row, dict) else {}, problem))
        else:
            rows.append((offset, row, line))
    yield from row_chunks(columns, rows, broken)


def broken_row(columns: Columns, offset: int, line: bytes, row: dict, problem: tuple[str, str]) -> dict:
    """A record that is not a row: its reason and detail (`problem`), and its id if it has one."""
    record = {"source_row": offset, "reason": problem[0], "detail": problem[1], "payload": text_of(line)}
    if columns.example_id and row.get(columns.example_id) is not None:
        text = _as_text(row[columns.example_id]) or ""
        record["example_id"] = text.encode("utf-8", "replace").decode()  # it may hold a lone surrogate
    return record


def row_chunks(columns: Columns, rows: list[tuple[int, dict, bytes]], broken: list[dict]) -> Iterator[RawChunk]:
    """Rows of JSON values, each with its offset and its bytes, as columns; `broken` goes on as it is."""
    # Integer and string tags may alternate in one file; an Arrow column holds one kind.
    for kind, run in _runs_of_tag_kind(columns, rows):
        try:
            table = json_table(columns, [row for _, row, _ in run], kind)
            yield RawChunk(table, np.array([offset for offset, _, _ in run], dtype=np.int64), [])
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            yield from _one_by_one(columns, run, kind)
    if broken:
        yield RawChunk(json_table(columns, [], pa.int64()), np.array([], dtype=np.int64), broken)


def _one_by_one(columns: Columns, run: list[tuple[int, dict, bytes]], kind: pa.DataType) -> Iterator[RawChunk]:
    """Some row does not fit the Arrow types (a lone surrogate, an integer of 70 bits): find it."""
    for offset, row, line in run:
        try:
            yield RawChunk(json_table(columns, [row], kind), np.array([offset]), [])
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            record = {"source_row": offset, "reason": "malformed", "detail": str(error), "payload": text_of(line)}
            yield RawChunk(json_table(columns, [], kind), np.array([], dtype=np.int64), [record])


def text_of(line: bytes) -> str:
    """Bytes of a record for a person, with replacement characters where they are not UTF-8."""
    return line.decode("utf-8", "replace").strip()


def checked(columns: Columns, row: dict) -> tuple[dict, tuple[str, str]]:
    """A JSON row, with its spans in canonical form, and the reason and detail why it cannot be put into columns, or
    ('', '')."""
    problem = ("", "")
    if columns.spans is None:
        problem = _problem_of_lists(columns, row)
    else:
        try:
            row = row | canonical_row(columns.spans, row)
        except Unlike as error:
            problem = error.args[0], error.args[1]
    for carried in columns.carried:
        if not problem[0] and not _fits(row.get(carried.name), carried.type):
            problem = "malformed", f"{carried.name} is not {carried.type}, unlike in the first rows"
    return row, problem


def _problem_of_lists(columns: Columns, row: dict) -> tuple[str, str]:
    first = columns.words or schema.INPUT_IDS
    lists: dict[str, tuple[type, ...]] = {first: (str,) if columns.words else (int,)}
    if columns.labels:
        lists[columns.labels] = (int, str)
    if columns.mask and row.get(columns.mask) is not None:
        lists[columns.mask] = (int,)
    for name, kinds in lists.items():
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, list):
            return "malformed", f"{name} is not a list"
        seen = {type(item) for item in value} - {type(None)}
        if not seen <= set(kinds) or len(seen) > 1:
            # Where both types may stand but not together, the odd one is that which is not of the first one's type.
            usual = kinds if not seen <= set(kinds) else (type(next(item for item in value if item is not None)),)
            wrong = next(item for item in value if item is not None and type(item) not in usual)
            reason = "not_a_string" if str in kinds else "malformed"
            return reason, f"{name} holds {json.dumps(wrong)[:100]}"
    return "", ""


def _fits(value: Any, type_: pa.DataType) -> bool:
    """Whether a JSON value can stand in a column; text takes anything, and Arrow has the last word on other types."""
    if value is None or pa.types.is_string(type_):
        return True
    if isinstance(value, bool) or pa.types.is_boolean(type_):
        return isinstance(value, bool) and pa.types.is_boolean(type_)
    if pa.types.is_integer(type_):
        return isinstance(value, int)
    return isinstance(value, (int, float)) if pa.types.is_floating(type_) else True


def _runs_of_tag_kind(columns: Columns, rows: list) -> Iterator[tuple[pa.DataType, list]]:
    run: list = []
    kind: pa.DataType | None = None
    if columns.spans is not None:
        if rows:
            yield pa.string(), rows
        return
    for item in rows:
        first = next((tag for tag in item[1].get(columns.labels) or () if tag is not None), None)
        own = None if first is None else pa.string() if isinstance(first, str) else pa.int64()
        if kind is not None and own is not None and own != kind:
            yield kind, run
            run, kind = [], own
        kind = kind or own
        run.append(item)
    if run:
        yield kind or pa.int64(), run


def json_table(columns: Columns, rows: list[dict], tag_kind: pa.DataType) -> pa.Table:
    """The needed columns of some rows; `tag_kind` is int64 or string."""
    types: dict[str, pa.DataType]
    if columns.spans is None:
        types = {columns.labels: pa.list_(tag_kind)} if columns.labels else {}
        types[columns.words or schema.INPUT_IDS] = pa.list_(pa.string() if columns.words else pa.int64())
    else:
        types = canonical_types(columns.spans)
    if columns.mask:
        types[columns.mask] = pa.list_(pa.int64())
    arrays = {name: pa.array([row.get(name) for row in rows], type_) for name, type_ in types.items()}
    texts = {f.name for f in columns.carried if f.type == pa.string()} | {
        columns.example_id or "",
        columns.document or "",
    }
    texts -= set(types)
    for field in columns.carried:
        if field.name in columns.names and field.name not in arrays and field.name not in texts:
            arrays[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
    for name in texts - {""}:
        arrays[name] = pa.array([_as_text(row.get(name)) for row in rows], pa.string())
    return pa.table(arrays)


def _as_text(value: Any) -> str | None:
    """A JSON value as a string: strings as they are, null as null, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _inspect(file: Listed) -> tuple[None, Groups]:
    return None, ()


JSONL = Format(
    name="jsonl",
    title="JSON Lines",
    suffixes=(".jsonl", ".ndjson", ".json"),
    packed=True,
    bytes_per_token=12,
    inspect=_inspect,
    read=read_jsonl,
    records=json_lines,
)
