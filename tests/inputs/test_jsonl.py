"""JSON lines: line ends, byte ranges, compression."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.inline import Inline, write_jsonl
from tests.support.tiny import (
    SENTENCES,
    row,
    zero_bytes,
)
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.inputs.unit import FilePart, ReadUnit
from tokloss_ray.storage import zstd

JSON_ROWS = [row("Köln", "日本"), row("Anna"), row(*SENTENCES[0]), row("Otto", "\U0001f600", "am", "See")] * 2


def encode_lines(separator: str = "\n", end: str = "\n", between: str = "") -> tuple[bytes, list[int]]:
    """JSON lines, and the offset of the first byte of each."""
    data, offsets = b"", []
    for number, sentence in enumerate(JSON_ROWS):
        offsets.append(len(data))
        data += json.dumps(sentence, ensure_ascii=False).encode()
        data += (end if number == len(JSON_ROWS) - 1 else separator + between).encode()
    return data, offsets


LINES = {
    "plain": encode_lines(),
    "crlf": encode_lines("\r\n", "\r\n"),
    "no-newline-at-the-end": encode_lines(end=""),
    "blank-lines": encode_lines(between="\n   \n\r\n", end="\n\n"),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("shard_tokens", [1, 3, None])
def test_lines(run: Callable[..., Inline], tmp_path: Path, name: str, shard_tokens: int | None) -> None:
    """Small shards make small byte ranges: each row comes once, numbered by its first byte."""
    data, offsets = LINES[name]
    result = run(zero_bytes(tmp_path / "in.jsonl", data), shard_tokens=shard_tokens)
    assert len(result.plan.units) == (1 if shard_tokens is None else math.ceil(len(data) / (48 * shard_tokens)))
    assert [r["source_row"] for r in result.rows] == offsets
    assert [r["example_id"] for r in result.rows] == [f"in.jsonl:{offset}" for offset in offsets]
    assert [r["words"] for r in result.rows] == [sentence["tokens"] for sentence in JSON_ROWS]


@pytest.mark.parametrize("name", LINES)
def test_every_boundary_between_byte_ranges(run: Callable[..., Inline], tmp_path: Path, name: str) -> None:
    data, offsets = LINES[name]
    path = zero_bytes(tmp_path / "in.jsonl", data)
    job = run(path).plan.job

    def source_rows(cuts: list[int]) -> list[int]:
        bounds = [0, *cuts, len(data)]
        version = str(path.stat().st_mtime)
        units = [
            ReadUnit(i, (FilePart("in.jsonl", str(path), version, "jsonl", start, stop, None, stop - start),))
            for i, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
        chunks = [chunk for unit in units for chunk in read_unit(job, unit)]
        assert not sum(chunk.errors.num_rows for chunk in chunks)
        return [number for chunk in chunks for number in chunk.rows.column("source_row").to_pylist()]

    for cut in range(1, len(data)):
        assert source_rows([cut]) == offsets
    rng = random.Random(0)
    for _ in range(10):
        assert source_rows(sorted(rng.sample(range(1, len(data)), 20))) == offsets


def zstd_frames(data: bytes) -> bytes:
    """In several frames, which end within lines."""
    return b"".join(zstd.packed(data[i : i + 50]) for i in range(0, len(data), 50))


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd_frames)])
def test_packed_lines(run: Callable[..., Inline], tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    """A packed file cannot be entered midway: one unit, and offsets count the bytes of the text."""
    data, offsets = LINES["plain"]
    result = run(zero_bytes(tmp_path / f"in.jsonl{suffix}", pack(data)), shard_tokens=4)
    assert len(result.plan.units) == 1
    assert len(result.records) > 3
    assert [r["source_row"] for r in result.rows] == offsets
    assert [r["words"] for r in result.rows] == [sentence["tokens"] for sentence in JSON_ROWS]


def test_tags_of_two_kinds_in_one_file(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Integers in one row and strings in the next; the order of the rows stays."""
    sentences = [row("Anna", tags=[1]), row("Otto", tags=["B-PER"]), row("Otto", tags=[None]), row("See", tags=[3])]
    result = run(write_jsonl(tmp_path / "in.jsonl", sentences))
    assert [r["labels"][1] for r in result.rows] == ["B-PER", "B-PER", "IGN", "B-LOC"]
    assert [r["source_row"] for r in result.rows] == sorted(r["source_row"] for r in result.rows)
