"""An input format is one value in one list: with a new one there, its files are found, cut into units and read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import MODEL
from tokloss_ray.errors import Refused
from tokloss_ray.inputs import formats
from tokloss_ray.inputs.format import Format, Groups, RawChunk
from tokloss_ray.inputs.jsonl import json_table
from tokloss_ray.inputs.lines import lines_of, next_line
from tokloss_ray.inputs.unit import Columns, FilePart
from tokloss_ray.storage.files import Listed

# A scratch format: a sentence a line, `word/TAG word/TAG`.


def lines(part: FilePart) -> Iterator[tuple[int, bytes]]:
    with open(part.path, "rb") as file:
        start = next_line(file, part.start, part.stop) if part.start else 0
        for offset, line, _, blank in lines_of(file, start, part.stop):
            if not blank:
                yield offset, line


def inspect(file: Listed) -> tuple[pa.Schema, Groups]:
    strings = pa.list_(pa.string())
    return pa.schema([("tokens", strings), ("ner_tags", strings)]), ()


def read(columns: Columns, part: FilePart) -> Iterator[RawChunk]:
    for offset, line in lines(part):
        pairs = [pair.rsplit("/", 1) for pair in line.decode().split()]
        row = {columns.words: [word for word, _ in pairs], columns.labels: [tag for _, tag in pairs]}
        yield RawChunk(json_table(columns, [row], pa.string()), np.array([offset]), [])


SLASHED = Format(
    name="slashed",
    title="Slashed text",
    suffixes=(".slashed",),
    bytes_per_token=8,
    inspect=inspect,
    read=read,
    records=lines,
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    text = "".join(f"Anna/B-PER wohnt/O in/O Bonn/B-LOC {number}/O\n" for number in range(200))
    (folder / "a.slashed").write_text(text)
    return folder


def test_a_new_format_is_one_value_in_the_list(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(corpus.parent / "out")
    config = ScoreConfig(model=str(MODEL), input=(str(corpus),), output=output, shard_tokens=50)
    with pytest.raises(Refused, match="holds no Parquet"):
        score_inline(config)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, SLASHED))
    result = score_inline(config)
    assert len(result.plan.units) > 2, "byte ranges of the file"
    assert [row["words"][-1] for row in result.rows] == [str(number) for number in range(200)]
    assert {tuple(label for label in row["labels"] if label != "IGN") for row in result.rows} == {
        ("B-PER", "O", "O", "B-LOC", "O")
    }


def test_every_file_has_one_format_at_most() -> None:
    """Endings must not hide each other."""
    endings = [ending for f in formats.FORMATS for ending in (*f.suffixes, *f.named_suffixes)]
    assert len(set(endings)) == len(endings)
    for f in formats.FORMATS:
        for ending in (*f.suffixes, *f.named_suffixes):
            packed = [".gz", ".bz2", ".xz", ".zst"] if f.packed else []
            assert all(formats.format_of(f"x{ending}{p}".upper(), in_folder=False) is f for p in ["", *packed])
            assert (formats.format_of(f"x{ending}", in_folder=True) is f) == (ending in f.suffixes)
