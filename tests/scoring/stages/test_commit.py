"""Partitions that no folder can be named by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import score_inline, write_jsonl
from tests.support.tiny import (
    row,
)
from tokloss_ray import ScoreConfig


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
