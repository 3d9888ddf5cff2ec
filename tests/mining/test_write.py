"""Reports and tables replace reports and tables, and nothing else, wherever they are sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import s3fs
from typer.testing import CliRunner

import tokloss_ray.mining.diff.compare
import tokloss_ray.mining.mine
import tokloss_ray.report.data
from tests.support import mining_outputs
from tokloss_ray.cli import app as cli
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overwrite")
    return mining_outputs.score_demo(folder, mining_outputs.demo_sentences(folder, 0, 60))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long must not have begun."""

    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("the work had begun")

    monkeypatch.setattr(tokloss_ray.mining.mine, "file_batches", begun)
    monkeypatch.setattr(tokloss_ray.mining.diff.compare, "open_outputs", begun)
    monkeypatch.setattr(tokloss_ray.report.data, "read_finished", begun)


def run(*words: object) -> None:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    if result.exception:
        raise result.exception


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def corpora(folder: Path, output: Path) -> dict[str, Path]:
    """Folders that somebody has data in."""
    table = pq.read_table(DATA).slice(0, 5)
    places = {name: folder / name for name in ("parquet", "same-name", "below", "lines", "conll", "saved", "run")}
    for name, file in {"parquet": "rows.parquet", "same-name": "words.parquet", "below": "lang=de/rows.pq"}.items():
        (places[name] / file).parent.mkdir(parents=True)
        pq.write_table(table, places[name] / file)
    for name, file in {"lines": "rows.jsonl.gz", "conll": "test.conll"}.items():
        places[name].mkdir()
        (places[name] / file).write_bytes(b"data")
    datasets.Dataset(table).save_to_disk(places["saved"])
    shutil.copytree(output, places["run"])
    return places | {"scores": places["run"] / "scores"}


@pytest.mark.parametrize("command", ["mine", "diff"])
def test_tables_go_to_no_folder_of_data(output: Path, tmp_path: Path, no_work: None, command: str) -> None:
    places = corpora(tmp_path, output)
    before = tree(tmp_path)
    outputs = [output] * (1 + (command == "diff"))
    for place in places.values():
        with pytest.raises(Refused, match="is not a tokloss table: choose a folder"):
            run(command, *outputs, "--to", place)
    with pytest.raises(Refused, match="is a file"):
        run(command, *outputs, "--to", DATA)
    assert tree(tmp_path) == before


def test_pages_replace_no_other_file(output: Path, tmp_path: Path, no_work: None) -> None:
    (tmp_path / "page.html").write_text("<!DOCTYPE html><html><head><title>mine</title></head></html>")
    shutil.copy(DATA, tmp_path / "rows.parquet")
    before = tree(tmp_path)
    for name in before:
        with pytest.raises(Refused, match="was not written by tokloss report: choose another file"):
            run("report", output, "-o", tmp_path / name)
    with pytest.raises(Refused, match="is a folder"):
        run("report", output, "-o", tmp_path)
    assert tree(tmp_path) == before


def test_what_tokloss_made_is_replaced(output: Path, tmp_path: Path) -> None:
    to, page = tmp_path / "to", tmp_path / "new" / "page.html"
    to.mkdir()
    (to / "README.md").write_text("about")
    (to / "plot.png").write_bytes(b"")
    run("mine", output, "--to", to)
    first = tree(to)
    run("mine", output, "--to", to, "--limit", 5)
    assert tree(to).keys() == first.keys()
    assert tree(to)["sequences.parquet"] != first["sequences.parquet"]
    run("diff", output, output, "--to", to)
    run("diff", output, output, "--to", to)
    assert (to / "README.md").read_text() == "about"
    for _ in range(2):
        run("report", output, "-o", page)
    page.write_text("")  # as mktemp leaves it: there is nothing to lose
    run("report", output, "-o", page)
    assert b"<title>" in page.read_bytes()
    # The places that are for tables and pages, also where an earlier version has written what is in them.
    own = Path(shutil.copytree(output, tmp_path / "out"))
    (own / "mining" / "diff-abcdef").mkdir(parents=True)
    shutil.copy(DATA, own / "mining" / "diff-abcdef" / "words.parquet")
    (own / "report.html").write_text("old")
    run("mine", own)
    run("mine", own, "--to", own / "mining")
    run("diff", output, own)
    run("report", own)


def test_the_same_in_a_bucket(output: Path, bucket: str) -> None:
    fs = s3fs.S3FileSystem()
    fs.put(str(DATA), f"{bucket}/corpus/rows.parquet")
    fs.pipe_file(f"{bucket}/page.html", b"<html>")
    for words in (["mine", output], ["diff", output, output]):
        with pytest.raises(Refused, match="which is not a tokloss table"):
            run(*words, "--to", f"{bucket}/corpus")
        for _ in range(2):
            run(*words, "--to", f"{bucket}/tables")
    for place in (f"{bucket}/page.html", f"{bucket}/corpus/rows.parquet"):
        with pytest.raises(Refused, match="was not written by tokloss report"):
            run("report", output, "-o", place)
    for _ in range(2):
        run("report", output, "-o", f"{bucket}/new.html")
    assert fs.find(f"{bucket}/corpus") == [f"{bucket.removeprefix('s3://')}/corpus/rows.parquet"]
    assert fs.cat_file(f"{bucket}/corpus/rows.parquet") == DATA.read_bytes()
    assert fs.cat_file(f"{bucket}/page.html") == b"<html>"
