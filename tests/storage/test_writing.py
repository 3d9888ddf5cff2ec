"""Files written piece by piece are there whole or not at all, on disk and in a bucket."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tokloss_ray.errors import Refused, StorageFailed
from tokloss_ray.storage.files import open_location
from tokloss_ray.storage.writing import writing_whole

PIECES = [bytes([i % 251]) * 700_000 for i in range(20)]


def _write(fs: Any, path: str, pieces: list[bytes], ends_with: BaseException | None = None) -> None:
    with writing_whole(fs, path) as write:
        for piece in pieces:
            there = fs.exists(path)
            write(piece)
            assert fs.exists(path) == there
        if ends_with is not None:
            raise ends_with


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_file_appears_at_the_end_or_stays_what_it_was(
    place: str, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    fs, path = open_location(f"{tmp_path}/new/file" if place == "disk" else f"{bucket}/new/file")
    with pytest.raises(Refused):
        _write(fs, path, PIECES, Refused("stop"))
    assert not fs.exists(path)
    _write(fs, path, PIECES)
    assert fs.cat_file(path) == b"".join(PIECES)
    with pytest.raises(KeyboardInterrupt):
        _write(fs, path, [b"less"], KeyboardInterrupt())
    assert fs.cat_file(path) == b"".join(PIECES)
    assert os.listdir(spool) == []
    if place == "disk":
        assert os.listdir(tmp_path / "new") == ["file"]


def test_an_upload_in_parts_that_fails_leaves_nothing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    call, put = s3fs.S3FileSystem._call_s3, s3fs.S3FileSystem._put_file

    async def in_small_parts(self: s3fs.S3FileSystem, *args: object, **kwargs: object) -> object:
        return await put(self, *args, **kwargs | {"chunksize": 5 << 20})

    async def failing(self: s3fs.S3FileSystem, method: str, *args: object, **kwargs: object) -> object:
        if method == "upload_part":
            parts.append(kwargs["PartNumber"])
            if len(parts) == 2:
                raise PermissionError("no")
        return await call(self, method, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_call_s3", failing)
        patched.setattr(s3fs.S3FileSystem, "_put_file", in_small_parts)
        s3fs.S3FileSystem.clear_instance_cache()  # methods are bound when an instance is made
        fs, path = open_location(f"{bucket}/parts")
        with pytest.raises(StorageFailed, match=r"cannot write s3://.*parts: access denied"):
            _write(fs, path, PIECES)
    assert len(parts) >= 2
    s3fs.S3FileSystem.clear_instance_cache()
    fs, path = open_location(f"{bucket}/parts")
    assert not fs.exists(path)
    assert not fs.call_s3("list_multipart_uploads", Bucket=path.split("/")[0]).get("Uploads")


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    fs, path = open_location(str(tmp_path / "file"))
    with pytest.raises(StorageFailed, match=r"cannot write .*file: no space left on device"):
        _write(fs, path, [b"some"])
    assert os.listdir(tmp_path) == []
