"""Arrow files that --input names or a folder holds: IPC files by their footer, streams, and what is neither."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.feather as feather
import pytest

from tests.inputs.test_arrow_stream import KINDS, ROWS, cut
from tests.support.inline import Inline
from tests.support.tiny import row, saved
from tokloss_ray.inputs.arrow_file import inspect_file, read_file
from tokloss_ray.inputs.input_files import InputFile
from tokloss_ray.inputs.listing import Inspected, list_inputs
from tokloss_ray.inputs.units import make_units
from tokloss_ray.storage import files
from tokloss_ray.storage.files import Listed


def written(path: Path, batches: list[pa.RecordBatch], **options: object) -> Path:
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as to,
    ):
        for batch in batches:
            to.write_batch(batch)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_units_hold_each_row_once(tmp_path: Path, kind: str) -> None:
    table, options = KINDS[kind]
    rng = random.Random(kind)
    for most in (7, 100, 1000):
        batches = cut(table, rng, most)
        if kind == "dictionary":  # a file has one for all its batches
            batches = pa.Table.from_batches(batches).unify_dictionaries().to_batches()
        path = written(tmp_path / f"{most}.arrow", batches, **options)
        size = path.stat().st_size
        schema, found = inspect_file(str(path), size)
        assert schema.equals(table.schema, check_metadata=True)
        assert [batch.rows for batch in found] == [batch.num_rows for batch in batches]
        file = InputFile(Listed(str(path), size, ""), path.name, "arrow")
        for shard_tokens in (1, 100, 10**6):
            units = make_units([file], [Inspected(file, schema, found)], shard_tokens, None)
            rows = []
            for part in (part for unit in units for part in unit.parts):
                for first, batch in read_file(part):
                    start = max(part.start - first, 0)
                    rows += batch.slice(start, part.stop - first - start).to_pylist()
            assert rows == table.to_pylist()


def test_a_large_file_is_not_read_to_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.concat_tables([ROWS] * 100).combine_chunks()
    path = written(tmp_path / "in.arrow", table.to_batches(max_chunksize=10_000))
    read: list[int] = []

    class Counted(files.RangeFile):
        def _range(self, start: int, stop: int) -> bytes:
            read.append(stop - start)
            return super()._range(start, stop)

    monkeypatch.setattr(files, "RangeFile", Counted)
    monkeypatch.setattr(files, "is_local", lambda fs: False)
    _, batches = inspect_file(str(path), path.stat().st_size)
    assert sum(batch.rows for batch in batches) == table.num_rows
    assert sum(read) < 0.1 * path.stat().st_size


@pytest.mark.parametrize("cut_off", [3, 100, 1000])
def test_a_file_that_is_cut_off(refused: Callable[..., str], tmp_path: Path, cut_off: int) -> None:
    path = written(tmp_path / "in.arrow", ROWS.to_batches(max_chunksize=50))
    path.write_bytes(path.read_bytes()[:-cut_off])
    assert "cannot read in.arrow as Arrow" in refused(input=path)


def test_feather_1_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    message = refused(input=tmp_path / "in.feather")
    assert "cannot read in.feather as Arrow: it is Feather V1, which is no longer read" in message


def test_files_of_polars(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Its strings are views, its lists large, its categories dictionaries; and it writes streams as well."""
    frame = pl.DataFrame([row("Anna", "wohnt", tags=["B-PER", "O"], lang="de"), row("Otto", tags=["B-PER"], lang="en")])
    frame = frame.with_columns(pl.col("lang").cast(pl.Categorical))
    frame.write_ipc(tmp_path / "a.arrow", compression="zstd")
    frame.write_ipc_stream(tmp_path / "b.arrow")
    result = run(tmp_path / "*.arrow", keep=["lang"])
    assert [(r["source"], r["source_row"], r["lang"], r["words"]) for r in result.rows] == [
        (source, number, lang, words)
        for source in ("a.arrow", "b.arrow")
        for number, (lang, words) in enumerate([("de", ["Anna", "wohnt"]), ("en", ["Otto"])])
    ]


def test_a_string_that_is_not_utf8_is_a_row_of_errors(run: Callable[..., Inline], tmp_path: Path) -> None:
    words = pa.array([["Anna"], ["Ott\x01"], ["See"]])
    feather.write_feather(pa.table({"tokens": words, "ner_tags": [["O"]] * 3}), tmp_path / "in.feather", "uncompressed")
    data = (tmp_path / "in.feather").read_bytes()
    assert data.count(b"Ott\x01") == 1
    (tmp_path / "in.feather").write_bytes(data.replace(b"Ott\x01", b"Ott\xff"))
    result = run(tmp_path / "in.feather", max_error_rate=1.0)
    assert [r["source_row"] for r in result.rows] == [0, 2]
    assert [(e["source_row"], e["reason"]) for e in result.errors] == [(1, "malformed")]


def test_arrow_files_in_folders(run: Callable[..., Inline], tmp_path: Path) -> None:
    """All but those that `datasets` keeps for itself: caches, and saved datasets, which --input must name."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    table = pa.Table.from_pylist([row("Anna", tags=["O"])])
    feather.write_feather(table, corpus / "a.feather")
    datasets.Dataset(table).save_to_disk(tmp_path / "scratch")
    stream = next((tmp_path / "scratch").glob("data-*.arrow")).read_bytes()
    for name in ("b.arrow", "cache-0123.arrow"):
        (corpus / name).write_bytes(stream)
    assert [r["source"] for r in run(corpus).rows] == ["a.feather", "b.arrow"]
    assert len(run(corpus / "cache-0123.arrow").rows) == 1
    saved(3).save_to_disk(corpus / "saved")
    assert not [file.source for file in list_inputs([str(corpus)]) if file.source.startswith("saved/data-")]
    assert len(run(corpus / "saved").rows) == 3
