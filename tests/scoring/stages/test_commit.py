"""What is in the files of a shard, and partitions that no folder can be named by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, score_inline, write_jsonl
from tests.support.tiny import (
    row,
)
from tokloss_ray import ScoreConfig, schema
from tokloss_ray.scoring.stages.decode import named


def test_strings_are_dictionaries_in_files_and_strings_to_readers(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Losses and probabilities, of which hardly any two are the same, are no dictionaries."""
    rows = [row("Anna", "wohnt", kept=1.5, pairs=[{"x": 1, "y": 0.5}]), row("Otto", kept=None, pairs=[])]
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source)
    result = run(source, keep=["kept", "pairs"], keep_probs=True)
    assert [(r["kept"], r["pairs"]) for r in result.rows] == [(r["kept"], r["pairs"]) for r in rows]
    (path,) = (tmp_path / "out0" / "scores").iterdir()
    file = pq.ParquetFile(path)
    assert tuple(file.schema_arrow)[: len(schema.SCORES_FIELDS)] == schema.SCORES_FIELDS
    assert duckdb.sql(f"select labels from read_parquet('{path}')").fetchall() == [(r["labels"],) for r in result.rows]
    group = file.metadata.row_group(0)
    columns = {(c := group.column(i)).path_in_schema: c for i in range(group.num_columns)}
    plain = {name for name, column in columns.items() if not column.has_dictionary_page}
    floats = {"total_loss", "mean_loss", "max_loss", "kept", "pairs.list.element.y", "probs.list.element.list.element"}
    assert plain == floats | {f"{name}.list.element" for name in ("loss", "predicted_prob", "second_prob")}
    assert {name for name, column in columns.items() if column.is_stats_set} == {n for n in columns if "." not in n}


def test_partitions_hold_the_strings_of_their_own_rows(run: Callable[..., Inline], tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", topic="a"), row("Otto", topic="b")])
    result = run(source, partition_by=["topic"])
    for folder in (tmp_path / "out0" / "scores").iterdir():
        (path,) = folder.iterdir()
        table = pq.ParquetFile(path, read_dictionary=["input_tokens.list.element"]).read()
        tokens = table.column("input_tokens").combine_chunks().flatten()
        assert sorted(tokens.dictionary.to_pylist()) == sorted(set(tokens.to_pylist()))
    assert [r["words"] for r in result.rows] == [["Anna"], ["Otto"]]


def test_names_of_ids_are_those_that_there_are() -> None:
    """An id of which the tokenizer has no string (the model may have more embeddings) stays null."""
    names = pa.array(["a", "b", "c", None])
    some = named(pa.array([2, 0, 2]), names)
    assert (some.to_pylist(), some.dictionary.to_pylist()) == (["c", "a", "c"], ["a", "c"])
    none = named(pa.array([2, 3, 0]), names)
    assert (none.to_pylist(), none.type, none.null_count) == (["c", None, "a"], pa.string(), 1)
    assert named(pa.array([], pa.int32()), names).to_pylist() == []


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_partition_value_that_no_folder_can_be_named_by(model: Path, tmp_path: Path, file_format: str) -> None:
    """Names of folders hold 255 bytes, and a Chinese character is nine of them: `topic=` and 27 fit, 28 do not."""
    fits, too_long = "\u65b0" * 27 + "abcdef", "\u65b0" * 28
    rows = [row("Anna", topic=topic) for topic in (fits, too_long, None, "x" * 249, "x" * 250, "a b")]
    if file_format == "jsonl":
        source = write_jsonl(tmp_path / "in.jsonl", rows)
    else:
        source = tmp_path / "in.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source)
    config = ScoreConfig(
        model=str(model), input=str(source), output=str(tmp_path / "out"), partition_by=["topic"], max_error_rate=0.4
    )
    result = score_inline(config)
    assert len(result.rows) == 4
    folders = {folder.name for folder in (tmp_path / "out" / "scores").iterdir()}
    null, space = "topic=__HIVE_DEFAULT_PARTITION__", "topic=a%20b"
    assert folders == {f"topic={'%E6%96%B0' * 27}abcdef", null, f"topic={'x' * 249}", space}
    assert [json.loads(error["payload"])["topic"] for error in result.errors] == [too_long, "x" * 250]
    assert [error["reason"] for error in result.errors] == ["malformed"] * 2
    sentence = "topic makes a folder name of {} bytes (--partition-by), but the limit is 255"
    assert [error["detail"] for error in result.errors] == [sentence.format(258), sentence.format(256)]


def test_constant_that_no_folder_can_be_named_by(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(add_column={"topic": "\u65b0" * 28}, partition_by=["topic"])
    assert message.startswith("--add-column topic=")
    assert "258 bytes, but the limit is 255" in message
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", **{"\u65b0" * 28: "a"})])
    assert "--partition-by" in refused(input=source, partition_by=["\u65b0" * 28])
