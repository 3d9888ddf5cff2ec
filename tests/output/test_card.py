"""A finished output is a data set: `datasets` loads the folder as it is."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import read_rows, score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.output.card import card
from tokloss_ray.output.totals import Totals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 sentences, one of them without words, in partitions."""
    folder = tmp_path_factory.mktemp("card")
    table = pq.read_table(DATA).slice(0, 40)
    rows = table.to_pylist()
    rows[7] |= {"tokens": [], "ner_tags": []}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "in.parquet")
    score_inline(
        ScoreConfig(
            model=str(MODEL),
            input=(str(folder / "in.parquet"),),
            output=str(folder / "out"),
            partition_by=("lang",),
            max_error_rate=0.1,
        )
    )
    return folder


def test_datasets_loads_the_folder(folder: Path, tmp_path: Path) -> None:
    out = str(folder / "out")
    loaded = datasets.load_dataset(out, "scores", split="scored", cache_dir=str(tmp_path))
    expected = read_rows(folder / "out")
    assert loaded["example_id"] == [row["example_id"] for row in expected]
    assert loaded["loss"][3] == pytest.approx(expected[3]["loss"], nan_ok=True)
    refused = datasets.load_dataset(out, "errors", split="refused", cache_dir=str(tmp_path))
    assert refused["reason"] == ["empty"]


def test_the_query_in_the_card(folder: Path) -> None:
    text = (folder / "out" / "README.md").read_text()
    (query,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    losses = [row[3] for row in duckdb.sql(query.replace("FOLDER", str(folder / "out"))).fetchall()]
    every = [loss for row in read_rows(folder / "out") for loss in row["loss"]]
    assert losses == sorted(every, reverse=True)[:20]
    assert str(folder) not in text


def test_a_card_says_only_what_there_is() -> None:
    text = card(Totals(rows=3, scored_rows=3, labels=2, tokens=9, loss_by_tag={"A|B": (2, 1.0), "O": (0, 0.0)}))
    assert "config_name: errors" not in text
    assert "| A\\|B | 2 | 0.5000 |\n\n" in text
    assert "with a label, mean loss 0.5000." in text
    assert "with a label.\n" in card(Totals(rows=3, scored_rows=3, tokens=9))
