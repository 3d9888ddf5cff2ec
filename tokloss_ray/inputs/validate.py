"""Rows as they were read, each validated: good ones in one canonical form, bad ones with their reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.inputs.arrow_types import as_list, is_text, without_views
from tokloss_ray.inputs.spans import payload_row
from tokloss_ray.inputs.unit import Columns, RowRules
from tokloss_ray.output.names import MAX_FOLDER_NAME, partition_folder
from tokloss_ray.ragged import any_per_row, list_array, list_lengths, offsets_of, one_array
from tokloss_ray.schema import IGN, IGNORE_INDEX


class Chunk(NamedTuple):
    """Some consecutive rows of a unit.

    `rows` has example_id, file_part (which part of the unit the row is of, from 0), source_row, words or input_ids (and
    attention_mask where the input has it), label_ids (the model's) and the carried columns; `errors` has the schema of
    errors/. Both are in the order of the input.
    """

    rows: pa.Table
    errors: pa.Table


class PartRows(NamedTuple):
    """Rows as they were read, of one or more parts of a unit: of each row the part and the source row, int32 and int64;
    and records that are not rows, with their part."""

    table: pa.Table
    parts: np.ndarray
    source_rows: np.ndarray
    broken: list[tuple[int, dict]]


def validate(rules: RowRules, sources: Sequence[str], raw: PartRows) -> Chunk:
    """Split raw rows into good ones, in canonical form, and bad ones, each with the first reason that holds.

    sources: of the unit's parts.
    """
    table, columns = raw.table, rules.columns
    reasons = np.full(table.num_rows, "", dtype=object)

    def mark(bad: np.ndarray, reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    items = as_list(table.column(columns.words or schema.INPUT_IDS), pa.string() if columns.words else pa.int64())
    tags = _tag_lists(None if columns.labels is None else table.column(columns.labels), list_lengths(items))
    offsets, tag_offsets = offsets_of(list_lengths(items)), offsets_of(list_lengths(tags))
    flat, flat_tags = items.flatten(), tags.flatten()
    mark(_is_null(items) | any_per_row(_is_null(flat), offsets), "null_field")
    if columns.example_id:
        mark(_is_null(one_array(table.column(columns.example_id))), "null_field")
    mark(np.diff(offsets) == 0, "empty")
    mark(np.diff(offsets) != np.diff(tag_offsets), "length_mismatch")
    label_ids, bad_tag = _label_ids(rules, flat_tags)
    mark(
        any_per_row(bad_tag, tag_offsets), "unknown_tag" if pa.types.is_string(flat_tags.type) else "label_out_of_range"
    )
    values: pa.Array | np.ndarray = flat
    if columns.words is None:
        token_ids = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False)
        mark(any_per_row((token_ids < 0) | (token_ids >= rules.embedding_rows), offsets), "token_out_of_range")
        values = np.clip(token_ids, 0, np.iinfo(np.int32).max).astype(np.int32)
    masks = None
    if columns.mask:
        masks = _masks(table.column(columns.mask), np.diff(offsets))
        mark(list_lengths(masks) != np.diff(offsets), "length_mismatch")
    ids = _example_ids(rules, sources, raw)
    made = {
        schema.EXAMPLE_ID: ids,
        schema.FILE_PART: pa.array(raw.parts, pa.int32()),
        schema.SOURCE_ROW: pa.array(raw.source_rows, pa.int64()),
        schema.WORDS if columns.words else schema.INPUT_IDS: list_array(values, offsets),
        schema.LABEL_IDS: list_array(label_ids, tag_offsets),
    }
    if masks is not None:
        made[schema.ATTENTION_MASK] = masks
    if columns.documents:
        made[schema.DOCUMENT] = _documents(columns, table)
    for field in columns.carried:
        made[field.name] = without_views(one_array(table.column(field.name))).cast(field.type)
        if field.name in rules.partition_by:
            mark(_too_long_for_a_folder(field.name, made[field.name]), "malformed")
    good = reasons == ""
    errors = [
        (int(raw.parts[i]), _error_row(rules, sources, raw, ids, i, reasons[i])) for i in np.flatnonzero(~good).tolist()
    ]
    for part, record in raw.broken:
        source = sources[part]
        about = {"example_id": f"{source}:{record['source_row']}", "source": source, "stage": "read"}
        errors.append((part, about | record))
    errors.sort(key=lambda error: (error[0], error[1]["source_row"]))
    rows = [row for _, row in errors]
    return Chunk(pa.table(made).filter(pa.array(good)), pa.Table.from_pylist(rows, schema.ERRORS_SCHEMA))


def _too_long_for_a_folder(column: str, values: pa.Array) -> np.ndarray:
    """Which values of a partition column make a name of more bytes than a folder may have."""
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    long = [len(partition_folder(column, value)) > MAX_FOLDER_NAME for value in encoded.dictionary.to_pylist()]
    return np.array(long, dtype=bool)[encoded.indices.to_numpy(zero_copy_only=False)]


def _tag_lists(column: pa.ChunkedArray | None, lengths: np.ndarray) -> pa.ListArray:
    """The tags of each row; a row without has a null for each of its words (`lengths` of them)."""
    item = getattr(None if column is None else column.type, "value_type", pa.int64())
    of_tag = pa.string() if is_text(item) else pa.int64()
    if column is not None and not column.null_count:
        return as_list(column, of_tag)
    none = list_array(pa.nulls(int(lengths.sum()), of_tag), offsets_of(lengths))
    if column is None:
        return none
    given = as_list(column, of_tag)
    return pc.if_else(given.is_null(), none, given)


def _is_null(array: pa.Array) -> np.ndarray:
    return array.is_null().to_numpy(zero_copy_only=False)


def _label_ids(rules: RowRules, tags: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The model's class id of each tag (int32, IGNORE_INDEX where there is none) and which tags it does not know."""
    names = rules.data_tags or rules.tags
    to_model = np.array([IGNORE_INDEX if name == IGN else rules.tags.index(name) for name in names], dtype=np.int32)
    if pa.types.is_string(tags.type):
        index = pc.fill_null(pc.index_in(tags, pa.array(names)), -1).to_numpy(zero_copy_only=False)
        ignored = _is_null(tags) | pc.fill_null(pc.equal(tags, IGN), False).to_numpy(zero_copy_only=False)
        bad = (index < 0) & ~ignored
    else:
        index = pc.fill_null(tags, IGNORE_INDEX).to_numpy(zero_copy_only=False)
        ignored = index == IGNORE_INDEX
        bad = ((index < 0) | (index >= len(names))) & ~ignored
    usable = np.where(ignored | bad, 0, index)
    return np.where(ignored | bad, np.int32(IGNORE_INDEX), to_model[usable]), bad


def _masks(column: pa.ChunkedArray, lengths: np.ndarray) -> pa.ListArray:
    """The attention masks as lists of 0 and 1; a row without one attends to everything."""
    given = as_list(column, pa.int64())
    ones = list_array(np.ones(int(lengths.sum()), dtype=np.int64), offsets_of(lengths))
    filled = pc.if_else(given.is_null(), ones, given) if given.null_count else given
    flat = pc.fill_null(filled.flatten(), 0).to_numpy(zero_copy_only=False) != 0
    return list_array(flat.astype(np.int8), offsets_of(list_lengths(filled)))


def _documents(columns: Columns, table: pa.Table) -> pa.Array:
    """Which document each row is of; the same for all where neither a column nor the format tells."""
    name = columns.document or schema.DOCUMENT
    if name in table.column_names:
        return without_views(one_array(table.column(name))).cast(pa.string())
    return pa.repeat(pa.scalar("", pa.string()), table.num_rows)


def _example_ids(rules: RowRules, sources: Sequence[str], raw: PartRows) -> pa.Array:
    if rules.columns.example_id:
        return without_views(one_array(raw.table.column(rules.columns.example_id))).cast(pa.string())
    numbers = zip(raw.parts.tolist(), raw.source_rows.tolist(), strict=True)
    return pa.array([f"{sources[part]}:{row}" for part, row in numbers], pa.string())


def _error_row(rules: RowRules, sources: Sequence[str], raw: PartRows, ids: pa.Array, i: int, reason: str) -> dict:
    row = raw.table.slice(i, 1).to_pylist()[0]
    source, source_row = sources[raw.parts[i]], int(raw.source_rows[i])
    return {
        "example_id": ids[i].as_py() or f"{source}:{source_row}",
        "source": source,
        "source_row": source_row,
        "stage": "read",
        "reason": reason,
        "detail": _detail(rules, row, reason),
        "payload": json.dumps(payload_row(rules.columns, row), ensure_ascii=False, default=str),
    }


def _detail(rules: RowRules, row: dict, reason: str) -> str:
    """What exactly is wrong with one row, for a person."""
    columns = rules.columns
    first = columns.words or schema.INPUT_IDS
    items, tags = row[first], (row[columns.labels] if columns.labels else None) or []
    if reason == "null_field":
        nulls = [name for name in (first, columns.example_id) if name and row[name] is None]
        return f"{', '.join(nulls)} is null" if nulls else f"{first}[{items.index(None)}] is null"
    if reason == "empty":
        return f"{first} has no {'words' if columns.words else 'tokens'}"
    if reason == "length_mismatch":
        mask = f", {len(row[columns.mask])} {columns.mask}" if columns.mask and row[columns.mask] is not None else ""
        return f"{len(items)} {first}, {len(tags)} {columns.labels}{mask}"
    if reason == "malformed":
        sizes = {name: len(partition_folder(name, row[name])) for name in rules.partition_by if name in row}
        name = max(sizes, key=lambda n: sizes[n])
        return f"{name} makes a folder name of {sizes[name]} bytes (--partition-by), but the limit is {MAX_FOLDER_NAME}"
    names = rules.data_tags or rules.tags
    if reason == "unknown_tag":
        return f"{sorted({t for t in tags if t is not None and t != IGN} - set(names))} not in {list(names)}"
    if reason == "label_out_of_range":
        wrong = [t for t in tags if t is not None and t != IGNORE_INDEX and not 0 <= t < len(names)]
        return f"{wrong[0]} is not among the {len(names)} labels"
    wrong = [t for t in items if not 0 <= t < rules.embedding_rows]
    return f"{wrong[0]} is not among the {rules.embedding_rows} embeddings"
