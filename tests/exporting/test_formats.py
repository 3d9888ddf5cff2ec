"""An export format is one value in one list: with a new one there, sentences are written in it and read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.exporting import formats
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import TagSet

# A scratch format: a JSON object a line, behind a mark that tells it from others.


def write(sentences: Iterable[Sentence], tag_set: TagSet, loss: bool) -> Iterator[bytes]:
    for s in sentences:
        yield b"!" + json.dumps([s.example_id, s.source, s.source_row, s.words, s.labels, s.labels]).encode() + b"\n"


def read(data: bytes) -> Iterator[Correction]:
    for line in data.decode().splitlines():
        example_id, source, row, words, labels, corrected = json.loads(line.removeprefix("!"))
        pairs = enumerate(zip(labels, corrected, strict=True))
        changes = {i: (label, tag) for i, (label, tag) in pairs if label != tag}
        yield Correction(example_id, source, row, dict(enumerate(words)), changes)


SCRATCH = ExportFormat(
    name="scratch",
    write=write,
    read=read,
    recognises=lambda data: data.startswith(b"!"),
    next_step="Change {file}, then:",
)


def test_a_new_format_is_one_value_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(DATA).slice(0, 30)
    source, output, file = tmp_path / "in.parquet", tmp_path / "out", tmp_path / "sheet.txt"
    pq.write_table(table, source)
    score_inline(ScoreConfig(model=str(MODEL), input=(str(source),), output=str(output), id_column="id"))
    command = ["export", str(output), "--format", "scratch", "-o", str(file)]
    assert CliRunner().invoke(app, command).exit_code != 0
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, SCRATCH))
    said = CliRunner().invoke(app, command, env={"COLUMNS": "200"}, catch_exceptions=False).output
    assert "Change" in said
    lines = file.read_text().splitlines()
    sentence = json.loads(lines[3].removeprefix("!"))
    at = next(i for i, label in enumerate(sentence[4]) if label == "O")
    sentence[5][at] = "B-LOC"
    file.write_text("\n".join([*lines[:3], "!" + json.dumps(sentence), *lines[4:]]))
    done = apply_fixes(str(file), str(source), str(tmp_path / "fixed.parquet"))
    assert (done.rows_read, done.rows_changed, done.words_changed) == (30, 1, 1)


def test_help_and_documentation_have_every_format() -> None:
    said = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "200"}).output
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    for format_ in formats.FORMATS:
        assert format_.name in said
        assert f"(`--format {format_.name}`)" in page


def test_one_format_at_most_begins_with_anything() -> None:
    assert sum(format_.recognises is None for format_ in formats.FORMATS) == 1
