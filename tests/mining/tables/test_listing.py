"""A mining table is one module and one line of the list: a new one is mined, written, printed and guarded."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tokloss_ray
from tests.support.mining_outputs import demo_sentences, score_demo
from tokloss_ray.cli.app import app
from tokloss_ray.mining.tables import listing
from tokloss_ray.report.data import read_report_data

DOCS = Path(__file__).parents[3] / "docs"

SCRATCH = '''
"""Labelled words by their first letter."""

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.tables.grouping import COUNT, combine_tallies, figures_of, sorted_by, tally
from tokloss_ray.mining.tables.table import Table

LETTER = "first_letter"


def letters_partial(words):
    letters = pc.utf8_slice_codeunits(words.word.cast(pa.string()), 0, 1).dictionary_encode()
    return tally(words, {LETTER: (letters.indices.to_numpy(), letters.dictionary)})[0]


def letters_merge(part, by):
    table = pa.table({name: part.column(name) for name in (*by, LETTER)} | figures_of(part))
    return sorted_by(table, by, [(COUNT, "descending"), (LETTER, "ascending")])


LETTERS = Table(
    name="letters",
    title="First letters",
    shown=(LETTER, COUNT, "mean"),
    partial=lambda part, settings: letters_partial(part.words),
    combine=lambda parts, settings: combine_tallies(parts, [*settings.by, LETTER]),
    final=lambda partials, settings: letters_merge(partials["letters"], settings.by),
)
'''


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred sentences, half of them of one site; and a column that is called like one of the new table."""
    folder = tmp_path_factory.mktemp("scratch")
    sites = [f"site{i % 2}" for i in range(200)]
    source = demo_sentences(folder, 0, 200, site=sites, first_letter=sites)
    return score_demo(folder, source, keep=("site", "first_letter"))


def test_a_new_table_is_one_module_and_one_line(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")  # workers of a Ray that another test has started do not know the table
    tokloss_ray.mine(str(output))  # before there was such a table
    (tmp_path / "scratch_letters.py").write_text(SCRATCH)
    monkeypatch.syspath_prepend(tmp_path)
    letters = importlib.import_module("scratch_letters")
    monkeypatch.setattr(listing, "TABLES", (*listing.TABLES, letters.LETTERS))
    monkeypatch.setattr("tokloss_ray.mining.mine.file_batches", lambda files: [[file] for file in files])

    assert "letters" in read_report_data(str(output)).tables, "tables without the new one were taken for all"
    run = CliRunner().invoke(app, ["mine", str(output), "--by", "site", "--show", "3"])
    assert run.exit_code == 0, run.output
    table = pq.read_table(output / "mining/letters.parquet")
    words = pq.read_table(output / "mining/words.parquet").to_pylist()
    assert table.column_names[:3] == ["site", "first_letter", "count"]
    assert sum(table["count"].to_pylist()) == sum(row["count"] for row in words)
    for site in ("site0", "site1"):
        first = next(row for row in table.to_pylist() if row["site"] == site)
        same = [row for row in words if row["site"] == site and row["word"][0] == first["first_letter"]]
        assert first["count"] == sum(row["count"] for row in same) > 1
        shown = run.output.partition(f"First letters, site {site}  (3 of")[2]
        assert re.search(rf"{re.escape(first['first_letter'])} +{first['count']:,} +{first['mean']:.4f}", shown)
    refused = CliRunner().invoke(app, ["mine", str(output), "--by", "first_letter"])
    assert isinstance(refused.exception, tokloss_ray.TokLossError)
    assert "--by first_letter: the tables already have a column with this name" in str(refused.exception)


def test_without_the_line_there_is_no_such_table(output: Path) -> None:
    assert "letters" not in tokloss_ray.mine(str(output), by=["first_letter"], write=False)


def test_names_are_distinct_and_documented() -> None:
    names = [table.name for table in listing.TABLES]
    assert len(set(names)) == len(names)
    headings = re.findall(r"^### (.*)$", (DOCS / "mining.md").read_text(), re.MULTILINE)
    assert sorted(name for heading in headings for name in heading.split(", ")) == sorted(names)
