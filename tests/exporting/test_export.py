"""Export in every format: what is written, and that it is read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import tokloss_ray
from tests.support import inline
from tests.support.corrections import FORMATS, TAGS, annotated, correct, texts, whole
from tokloss_ray.cli.app import app
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.conll_sheet import conll, read_conll
from tokloss_ray.exporting.csv_sheet import csv_words, read_csv_words
from tokloss_ray.exporting.doccano import DOCCANO
from tokloss_ray.exporting.export import export
from tokloss_ray.exporting.formats import format_of
from tokloss_ray.exporting.label_studio import read_tasks, tasks_json
from tokloss_ray.exporting.prodigy import PRODIGY
from tokloss_ray.exporting.sentences import Correction, Sentence, read_sentences
from tokloss_ray.exporting.spacy_docs import SPACY
from tokloss_ray.mining.mined import provenance_of
from tokloss_ray.mining.write import write_tables
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.tags.sentence_spans import tag_set_of

TAG_SET = tag_set_of(tuple(TAGS))
tag = st.sampled_from([*TAGS, None])


@st.composite
def sentences(draw: st.DrawFn) -> list[Sentence]:
    found = []
    for i in range(draw(st.integers(1, 3))):
        words = draw(st.lists(texts, min_size=1, max_size=5))
        n = len(words)
        labels, predicted = (draw(st.lists(tag, min_size=n, max_size=n)) for _ in "12")
        losses = [None if label is None else 0.5 for label in labels]
        probs = [None if label is None else 0.25 for label in predicted]
        found.append(Sentence(draw(texts), draw(texts), i, words, labels, predicted, probs, losses))
    return found


READERS: dict[str, tuple[Callable[[list[Sentence]], bytes], Callable[[bytes], Any]]] = {
    "conll": (lambda s: whole(conll(s, loss=True)), read_conll),
    "csv": (lambda s: whole(csv_words(s)), read_csv_words),
    "doccano": (lambda s: whole(DOCCANO.write(s, TAG_SET, False)), DOCCANO.read),
    "prodigy": (lambda s: whole(PRODIGY.write(s, TAG_SET, False)), PRODIGY.read),
    "spacy": (lambda s: whole(SPACY.write(s, TAG_SET, False)), SPACY.read),
    "label-studio": (lambda s: annotated(whole(tasks_json(s, TAG_SET))), read_tasks),
}


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=150, deadline=None)
@given(given_sentences=sentences())
def test_what_was_exported_is_read_back(format: str, given_sentences: list[Sentence]) -> None:
    write, read = READERS[format]
    written = write(given_sentences)
    assert format_of(written).name == format
    found = list(read(written))
    assert found == [
        Correction(s.example_id, s.source, s.source_row, dict(enumerate(s.words))) for s in given_sentences
    ]


def test_selections(folder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(folder / "out", str(tmp_path / "out"))
    totals: dict[str, float] = {}
    for row in inline.read_rows(folder / "out"):
        totals[row["example_id"]] = totals.get(row["example_id"], 0) + row["total_loss"]
    worst = sorted(totals, key=lambda name: -totals[name])[:5]
    assert export(out, str(tmp_path / "worst.json"), "label-studio", worst=5) == 5
    tasks = json.loads((tmp_path / "worst.json").read_text())
    assert [task["data"]["example_id"] for task in tasks] == worst
    assert '<Label value="PER"/>' in (tmp_path / "worst.json.xml").read_text()
    assert export(out, str(tmp_path / "ids.csv"), "csv", ids=[worst[3], worst[1]]) == 2
    assert export(out, str(tmp_path / "de.csv"), "csv", where=["lang=de"]) == 150
    for wrong, says in (
        ({"ids": ["nobody"]}, "no sentence with the id nobody"),
        ({"where": ["lang=fr"]}, "no matching sentences"),
        ({"where": ["language=fr"]}, "no such column"),
        ({"worst": 1, "ids": ["x"]}, "use only one of them"),
        ({"issues": 1}, "tokloss mine"),
    ):
        with pytest.raises(Refused, match=says):
            export(out, str(tmp_path / "none.csv"), "csv", **wrong)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="already exists"):
        export(out, str(tmp_path / "ids.csv"), "csv")
    keys = [(s.source, s.source_row) for s in read_sentences(out) if s.example_id in worst[:2]]
    columns = {"output": [out] * 4, "source": [k[0] for k in keys * 2], "source_row": [k[1] for k in keys * 2]}
    made = provenance_of(open_outputs(out), {"by": [], "where": [], "limit": 10})
    write_tables(f"{out}/mining", {"label_issues": pa.table(columns)}, made)
    assert export(out, str(tmp_path / "issues.csv"), "csv", issues=3) == 2


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    out, file, data = str(folder / "out"), str(tmp_path / "w.csv"), str(folder / "data")
    run = CliRunner().invoke(app, ["export", out, "-f", "csv", "-o", file, "--id", "de-val-7", "--id", "de-val-8"])
    assert run.exit_code == 0, run.output
    assert "Wrote 2 sentences to" in run.output
    correct(Path(file), "csv", {("de-val-7", 0): "B-LOC", ("de-val-7", 1): "I-LOC"})
    run = CliRunner().invoke(app, ["apply-fixes", file, "--to", data, "-o", str(tmp_path / "new")])
    assert run.exit_code == 0, run.output
    said = dict(line.rsplit("  ", 1) for line in run.output.splitlines() if "  " in line)
    assert said["rows changed "] == "1"
    assert tokloss_ray.export is export


def test_outputs_and_datasets_in_a_bucket(folder: Path, tmp_path: Path, bucket: str) -> None:
    fs = s3fs.S3FileSystem()
    fs.put(str(folder / "out"), f"{bucket}/out", recursive=True)
    fs.put(str(folder / "data"), f"{bucket}/data", recursive=True)
    export(f"{bucket}/out", f"{bucket}/w.csv", "csv", worst=3)
    fs.get(f"{bucket}/w.csv", str(tmp_path / "w.csv"))
    name = (tmp_path / "w.csv").read_text("utf-8-sig").split("\n")[1].split(",")[0]
    correct(tmp_path / "w.csv", "csv", {(name, 0): "I-LOC"})
    fs.put(str(tmp_path / "w.csv"), f"{bucket}/w.csv")
    done = apply_fixes(f"{bucket}/w.csv", f"{bucket}/data", f"{bucket}/new")
    local = apply_fixes(str(tmp_path / "w.csv"), str(folder / "data"), str(tmp_path / "new"))
    assert done == local
    for path in sorted((tmp_path / "new").rglob("*.*")):
        assert fs.cat_file(f"{bucket}/new/{path.relative_to(tmp_path / 'new').as_posix()}") == path.read_bytes()
    same = tokloss_ray.diff(f"{bucket}/out", str(folder / "out"))
    assert (same.matched.rows, same.matched.only_a, same.matched.only_b) == (150, 0, 0)
