"""Input, model and output on object storage."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.end_to_end.s3.common import inline, rows_of, tokloss, upload
from tests.support.s3_proxy import Proxy
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused
from tokloss_ray.inputs.arrow_stream import _schema_of
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.scoring.driver import check
from tokloss_ray.scoring.folder import clear
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.storage.files import RangeFile, open_location, write_whole


def test_the_whole_job(bucket: str, corpus: Path, model: Path, tmp_path: Path) -> None:
    """Input, model and output in a bucket, with real Ray, end in the rows that a local run makes."""
    source, stored = upload(corpus, f"{bucket}/in"), upload(model, f"{bucket}/models/m")
    output = f"{bucket}/out"
    command = ["score", "--model", stored, "--input", source, "--output", output, "--id-column", "id"]
    command += ["--shard-tokens", "1500"]
    code, said, _ = tokloss(*command)
    assert code == 0, said
    assert f"tokloss show {output}" in said
    local = inline(corpus, model=model, output=tmp_path / "out", shard_tokens=1500)
    pd.testing.assert_frame_equal(rows_of(output), rows_of(str(tmp_path / "out")), rtol=1e-5)
    assert len(local.records) > 4

    fs = s3fs.S3FileSystem()
    lost = sorted(fs.glob(f"{output}/_commits/*.json"))[2]
    before = {path: info["ETag"] for path, info in fs.find(f"{output}/scores", detail=True).items()}
    fs.rm([lost, f"{output}/_SUCCESS"])
    code, said, _ = tokloss(*command)
    assert code == 0, said
    assert f"resuming: {len(local.records) - 1} shard" in said
    after = {
        path: info["ETag"]
        for path, info in s3fs.S3FileSystem(skip_instance_cache=True).find(f"{output}/scores", detail=True).items()
    }
    assert after == before, "a second time is byte for byte the same"
    code, said, _ = tokloss("status", output)
    assert (code, "finished" in said) == (0, True)
    code, said, _ = tokloss("show", output, "--worst", "1")
    assert (code, "total loss" in said) == (0, True)


@pytest.mark.slow
def test_conll_columns(bucket: str, model: Path, tmp_path: Path, on_one_server: None) -> None:
    """Read by range in a bucket, packed and not, as on disk."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for row in pq.read_table(DATA).slice(0, 200).to_pylist():
        lines += [f"# id = {row['id']}", *(f"{word}\tO" for word in row["tokens"]), ""]
    text = "\n".join(lines).encode()
    (folder / "a.conll").write_bytes(text)
    (folder / "b.iob2.gz").write_bytes(gzip.compress(text.replace(b"# id = ", b"# id = packed-")))
    stored = inline(upload(folder, f"{bucket}/in"), model=model, output=f"{bucket}/out", shard_tokens=200)
    assert len(stored.plan.units) > 3
    inline(folder, model=model, output=tmp_path / "out", shard_tokens=200)
    assert len(rows_of(f"{bucket}/out")) == 400
    pd.testing.assert_frame_equal(rows_of(f"{bucket}/out"), rows_of(str(tmp_path / "out")), rtol=1e-5)


def test_only_what_is_needed_is_read(bucket: str, proxy: Proxy, corpus: Path, model: Path, tmp_path: Path) -> None:
    """Columns that nobody asked for, and row groups beyond the limit, stay where they are."""
    upload(corpus, f"{bucket}/in")
    proxy.seen.clear()
    inline(f"{bucket}/in/a.parquet", model=model, output=tmp_path / "all")
    everything = sum(request.sent for request in proxy.reads("a.parquet"))
    assert everything < 0.25 * (corpus / "a.parquet").stat().st_size
    proxy.seen.clear()
    inline(f"{bucket}/in/a.parquet", model=model, output=tmp_path / "some", limit=50)
    assert sum(request.sent for request in proxy.reads("a.parquet")) < everything


def test_globs_and_saved_datasets(bucket: str, corpus: Path, model: Path, tmp_path: Path) -> None:
    upload(corpus, f"{bucket}/in")
    found = inline(f"{bucket}/in/*.parquet", f"{bucket}/in/sub/b.parquet", model=model, output=tmp_path / "glob")
    assert {row["source"] for row in found.rows} == {"a.parquet", "sub/b.parquet"}
    split = datasets.DatasetDict({"dev": datasets.Dataset.from_parquet(str(DATA)).select(range(20))})
    split.save_to_disk(tmp_path / "saved")
    upload(tmp_path / "saved", f"{bucket}/saved")
    saved = inline(f"{bucket}/saved", model=model, output=tmp_path / "out", split="dev")
    assert len(saved.rows) == 20


@pytest.mark.slow
def test_units_of_a_saved_dataset_read_their_own_batches(
    bucket: str, proxy: Proxy, model: Path, tmp_path: Path
) -> None:
    """14 MB in 35 units: the preflight fetches headers and a sample, and all units together the file once."""
    dataset = datasets.Dataset.from_parquet(str(DATA))
    dataset = datasets.concatenate_datasets([dataset] * 7)
    dataset.save_to_disk(tmp_path / "saved", num_shards=1)
    (file,) = (tmp_path / "saved").glob("data-*.arrow")
    size = file.stat().st_size
    assert size > 13e6
    upload(tmp_path / "saved", f"{bucket}/saved")
    proxy.seen.clear()
    config = ScoreConfig(
        model=str(model), input=f"{bucket}/saved", output=str(tmp_path / "out"), shard_tokens=size // 48 // 36
    )
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    assert len(plan.units) == 35
    reads = proxy.reads(file.name)
    assert sum(request.sent for request in reads) < 0.05 * size
    print(f"preflight: {len(reads)} requests, {sum(r.sent for r in reads) / size:.2%} of {size:,} bytes")
    proxy.seen.clear()
    words: list[list[str]] = []
    for unit in plan.units:
        _schema_of.cache_clear()  # each in a process of its own, at worst
        words += [row for chunk in read_unit(plan.job, unit) for row in chunk.rows["words"].to_pylist()]
    reads = proxy.reads(file.name)
    print(f"units: {len(reads)} requests, {sum(r.sent for r in reads) / size:.2%}")
    assert sum(request.sent for request in reads) < 1.1 * size
    assert len(reads) <= 3 * len(plan.units)
    assert words == dataset["tokens"][:]


def test_text_in_byte_ranges(bucket: str, model: Path, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in pq.read_table(DATA).slice(0, 200).to_pylist()]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all.jsonl").write_text("\n".join(lines))
    upload(tmp_path / "in", f"{bucket}/in")
    here = inline(tmp_path / "in", model=model, output=tmp_path / "here", shard_tokens=200)
    there = inline(f"{bucket}/in", model=model, output=tmp_path / "there", shard_tokens=200)
    assert len(there.plan.units) == len(here.plan.units) > 2
    assert there.rows == here.rows


def test_overwrite_removes_what_was_there(bucket: str, corpus: Path, model: Path) -> None:
    output = f"{bucket}/out"
    inline(corpus / "a.parquet", model=model, output=output, shard_tokens=500)
    other = ScoreConfig(model=str(model), input=(str(corpus),), output=output)
    with pytest.raises(Refused, match=r"belongs to another run; it differs in .*--overwrite"):
        check(other)
    write_whole(*open_location(f"{output}-of-another/notes.txt"), b"stays")
    clear(output)
    assert [path.partition("/")[2] for path in s3fs.S3FileSystem().find(bucket)] == ["out-of-another/notes.txt"]


def test_range_reads(bucket: str) -> None:
    fs, path = open_location(f"{bucket}/x")
    data = os.urandom(100_000)
    write_whole(fs, path, data)
    with RangeFile(fs, path) as file:
        assert file.seek(-10, 2) == 99_990
        assert file.read(100) == data[-10:]
        file.seek(5)
        assert file.read(3) == data[5:8]
        assert file.read() == data[8:]
        assert file.read(1) == b""
