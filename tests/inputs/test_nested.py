"""Columns within columns, by dotted names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, write_jsonl
from tests.support.tiny import TAG_LIST, Row
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.export import export

DATA = {"tokens_column": "data.tokens", "labels_column": "data.tags"}
ROWS: list[Row] = [
    {"data": {"tokens": ["Anna", "und"], "tags": ["B-PER", "O"], "about": {"lang": "de"}}, "n": 1},
    {"data": None, "n": 2},
    {"data": {"tokens": None, "tags": ["O"], "about": None}, "n": 3},
    {"data": {"tokens": ["Otto"], "tags": ["O", "O"], "about": {"lang": None}}, "n": 4},
    {"data": {"tokens": ["See"], "tags": ["O"], "about": {"lang": "en"}}, "n": 5},
]
WRITERS: dict[str, Callable[[Path], object]] = {
    "parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2),
    "feather": lambda path: feather.write_feather(pa.Table.from_pylist(ROWS), path),
    "jsonl": lambda path: write_jsonl(path, ROWS),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_rows_and_errors(run: Callable[..., Inline], tmp_path: Path, ending: str) -> None:
    WRITERS[ending](tmp_path / f"in.{ending}")
    result = run(tmp_path / f"in.{ending}", keep=["data.about.lang", "n"], max_error_rate=1.0, **DATA)
    assert [(row["words"], row["data.about.lang"], row["n"]) for row in result.rows] == [
        (["Anna", "und"], "de", 1),
        (["See"], "en", 5),
    ]
    assert [error["reason"] for error in result.errors] == ["null_field", "null_field", "length_mismatch"]
    assert result.errors[1]["detail"] == "data.tokens is null"


@pytest.mark.parametrize("ending", WRITERS)
def test_a_field_that_there_is_not(refused: Callable[..., str], tmp_path: Path, ending: str) -> None:
    WRITERS[ending](tmp_path / f"in.{ending}")
    message = refused(input=tmp_path / f"in.{ending}", tokens_column="data.words", labels_column="data.tags")
    assert f"no column data.words (--tokens-column): in.{ending} has the columns data, n, data." in message
    assert "data.tokens" in message
    if ending != "jsonl":  # whose rows are looked at one by one
        assert "is struct" in refused(input=tmp_path / f"in.{ending}", tokens_column="data", labels_column="n")


def test_a_name_with_a_dot_comes_first(run: Callable[..., Inline], tmp_path: Path) -> None:
    inner = {"tokens": ["Otto", "Otto"], "tags": ["O", "O"]}
    row = {"data": inner, "data.tokens": ["Anna"], "data.tags": ["B-PER"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    write_jsonl(tmp_path / "in.jsonl", [row])
    for name in ("in.parquet", "in.jsonl"):
        assert [r["words"] for r in run(tmp_path / name, **DATA).rows] == [["Anna"]]


def test_tag_names_that_the_data_declare(run: Callable[..., Inline], tmp_path: Path) -> None:
    features = datasets.Features({"data": {"tokens": datasets.List(datasets.Value("string")), "tags": TAG_LIST}})
    rows = {"data": [{"tokens": ["Anna", "in", "Berlin"], "tags": [2, 1, 0]}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    (row,) = run(tmp_path / "saved", **DATA).rows
    assert [label for label in row["labels"] if label != "IGN"] == ["B-PER", "O", "B-LOC"]


@pytest.mark.parametrize("name", ["nested.parquet", "nested.jsonl", "flat.feather", "flat.csv"])
def test_corrections_cannot_be_written_back(run: Callable[..., Inline], tmp_path: Path, name: str) -> None:
    """One sentence says so, before anything is written."""
    path = tmp_path / name
    nested = name.startswith("nested")
    if nested:
        row = {"data": {"tokens": ["Anna", "und"], "tags": ["B-PER", "O"]}}
        write_jsonl(path, [row]) if path.suffix == ".jsonl" else pq.write_table(pa.Table.from_pylist([row]), path)
    elif path.suffix == ".csv":
        path.write_text("tokens,tags\n['Anna'],['O']\n")
    else:
        feather.write_feather(pa.table({"tokens": [["Anna"]], "tags": [["O"]]}), path)
    result = run(path, **(DATA if nested else {}))
    export(result.plan.job.output, str(tmp_path / "fix.csv"), "csv")
    with pytest.raises(Refused, match="corrections cannot be written back"):
        apply_fixes(str(tmp_path / "fix.csv"), str(path), str(tmp_path / "new"), **(DATA if nested else {}))
    assert not (tmp_path / "new").exists()
