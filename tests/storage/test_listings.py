"""Listings as columns say what the storage has, however many pages it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tokloss_ray.errors import StorageFailed
from tokloss_ray.storage.files import listed, open_location, write_whole
from tokloss_ray.storage.listings import files_below, list_files

FILES = {
    "a.json": b"1", "b/part=x/c d.parquet": b"22", "b/part=%3Cy%3E/é.parquet": b"", "b/part=<LastModified>/e": b"333",
    "z": b"55555",
}  # fmt: skip


def put(output: str) -> tuple[Any, str]:
    fs, root = open_location(output)
    for path, data in {**FILES, ".hidden": b"x", "b/.c.parquet.7.tmp": b"x"}.items():
        write_whole(fs, f"{root}/{path}", data)
    write_whole(fs, f"{root}-other/f", b"x")
    return fs, root


def test_on_disk(tmp_path: Path) -> None:
    fs, root = put(str(tmp_path / "out"))
    os.symlink(tmp_path / "out", tmp_path / "out" / "b" / "loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "out" / "lost")
    found = list_files(fs, root)
    assert dict(zip(*(found.column(name).to_pylist() for name in ("path", "size")), strict=True)) == {
        path: len(data) for path, data in FILES.items()
    }
    assert list_files(fs, f"{root}/no").num_rows == 0


def test_single_files_are_all_of_them_as_they_are_listed(tmp_path: Path) -> None:
    """Hidden ones too, and links to nothing, which whoever reads them finds out about; names that are no text."""
    fs, root = put(str(tmp_path / "out"))
    os.symlink(tmp_path / "out", tmp_path / "out" / "b" / "loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "out" / "lost")
    os.symlink("itself", tmp_path / "out" / "itself")
    paths = sorted(f"{root}/{name}" for name in [*FILES, ".hidden", "b/.c.parquet.7.tmp"])
    found = {file.path: file for file in files_below(fs, root)}
    assert [found.pop(path) for path in paths] == [listed(fs, path) for path in paths]
    assert list(found) == [f"{root}/itself", f"{root}/lost"]
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff.json"))).write_bytes(b"1")
    assert f"{root}/\\xff.json" in [file.path for file in files_below(fs, root)]


def test_single_files_of_a_bucket(bucket: str) -> None:
    fs, root = put(f"{bucket}/out")
    names = [*FILES, ".hidden", "b/.c.parquet.7.tmp"]
    paths = sorted([*(f"{root}/{name}" for name in names), f"{root}-other/f"])
    assert files_below(fs, open_location(bucket)[1]) == [listed(fs, path) for path in paths]
    assert [file.path for file in files_below(fs, root)] == [path for path in paths if path.startswith(f"{root}/")]


def test_in_a_bucket_page_by_page(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, root = put(f"{bucket}/out")
    asked: list[str] = []

    def two_at_once(method: str, **kwargs: Any) -> Any:
        asked.append(method)
        return call(method, **kwargs, MaxKeys=2)

    call = fs.call_s3
    monkeypatch.setattr(fs, "call_s3", two_at_once)
    found = list_files(fs, root)
    assert len(asked) == 4
    paths = found.column("path").to_pylist()
    sizes = dict(zip(paths, found.column("size").to_pylist(), strict=True))
    versions = dict(zip(paths, found.column("version").to_pylist(), strict=True))
    assert sizes == {path: len(data) for path, data in FILES.items()}
    monkeypatch.undo()
    assert versions == {path: fs.info(f"{root}/{path}")["ETag"].strip('"') for path in FILES}
    assert list_files(fs, f"{root}/no").num_rows == 0
    with pytest.raises(StorageFailed, match="no such bucket"):
        list_files(fs, f"{root.split('/')[0]}-not/out")
