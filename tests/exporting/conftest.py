"""An output to export, and the data it was made of."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support import inline, models
from tests.support.corrections import TAGS
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 150 real sentences in two files, and what scoring them gave."""
    folder = tmp_path_factory.mktemp("export")
    table = pq.read_table(DATA)
    models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS, max_length=32)
    (folder / "data" / "more").mkdir(parents=True)
    (folder / "data" / "README.md").write_text("about\n")
    pq.write_table(table.slice(0, 100), folder / "data" / "a.parquet", row_group_size=40, compression="zstd")
    pq.write_table(table.slice(100, 50), folder / "data" / "more" / "b.parquet")
    config = ScoreConfig(
        model=str(folder / "model"),
        input=(str(folder / "data"),),
        output=str(folder / "out"),
        id_column="id",
        partition_by=("lang",),
        shard_tokens=500,
        max_length=32,  # so that long sentences become windows
        overlap=8,
    )
    inline.score_inline(config)
    return folder
