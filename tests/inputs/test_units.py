"""Units of several files: empty ones, row groups, and where a limit falls."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, write_jsonl
from tests.support.tiny import (
    EMPTY,
    SENTENCES,
    TAGS,
    ids,
    row,
    zero_bytes,
)


def test_empty_files_among_others(run: Callable[..., Inline], tmp_path: Path) -> None:
    """First in the list, so that columns and preflight must be taken from a later file."""
    empty = [make(tmp_path) for make in EMPTY.values()]
    full = write_jsonl(tmp_path / "full.jsonl", [row("Anna", lang="de"), row("Otto", lang=None)])
    result = run([*map(str, empty), str(full)], partition_by=["lang"])
    assert ids(result) == ["full.jsonl:0", f"full.jsonl:{len(full.read_bytes().splitlines()[0]) + 1}"]
    folders = {file.parent.name for file in Path(result.plan.job.output, "scores").rglob("*.parquet")}
    assert folders == {"lang=de", "lang=__HIVE_DEFAULT_PARTITION__"}


def test_many_row_groups(run: Callable[..., Inline], tmp_path: Path) -> None:
    sentences = [row(*SENTENCES[i % 3][: 1 + i % 4], tags=[i % 4] * (1 + i % 4)) for i in range(40)]
    pq.write_table(pa.Table.from_pylist(sentences), tmp_path / "in.parquet", row_group_size=3)
    result = run(tmp_path / "in.parquet", tags=TAGS, shard_tokens=14)
    assert len(result.plan.units) > 3
    assert sum(unit.rows for unit in result.plan.units) == 40
    assert [r["source_row"] for r in result.rows] == list(range(40))
    assert [r["words"] for r in result.rows] == [sentence["tokens"] for sentence in sentences]
    assert [r["labels"][1] for r in result.rows] == [TAGS[i % 4] for i in range(40)]
    assert all(record.tokens <= 14 for record in result.records)


@pytest.mark.parametrize(("limit", "shard_tokens"), [(1, 4), (3, 1000), (4, 4), (9, 4), (10, 1000), (11, 4), (30, 4)])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
def test_limit_across_files(
    run: Callable[..., Inline], tmp_path: Path, limit: int, suffix: str, shard_tokens: int
) -> None:
    """The first rows in the order of the files, wherever the limit falls: in a row group, at its end, in no file."""
    names = []
    for file in range(3):
        sentences = [row(f"{file}-{i}", tags=["O"]) for i in range(5)]
        names += [sentence["tokens"][0] for sentence in sentences]
        path = tmp_path / f"{file}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(sentences), path, row_group_size=2)
        else:
            lines = "\n".join(json.dumps(sentence) for sentence in sentences).replace("\n", "\n\n").encode()
            path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    result = run(tmp_path / f"*.{suffix}", limit=limit, shard_tokens=shard_tokens)
    assert [r["words"][0] for r in result.rows] == names[:limit]
    assert result.totals.rows == result.plan.rows == min(limit, 15)


def test_limit_counts_bad_rows(run: Callable[..., Inline], tmp_path: Path) -> None:
    """`--limit` is about rows read: 3 rows in, whatever becomes of them."""
    source = zero_bytes(tmp_path / "in.jsonl", b'{"tokens": ["a"], "ner_tags": [0]}\nnot json\n\n[]\n{"tokens": []}\n')
    result = run(source, limit=3, max_error_rate=1)
    assert (result.totals.rows, result.totals.scored_rows, result.totals.error_rows) == (3, 1, 2)
