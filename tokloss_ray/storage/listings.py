"""Listings of very many files, as columns: a page at a time, so that neither time nor memory is spent on objects."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa

from tokloss_ray.storage.failures import as_storage_failure, attempt, is_local
from tokloss_ray.storage.files import listed

LISTING = pa.schema([("path", pa.string()), ("size", pa.int64()), ("version", pa.string())])
"""Path relative to the folder, size in bytes, and what changes whenever the file is written (see `local_version`)."""

_UNUSED = re.compile(rb"<(LastModified|Owner)>.*?</\1>", re.DOTALL)
_Page = tuple[list[str], list[int], list[str]]
_ROWS = 10_000


def list_files(fs: fsspec.AbstractFileSystem, folder: str) -> pa.Table:
    """The files in a folder and the folders in it, but for those whose name starts with a dot, in no certain order.

    Returns:
        Rows of LISTING; none if there is no such folder.

    Raises:
        StorageFailed: it cannot be listed.
    """
    if is_local(fs):
        pages = _local_pages(fs, folder)
    else:
        pages = _s3_pages(fs, folder) if hasattr(fs, "call_s3") else _found(fs, folder)
    batches = [pa.record_batch([pa.array(c, f.type) for c, f in zip(p, LISTING, strict=True)], LISTING) for p in pages]
    return pa.Table.from_batches(batches, LISTING)


def local_version(info: os.stat_result) -> str:
    """What changes whenever a file on a disk is written: the time of change cannot be set back, and a file that
    replaces another within the same tick of the clock has another inode."""
    return f"{info.st_ctime_ns}-{info.st_ino}"


def etag_version(etag: str) -> str:
    """An object's etag, without its quotes."""
    return etag.strip('"')


def _local_pages(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[_Page]:
    with as_storage_failure(fs, folder, "list"):
        waiting, seen = [""], set()
        page: _Page = ([], [], [])
        while waiting:
            inside = waiting.pop()
            place = os.path.join(folder, inside) if inside else folder
            if os.path.realpath(place) in seen:  # a link to a folder above it
                continue
            seen.add(os.path.realpath(place))
            try:
                entries = os.scandir(place)
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    if entry.is_dir():
                        waiting.append(path)
                    elif not entry.name.startswith("."):
                        try:
                            info = entry.stat()
                        except FileNotFoundError:  # removed just now, or a link to nowhere
                            continue
                        page[0].append(path)
                        page[1].append(info.st_size)
                        page[2].append(local_version(info))
            if len(page[0]) >= _ROWS:
                yield page
                page = ([], [], [])
        yield page


def _s3_pages(fs: Any, folder: str) -> Iterator[_Page]:
    """Each page is tried again by itself: one failure in a thousand would else spoil every long listing."""
    attempt(fs, folder, "list", lambda: fs.s3).meta.events.register(
        "before-parse.s3.ListObjectsV2", _lighten, unique_id="tokloss-lighten"
    )
    bucket, _, prefix = folder.strip("/").partition("/")
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix}/", **fs.req_kw}
    while True:
        # The lambda is called before `asked` changes.
        answer = attempt(fs, folder, "list", lambda: fs.call_s3("list_objects_v2", **asked))
        yield _page(
            (entry["Key"][len(prefix) + 1 :], int(entry["Size"]), entry.get("ETag", ""))
            for entry in answer.get("Contents", ())
        )
        if not answer.get("IsTruncated"):
            return
        asked["ContinuationToken"] = answer["NextContinuationToken"]


def _lighten(response_dict: dict[str, Any], **_: Any) -> None:
    """Take out of a page, before botocore parses it, times and owners: two thirds of the time would go into them."""
    if isinstance(response_dict.get("body"), bytes):
        response_dict["body"] = _UNUSED.sub(b"", response_dict["body"])


def _found(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[_Page]:
    try:
        found = attempt(fs, folder, "list", lambda: fs.find(folder, detail=True))
    except FileNotFoundError:
        return
    files = (listed(fs, path, info) for path, info in found.items())
    yield _page((file.path[len(folder) + 1 :], file.size, file.version) for file in files)


def _page(files: Iterator[tuple[str, int, str]]) -> _Page:
    page: _Page = ([], [], [])
    for path, size, version in files:
        if not posixpath.basename(path).startswith(".") and not path.endswith("/") and path:
            page[0].append(path)
            page[1].append(size)
            page[2].append(etag_version(version))
    return page
