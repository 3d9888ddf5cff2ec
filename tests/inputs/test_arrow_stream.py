"""Record batches of Arrow streams, found by their headers; pyarrow, which reads whole streams, says what is right."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokloss_ray.demo import DATA
from tokloss_ray.inputs import arrow_stream
from tokloss_ray.inputs.arrow_stream import inspect_stream, read_stream
from tokloss_ray.inputs.input_files import InputFile
from tokloss_ray.inputs.listing import Inspected
from tokloss_ray.inputs.units import make_units
from tokloss_ray.storage.files import Listed

ROWS = pq.read_table(DATA).slice(0, 400)


def written(path: Path, batches: list[pa.RecordBatch], **options: object) -> Path:
    schema = batches[0].schema
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as to,
    ):
        for batch in batches:
            to.write_batch(batch)
    return path


def cut(table: pa.Table, rng: random.Random, most: int) -> list[pa.RecordBatch]:
    """Batches of any size, some of no rows."""
    table, batches = table.combine_chunks(), []
    while table.num_rows:
        count = rng.randint(0, most)
        batches += pa.Table.from_batches(table.slice(0, count).to_batches(), table.schema).combine_chunks().to_batches()
        batches += [pa.RecordBatch.from_pylist([], table.schema)] if not count else []
        table = table.slice(count)
    return batches


def with_dictionary(table: pa.Table) -> pa.Table:
    return table.append_column("topic", pa.array([f"t{i % 7}" for i in range(table.num_rows)]).dictionary_encode())


KINDS = {
    "plain": (ROWS, {}),
    "packed": (ROWS, {"compression": "zstd"}),
    "old": (ROWS, {"use_legacy_format": True}),
    "wide": (pa.table({f"c{i}": list(range(50)) for i in range(400)}), {}),
    "dictionary": (with_dictionary(ROWS), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_units_hold_each_row_once(tmp_path: Path, kind: str) -> None:
    table, options = KINDS[kind]
    rng = random.Random(kind)
    for most in (1, 7, 100, 1000):
        path = written(tmp_path / f"{most}.arrow", cut(table, rng, most), **options)
        size = path.stat().st_size
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            wanted = list(stream)
        schema, batches = inspect_stream(str(path), size)
        assert schema.equals(wanted[0].schema, check_metadata=True)
        assert [batch.rows for batch in batches] == [batch.num_rows for batch in wanted]
        file = InputFile(Listed(str(path), size, ""), path.name, "arrow")
        for shard_tokens in (1, 100, 10**6):
            units = make_units([file], [Inspected(file, schema, batches)], shard_tokens, None)
            parts = [part for unit in units for part in unit.parts]
            assert all((part.offset == 0) == (kind == "dictionary") for part in parts)
            found = []
            for part in parts:
                for row, batch in read_stream(part):
                    start = max(part.start - row, 0)
                    found += batch.slice(start, part.stop - row - start).to_pylist()
            assert found == table.to_pylist()
            if kind != "dictionary":
                assert sum(part.size for part in parts) < size


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_parquet(str(DATA)).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("data-*.arrow")
    schema, batches = inspect_stream(str(path), path.stat().st_size)
    assert sum(batch.rows for batch in batches) == 10_000
    assert len(batches) > 5
    assert b"ClassLabel" in schema.metadata[b"huggingface"]


@pytest.mark.parametrize("kind", ["plain", "old", "dictionary"])
def test_a_file_that_is_cut_off(tmp_path: Path, kind: str) -> None:
    """Anywhere but between two batches, where the stream could have ended."""
    table, options = KINDS[kind]
    whole = written(tmp_path / "whole", cut(table.slice(0, 40), random.Random(1), 10), **options).read_bytes()
    rows = [batch.rows for batch in inspect_stream(str(tmp_path / "whole"), len(whole))[1]]
    cut_off = 0
    for size in range(len(whole)):
        (tmp_path / "part").write_bytes(whole[:size])
        try:
            _, batches = inspect_stream(str(tmp_path / "part"), size)
        except pa.ArrowInvalid:
            cut_off += 1
        else:
            assert [batch.rows for batch in batches] == rows[: len(batches)]
    assert cut_off > len(whole) - 50


def test_other_files(tmp_path: Path) -> None:
    for data in (Path(DATA).read_bytes(), b'{"tokens": []}\n' * 100, struct.pack("<II", 0xFFFFFFFF, 8) + b"\xff" * 99):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(pa.ArrowInvalid):
            inspect_stream(str(tmp_path / "x"), len(data))


def test_headers_of_short_messages_are_not_fetched_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are long messages fetched whole."""
    fetched: list[int] = []

    class Counted(arrow_stream.Steps):
        def get(self, offset: int, count: int) -> bytes:
            before = self.data
            found = super().get(offset, count)
            if self.data is not before:
                fetched.append(len(self.data))
            return found

    monkeypatch.setattr(arrow_stream, "Steps", Counted)
    for rows, most_requests, most_bytes in ((1, 6, 1.1), (5000, 30, 0.02)):
        table = pa.concat_tables([ROWS] * (10 if rows == 1 else 250)).combine_chunks()
        path = written(tmp_path / "x", table.to_batches(max_chunksize=rows))
        size = path.stat().st_size
        fetched.clear()
        _, batches = inspect_stream(str(path), size)
        assert sum(batch.rows for batch in batches) == table.num_rows
        assert len(fetched) <= most_requests, (rows, len(fetched), len(batches))
        assert sum(fetched) <= most_bytes * size
