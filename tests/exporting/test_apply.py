"""Corrected labels in a copy of a dataset: what the copy keeps, what it leaves behind, and a copy that is cut off."""

from __future__ import annotations

import csv
import io
import os
import signal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.support import warm
from tokloss_ray import faults
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.csv_sheet import csv_words
from tokloss_ray.exporting.sentences import Sentence
from tokloss_ray.inputs.listing import list_inputs

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


def corrections(file: Path, table: pa.Table, source: str, new: dict[int, str]) -> str:
    """A corrected CSV: in each row of `new` the first word gets the tag."""
    words, tags = (table.column(name).to_pylist() for name in ("tokens", "ner_tags"))
    sentences = [
        Sentence("", source, row, words[row], [TAGS[t] for t in tags[row]], *([None] * len(words[row]) for _ in "123"))
        for row in new
    ]
    text = b"".join(csv_words(sentences)).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        if row["word_index"] == "0":
            row["corrected"] = new[int(row["source_row"])]
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pq.read_table(DATA).slice(0, 60)


# A saved dataset


def first_tags(row: dict[str, Any]) -> dict[str, Any]:
    return {"first": row["ner_tags"][0]}


@pytest.mark.parametrize("split", [None, "train"])
def test_results_of_map_are_those_of_the_new_labels(table: pa.Table, tmp_path: Path, split: str | None) -> None:
    data = datasets.Dataset(table)
    kept = datasets.Dataset(table.slice(30))
    saved = datasets.DatasetDict({"train": data, "test": kept}) if split else data
    saved.save_to_disk(tmp_path / "saved")

    def load(name: str) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        loaded = datasets.load_from_disk(str(tmp_path / name))
        return (loaded[split], loaded["test"]) if split else (loaded, None)

    old, other = load("saved")
    before = old.map(first_tags)["first"]  # leaves its result in the folder
    if other is not None:
        other.map(first_tags)
    assert list((tmp_path / "saved").rglob("cache-*.arrow"))
    fixes = corrections(tmp_path / "fix.csv", table, "data-00000-of-00001.arrow", {3: "I-LOC", 7: "B-ORG"})
    assert before[3] != 6
    for name in ("new", "again"):
        apply_fixes(fixes, str(tmp_path / "saved"), str(tmp_path / name), split=split)
    left_behind = not list((tmp_path / "new").rglob("cache-*"))
    new, unchanged = load("new")
    after = new.map(first_tags)["first"]
    assert list(after) == [row[0] for row in new["ner_tags"]]
    assert [i for i in range(60) if before[i] != after[i]] == [3, 7]
    assert left_behind
    assert new._fingerprint == load("again")[0]._fingerprint != old._fingerprint
    if other is not None and unchanged is not None:
        assert unchanged._fingerprint == other._fingerprint
    # Other corrections, another fingerprint; none, the same.
    for name, tag in (("third", "B-PER"), ("same", TAGS[before[3]])):
        fixes = corrections(tmp_path / "fix.csv", table, "data-00000-of-00001.arrow", {3: tag})
        apply_fixes(fixes, str(tmp_path / "saved"), str(tmp_path / name), split=split)
    assert load("third")[0]._fingerprint not in (new._fingerprint, old._fingerprint)
    assert load("same")[0]._fingerprint == old._fingerprint


# Cut off


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def corpus(table: pa.Table, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    pq.write_table(table.slice(0, 30), folder / "a.parquet")
    pq.write_table(table.slice(30), folder / "more" / "b.parquet")
    (folder / "README.md").write_text("about\n")
    return folder


@pytest.mark.parametrize("point", ["apply.file@b.parquet", "file.half@b.parquet", "apply.file@README", "apply.whole"])
def test_a_copy_is_there_when_it_is_whole(table: pa.Table, corpus: Path, tmp_path: Path, point: str) -> None:
    fixes = corrections(tmp_path / "fix.csv", table, "a.parquet", {3: "I-LOC"})
    apply_fixes(fixes, str(corpus), str(tmp_path / "whole"))
    there = {*os.listdir(tmp_path)}
    env = os.environ | {"TOKLOSS_FAULTS": f"{point}=kill"}
    killed = warm.run(apply_fixes, fixes, str(corpus), str(tmp_path / "new"), env=env)
    assert killed.returncode == -signal.SIGKILL
    (left,) = {*os.listdir(tmp_path)} - there
    assert left.startswith(".")
    apply_fixes(fixes, str(corpus), str(tmp_path / "new"))
    assert tree(tmp_path / "new") == tree(tmp_path / "whole")
    assert {*os.listdir(tmp_path)} == there | {"new"}


def test_an_error_leaves_nothing(table: pa.Table, corpus: Path, tmp_path: Path, monkeypatch: Any) -> None:
    fixes = corrections(tmp_path / "fix.csv", table, "a.parquet", {3: "I-LOC"})
    there = {*os.listdir(tmp_path)}
    monkeypatch.setattr(faults, "_faults", "apply.file@b.parquet=raise")
    with pytest.raises(faults.InjectedFault):
        apply_fixes(fixes, str(corpus), str(tmp_path / "new"))
    assert {*os.listdir(tmp_path)} == there


def test_a_copy_in_a_bucket_is_whole_or_marked(
    table: pa.Table, corpus: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bucket.removeprefix("s3://")
    fixes = corrections(tmp_path / "fix.csv", table, "a.parquet", {3: "I-LOC"})
    fs = s3fs.S3FileSystem()
    monkeypatch.setattr(faults, "_faults", "apply.file@README=raise")
    with pytest.raises(faults.InjectedFault):
        apply_fixes(fixes, str(corpus), f"{bucket}/new")
    fs.pipe_file(f"{bucket}/new/stray.parquet", b"of the first attempt")
    with pytest.raises(Refused, match="is incomplete"):
        list_inputs([f"{bucket}/new"])
    monkeypatch.setattr(faults, "_faults", "")
    apply_fixes(fixes, str(corpus), f"{bucket}/new")
    apply_fixes(fixes, str(corpus), str(tmp_path / "new"))
    found = {path.removeprefix(f"{name}/new/"): fs.cat_file(path) for path in fs.find(f"{bucket}/new")}
    assert found == tree(tmp_path / "new")
    assert list_inputs([f"{bucket}/new"])
    with pytest.raises(Refused, match="already exists"):
        apply_fixes(fixes, str(corpus), f"{bucket}/new")


# Parquet


def visible_settings(file: Path) -> list[Any]:
    """What the metadata of a Parquet file say of how it was written, column by column."""
    metadata = pq.read_metadata(file)
    about: list[Any] = [metadata.format_version, sorted(k for k in metadata.metadata or {})]
    for i in range(metadata.num_columns):
        column = metadata.schema.column(i)
        about.append((column.path, column.physical_type, str(column.logical_type), column.max_repetition_level))
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        about += [group.num_rows, group.sorting_columns]
        for i in range(metadata.num_columns):
            chunk = group.column(i)
            seen = ("path_in_schema", "compression", "encodings", "has_dictionary_page", "is_stats_set", "num_values")
            about.append([getattr(chunk, name) for name in (*seen, "has_offset_index", "has_column_index")])
    return about


LISTS = ("tokens.list.item", "ner_tags.list.item")
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "items": {
        "use_compliant_nested_type": False,
        "compression": {LISTS[0]: "zstd", LISTS[1]: "gzip", "n": "none", "t": "brotli", "id": "lz4"},
    },
    "codecs": {"compression": {"tokens.list.element": "gzip", "ner_tags.list.element": "none", "id": "brotli"}},
    "int96": {"use_deprecated_int96_timestamps": True, "compression": "gzip"},
    "old": {
        "version": "1.0",
        "use_dictionary": False,
        "write_statistics": False,
        "store_schema": False,
        "coerce_timestamps": "us",
        "allow_truncated_timestamps": True,
    },
    "some": {
        "use_dictionary": ["id"],
        "write_statistics": ["n", "ner_tags.list.element"],
        "column_encoding": {"n": "DELTA_BINARY_PACKED", "tokens.list.element": "DELTA_BYTE_ARRAY"},
        "store_decimal_as_integer": True,
    },
    "indexes": {"write_page_index": True, "sorting_columns": [pq.SortingColumn(1)], "write_time_adjusted_to_utc": True},
}


def rich(table: pa.Table) -> pa.Table:
    n = pa.array([None if i % 7 == 3 else i for i in range(60)], pa.uint16())
    days = pa.array([i * 86_400_000_000_000 + 123_456_789 for i in range(60)], pa.timestamp("ns"))
    more = {
        "n": n,
        "t": days,
        "clock": pa.array(range(60), pa.time64("us")),
        "price": pa.array(range(60)).cast(pa.decimal128(19)).cast(pa.decimal128(9), safe=False),
        "deep": pa.array([[{"a": [i], "b": str(i)}] for i in range(60)]),
    }
    for name, values in more.items():
        table = table.append_column(name, values)
    return table.select(["tokens", "n", "ner_tags", "t", "clock", "price", "deep", "id"])


@pytest.mark.parametrize("name", SETTINGS)
def test_parquet_is_written_as_it_was(table: pa.Table, tmp_path: Path, name: str) -> None:
    before, after = tmp_path / "before.parquet", tmp_path / "after.parquet"
    pq.write_table(rich(table), before, row_group_size=25, **SETTINGS[name])
    fixes = corrections(tmp_path / "fix.csv", table, "before.parquet", {3: "I-LOC", 40: "B-ORG"})
    apply_fixes(fixes, str(before), str(after), tags=tuple(TAGS))
    assert visible_settings(after) == visible_settings(before)
    old, new = pq.read_table(before), pq.read_table(after)
    assert new.schema.equals(old.schema, check_metadata=True)
    assert new.drop_columns(["ner_tags"]).equals(old.drop_columns(["ner_tags"]))
    expected = old.column("ner_tags").to_pylist()
    expected[3][0], expected[40][0] = 6, 3
    assert new.column("ner_tags").to_pylist() == expected


def test_times_of_any_year_are_kept(table: pa.Table, tmp_path: Path) -> None:
    """INT96 holds years that 64 bits of nanoseconds do not: pyarrow reads 9999 as 1816 and says nothing."""
    forever = 253_402_214_400_000_000
    times = pa.array([forever, -62_135_596_800_000_000, -1, None] * 15, pa.timestamp("us"))
    before, after = tmp_path / "before.parquet", tmp_path / "after.parquet"
    wide = table.append_column("t", times).append_column("ts", pa.array([[{"a": t}] for t in times]))
    pq.write_table(wide, before, use_deprecated_int96_timestamps=True)
    fixes = corrections(tmp_path / "fix.csv", table, "before.parquet", {3: "I-LOC"})
    apply_fixes(fixes, str(before), str(after))
    assert visible_settings(after) == visible_settings(before)
    for file in (before, after):
        assert pq.ParquetFile(file, coerce_int96_timestamp_unit="us").read(["t", "ts"]).equals(wide.select(["t", "ts"]))
    nanoseconds = pa.array([i * 1001 for i in range(30)], pa.timestamp("ns"))
    both = pa.table({"t": pa.chunked_array([nanoseconds])})
    pq.write_table(wide.slice(0, 30).append_column("fine", both["t"]), before, use_deprecated_int96_timestamps=True)
    with pytest.raises(Refused, match="nanoseconds"):
        apply_fixes(fixes, str(before), str(tmp_path / "none.parquet"))
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.parametrize("writer", ["duckdb", "polars"])
def test_parquet_of_other_writers_keeps_its_types(table: pa.Table, tmp_path: Path, writer: str) -> None:
    import duckdb
    import polars

    before, after = tmp_path / "before.parquet", tmp_path / "after.parquet"
    given = rich(table)
    if writer == "duckdb":
        duckdb.sql(f"copy (select * from given) to '{before}' (compression zstd, row_group_size 2048)")
    else:
        polars.from_arrow(given).write_parquet(before, row_group_size=25)  # type: ignore[union-attr]
    fixes = corrections(tmp_path / "fix.csv", table, "before.parquet", {3: "I-LOC"})
    apply_fixes(fixes, str(before), str(after), tags=tuple(TAGS))
    old, new = pq.read_table(before), pq.read_table(after)
    assert new.schema.equals(old.schema, check_metadata=True)
    assert new.drop_columns(["ner_tags"]).equals(old.drop_columns(["ner_tags"]))
    columns = [
        [(chunk.path_in_schema, chunk.physical_type, chunk.compression) for chunk in map(group.column, range(count))]
        for group, count in ((meta.row_group(0), meta.num_columns) for meta in map(pq.read_metadata, (before, after)))
    ]
    assert columns[0] == columns[1]
