"""The same sentences of the demo in every shape of input: scores are those of the Parquet file, paths aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from tests.support import models
from tests.support.inline import Inline, Row, score_inline
from tests.support.shapes import NER, SHAPES, WHOLE, sentences, table
from tokloss_ray import ScoreConfig
from tokloss_ray.output.verify import verify

COUNT = 200
LARGE = 1 << 16
PLACES = ("source", "source_row", "unit", "shard", "word_starts", "word_ends")
READ = ("example_id", "window", "words", "labels", "input_ids", "lang")
"""What does not depend on how rows are cut into micro-batches."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [row["tokens"] for row in sentences(COUNT)]
    return models.build("bert", tmp_path_factory.mktemp("model"), words, NER, max_length=64)


def scored(model: Path, folder: Path, name: str, shard_tokens: int, source: str = "", **settings: Any) -> Inline:
    output = str(folder / f"out-{name}-{shard_tokens}")
    settings = {"id_column": "id", "keep": ["lang"], "shard_tokens": shard_tokens} | settings
    return score_inline(ScoreConfig(model=str(model), input=(source or str(folder / name),), output=output, **settings))


@pytest.fixture(scope="module")
def wanted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("parquet")
    pq.write_table(table(list(sentences(COUNT))), folder / "in.parquet")
    result = scored(model, folder, "in.parquet", LARGE)
    assert len({row["example_id"] for row in result.rows}) == COUNT
    return [without(PLACES, row) for row in result.rows]


def without(names: tuple[str, ...], row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("name", SHAPES)
def test_scores_are_those_of_parquet(model: Path, tmp_path: Path, wanted: list[Row], name: str) -> None:
    """In one shard to the last bit; in parts of a file, whose micro-batches are others, the same rows."""
    write, settings = SHAPES[name]
    write(tmp_path / name, list(sentences(COUNT)))
    result = scored(model, tmp_path, name, LARGE, **settings)
    assert [without(PLACES, row) for row in result.rows] == wanted
    assert verify(result.plan.job.output).problems == []
    parts = scored(model, tmp_path, name, 250, **settings)
    assert (len(parts.plan.units) > 1) == (name not in WHOLE)
    read = [[row[name] for name in READ] for row in wanted]
    assert sorted([row[name] for name in READ] for row in parts.rows) == sorted(read)


REMOTE = (
    "stream.arrow",
    "file.arrow",
    "nested.parquet",
    "json.csv.zst",
    "spaces.tsv",
    "label-studio.json",
    "spans.feather",
)


@pytest.mark.parametrize("name", REMOTE)
def test_scores_are_those_of_parquet_from_object_storage(
    model: Path, tmp_path: Path, wanted: list[Row], name: str
) -> None:
    """Read by ranges, as from any store that is no local file system."""
    write, settings = SHAPES[name]
    write(tmp_path / name, list(sentences(COUNT)))
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/shapes/{name}", (tmp_path / name).read_bytes())
    try:
        result = scored(model, tmp_path, name, LARGE, f"memory://shapes/{name}", **settings)
    finally:
        store.rm("/shapes", recursive=True)
    assert [without(PLACES, row) for row in result.rows] == wanted
