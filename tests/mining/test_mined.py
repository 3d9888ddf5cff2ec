"""Tables of several outputs: readers take the rows of the output they were asked for, as it is now, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

import tokloss_ray
from tests.support.mining_outputs import demo_sentences, score_demo
from tokloss_ray.cli.app import app
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.export import export
from tokloss_ray.report.data import read_report_data
from tokloss_ray.report.page import render

ROWS = 60


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outputs of other sentences, whose input files have the same name and the same row numbers."""
    folder = tmp_path_factory.mktemp("two")
    for name, start in (("a", 0), ("b", 4000)):
        (folder / "in" / name).mkdir(parents=True)
        source = demo_sentences(folder / "in" / name, start, ROWS)
        score_demo(folder / "in" / name, source, output=str(folder / name))
    return folder


@pytest.fixture
def two(scored: Path, tmp_path: Path) -> Path:
    """A copy of them, to write into."""
    for name in "ab":
        shutil.copytree(scored / name, tmp_path / name)
    return tmp_path


def exported(output: str, file: Path, issues: int) -> list[str]:
    """The ids of the sentences of the first issues, in order."""
    export(output, str(file), "label-studio", issues=issues, overwrite=True)
    return [task["data"]["example_id"] for task in json.loads(file.read_text())]


def first_issues(two: Path, name: str, count: int) -> pa.Table:
    """The first issues of one output, mined with the other: slices by output were always told apart."""
    outputs = [str(two / n) for n in "ab"]
    table = tokloss_ray.mine(outputs, by=["output"], write=False)["label_issues"]
    return table.filter(pc.equal(table["output"], str(two / name))).slice(0, count)


@pytest.mark.parametrize("name", ["a", "b"])
def test_export_and_show_take_the_issues_of_their_output(two: Path, name: str) -> None:
    outputs = [str(two / n) for n in ([*"ab"] if name == "a" else [*"ba"])]
    tokloss_ray.mine(outputs)
    issues = first_issues(two, name, 20)
    ids = list(dict.fromkeys(issues["example_id"].to_pylist()))
    assert exported(outputs[0], two / "x.json", 20) == ids
    for task in json.loads((two / "x.json").read_text()):
        words, labels = task["data"]["words"], task["data"]["labels"]
        mine = [row for row in issues.to_pylist() if row["example_id"] == task["data"]["example_id"]]
        assert all((words[i["word_index"]], labels[i["word_index"]]) == (i["word"], i["label"]) for i in mine)
    shown = CliRunner().invoke(app, ["show", outputs[0], "--issues", "--worst", "5"], env={"COLUMNS": "120"}).stdout
    assert [line.split()[0] for line in shown.splitlines() if "total loss" in line] == ids[:5]


def test_names_do_not_matter(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(dict.fromkeys(first_issues(two, "a", 10)["example_id"].to_pylist()))
    monkeypatch.chdir(two)
    tokloss_ray.mine(["a/", "b"])
    assert exported("a", two / "x.json", 10) == ids
    (two / "elsewhere").mkdir()
    monkeypatch.chdir(two / "elsewhere")
    for name in ("../a", "../a/", f"{two}/a", f"file://{two}/a"):
        assert exported(name, two / "x.json", 10) == ids, name
    (two / "a").rename(two / "moved")
    assert exported("../moved", two / "x.json", 10) == ids


def test_a_copy_counts_once(two: Path) -> None:
    shutil.copytree(two / "a", two / "c")
    tokloss_ray.mine([str(two / "a"), str(two / "c")])
    table = tokloss_ray.mine(str(two / "a"), write=False)["label_issues"].slice(0, 9)
    assert exported(str(two / "a"), two / "x.json", 9) == list(dict.fromkeys(table["example_id"].to_pylist()))


def test_tables_that_are_not_about_the_output_are_refused(two: Path, scored: Path) -> None:
    a, b = str(two / "a"), str(two / "b")

    def refused(says: str) -> None:
        with pytest.raises(Refused, match=says):
            exported(a, two / "x.json", 1)
        result = CliRunner().invoke(app, ["show", a, "--issues"])
        assert result.exit_code != 0
        assert not result.stdout

    refused("has no table of label issues: run tokloss mine")
    tokloss_ray.mine(b, to=f"{a}/mining")
    refused("as it is now: run tokloss mine")
    # Mined, then scored again: the same folder with other rows.
    tokloss_ray.mine(a, to=f"{two}/kept")
    shutil.rmtree(a)
    source = demo_sentences(two, 4000, ROWS)
    score_demo(two, source, output=a)
    shutil.copytree(two / "kept", two / "a" / "mining")
    refused("as it is now: run tokloss mine")
    tokloss_ray.mine(a)
    assert exported(a, two / "x.json", 1)
    # Mined while one shard was missing.
    record = sorted((two / "a" / "_commits").iterdir())[-1]
    data = record.read_bytes()
    (two / "a" / "_SUCCESS").rename(two / "_SUCCESS")
    record.unlink()
    tokloss_ray.mine(a, partial=True)
    record.write_bytes(data)
    (two / "_SUCCESS").rename(two / "a" / "_SUCCESS")
    refused("as it is now: run tokloss mine")


def test_more_issues_than_the_table_has_are_refused(two: Path) -> None:
    outputs = [str(two / n) for n in "ab"]
    tables = tokloss_ray.mine(outputs, limit=30)
    count = pc.sum(pc.equal(tables["label_issues"]["output"], outputs[0])).as_py()
    assert 0 < count < 30
    assert exported(outputs[0], two / "x.json", count)
    with pytest.raises(Refused, match=rf"has {count} for .*fewer than --issues {count + 1}: mine .* alone"):
        exported(outputs[0], two / "x.json", count + 1)
    words = tokloss_ray.mine(outputs[0])["label_issues"].num_rows
    assert len(exported(outputs[0], two / "x.json", words * 2)) <= ROWS  # the whole table is there


def test_the_report_is_of_its_output_alone(two: Path) -> None:
    a = str(two / "a")
    before = render(read_report_data(a))
    tokloss_ray.mine([a, str(two / "b")])
    assert render(read_report_data(a)) == before
    tokloss_ray.mine(a)
    assert render(read_report_data(a)) == before


def test_every_row_says_which_output_it_is_of(two: Path) -> None:
    outputs = {str(two / n): set(ids(two / n)) for n in "ab"}
    for by in ([], ["output"]):
        tables = tokloss_ray.mine(list(outputs), by=by, write=False)
        rows: list[Any] = tables["inconsistent"]["labelled"].combine_chunks().flatten().to_pylist()
        found = 0
        for table in tables.values():
            assert len(set(table.column_names)) == len(table.column_names)
            if "source_row" in table.column_names:
                found += 1
                rows += table.select(["output", "example_id"]).to_pylist()
        assert found == 8
        assert all(row["example_id"] in outputs[row["output"]] for row in rows)
        assert {row["output"] for row in rows} == set(outputs)


def ids(output: Path) -> list[str]:
    return list(tokloss_ray.load(str(output), columns=["example_id"])["example_id"].to_pylist())


def test_a_column_of_the_data_that_is_called_output(tmp_path: Path) -> None:
    source = demo_sentences(tmp_path, 0, ROWS, output=["x", "y"] * (ROWS // 2))
    output = str(score_demo(tmp_path, source, keep=("output",)))
    issues = tokloss_ray.mine(output, where=["output=x"])["label_issues"]
    assert set(issues["output"].to_pylist()) == {output}
    assert {row % 2 for row in issues["source_row"].to_pylist()} == {0}
    assert exported(output, tmp_path / "x.json", 3)
    with pytest.raises(Refused, match="--by output: the tables already have a column with this name"):
        tokloss_ray.mine(output, by=["output"], write=False)
