"""Files that are one JSON array are read object by object, whatever stands between them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.inline import Inline
from tests.support.tiny import row
from tokloss_ray.inputs import json_array
from tokloss_ray.inputs.json_array import is_array, objects_in
from tokloss_ray.storage import zstd

ROWS = [{"a": "x" * n, "b": [{"c": "}]👍é"}]} for n in range(40)]


@pytest.fixture(autouse=True, params=[7, 1 << 20])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_STEP", request.param)


def test_objects_are_where_they_say() -> None:
    for data in (
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=3, ensure_ascii=False).encode(),
        b"\xef\xbb\xbf\n[ \n" + b" ,\r\n".join(json.dumps(r).encode() for r in ROWS) + b"\n]\n\n",
    ):
        found = list(objects_in(io.BytesIO(data)))
        assert [json.loads(text) for _, text, _ in found] == ROWS
        assert all(data[at:].startswith(text) and len(text) == size for at, text, size in found)
        stop = found[7][0]
        assert list(objects_in(io.BytesIO(data), stop)) == found[:7]


@pytest.mark.parametrize(
    ("tail", "last"), [(b"", b""), (b', {"a": 1', b'{"a": 1'), (b', {"a" 1}, {}]', b'{"a" 1}, {}]')]
)
def test_what_is_no_json_comes_last(tail: bytes, last: bytes) -> None:
    data = json.dumps(ROWS)[:-1].encode() + tail
    *found, end = objects_in(io.BytesIO(data))
    assert [json.loads(text) for _, text, _ in found] == ROWS
    assert end[1] == (last or b"[")
    assert list(objects_in(io.BytesIO(b"[]"))) == []


def test_bytes_that_are_no_utf_8_spoil_their_object_alone() -> None:
    found = list(objects_in(io.BytesIO(b'[{"a": "\xff"}, {"a": "\xc3\xa9"}]')))
    assert [text for _, text, _ in found] == [b'{"a": "\xff"}', b'{"a": "\xc3\xa9"}']


def test_which_files_are_arrays(tmp_path: Path) -> None:
    for data, wanted in ((b' [\n{"a": 1}]', True), (b"[]", True), (b'{"a": 1}\n', False), (b'["x", 1]\n', False)):
        (tmp_path / f"{len(data)}.json").write_bytes(data)
        assert is_array(str(tmp_path / f"{len(data)}.json"), "1") is wanted


def test_a_large_array_is_read_once(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Whatever the plan makes of its bytes; rows have the offset of their object, and a limit counts them."""
    rows: list[Any] = [row("Anna", "wohnt", tags=["B-PER", "O"], lang=f"x{i}") for i in range(300)]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    found = run(tmp_path / "in.json", keep=["lang"], shard_tokens=64)
    assert len(found.plan.units) > 2
    assert [r["lang"] for r in found.rows] == [r["lang"] for r in rows]
    data = (tmp_path / "in.json").read_bytes()
    assert all(data[r["source_row"] :].startswith(b'{"tokens"') for r in found.rows)
    assert len(run(tmp_path / "in.json", limit=12).rows) == 12


@pytest.mark.parametrize("ending", [".json.gz", ".json.bz2", ".json.xz", ".json.zst", ".JSON"])
def test_packed(run: Callable[..., Inline], tmp_path: Path, ending: str) -> None:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.packed}
    one = row("Anna", tags=["O"])
    for name, data in (("array", json.dumps([one] * 3)), ("lines", json.dumps(one))):
        file = tmp_path / f"{name}{ending}"
        file.write_bytes(pack.get(file.suffix, bytes)(data.encode()))
        assert len(run(file).rows) == (3 if name == "array" else 1)


def test_a_broken_array_loses_no_row_silently(run: Callable[..., Inline], tmp_path: Path) -> None:
    text = json.dumps([row("Anna", tags=["O"])] * 3)[:-1]
    (tmp_path / "in.json").write_text(text)
    found = run(tmp_path / "in.json", max_error_rate=1.0)
    assert (len(found.rows), [e["reason"] for e in found.errors]) == (3, ["malformed"])
