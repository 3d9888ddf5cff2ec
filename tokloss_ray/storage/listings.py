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
from tokloss_ray.storage.files import Listed, listed

LISTING = pa.schema([("path", pa.string()), ("size", pa.int64()), ("version", pa.string())])
"""Path relative to the folder, size in bytes, and what changes whenever the file is written: that of `local_version` or
`etag_version`, or as in `Listed`."""

_UNUSED = re.compile(rb"<(LastModified|Owner)>.*?</\1>", re.DOTALL)
_Page = tuple[list[str], list[int], list[str]]
_ROWS = 10_000


def list_files(fs: fsspec.AbstractFileSystem, folder: str, as_listed: bool = False) -> pa.Table:
    """The files in a folder and the folders in it, in no certain order, without those whose name starts with a dot.

    as_listed: with those, with the versions that `listed` gives, and with links to nothing, for their reader to find
        out.

    Returns:
        Rows of LISTING; none if there is no such folder.

    Raises:
        StorageFailed: it cannot be listed.
    """
    if is_local(fs):
        pages = _local_pages(fs, folder, as_listed)
    elif hasattr(fs, "call_s3"):
        pages = _s3_pages(fs, folder, as_listed)
    else:
        pages = _found(fs, folder, as_listed)
    return pa.Table.from_batches([_batch(*page) for page in pages], LISTING)


def files_below(fs: fsspec.AbstractFileSystem, folder: str) -> list[Listed]:
    """All files in a folder and the folders in it, by name, each by itself with its full path.

    Raises:
        StorageFailed: it cannot be listed.
    """
    table = list_files(fs, folder, as_listed=True).sort_by("path")
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return [Listed(posixpath.join(folder, path), size, version) for path, size, version in rows]


def matching(fs: fsspec.AbstractFileSystem, pattern: str) -> list[Listed]:
    """The files that match a glob, by name."""
    found = attempt(fs, pattern, "list", lambda: fs.glob(pattern, detail=True))
    return [listed(fs, path, info) for path, info in sorted(found.items()) if info["type"] == "file"]


def _batch(paths: list[str], sizes: list[int], versions: list[str]) -> pa.RecordBatch:
    try:
        names = pa.array(paths, pa.string())
    except UnicodeEncodeError:  # names on a disk are bytes; one that is no text can be shown, but not opened
        names = pa.array([os.fsencode(path).decode(errors="backslashreplace") for path in paths], pa.string())
    return pa.record_batch([names, pa.array(sizes, pa.int64()), pa.array(versions, pa.string())], LISTING)


def local_version(info: os.stat_result) -> str:
    """What changes whenever a file on a disk is written: the time of change cannot be set back, and a file that
    replaces another within the same tick of the clock has another inode."""
    return f"{info.st_ctime_ns}-{info.st_ino}"


def etag_version(etag: str) -> str:
    """An object's etag, without its quotes."""
    return etag.strip('"')


def _local_pages(fs: fsspec.AbstractFileSystem, folder: str, as_listed: bool) -> Iterator[_Page]:
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
                    if _is_folder(entry):
                        waiting.append(path)
                    elif as_listed or not entry.name.startswith("."):
                        try:
                            info = entry.stat()
                            size = info.st_size
                        except OSError as error:  # removed just now, or a link to nowhere
                            if not (as_listed and entry.is_symlink()):
                                if isinstance(error, FileNotFoundError):
                                    continue
                                raise
                            info, size = entry.stat(follow_symlinks=False), 0
                        page[0].append(path)
                        page[1].append(size)
                        page[2].append(str(info.st_mtime) if as_listed else local_version(info))
            if len(page[0]) >= _ROWS:
                yield page
                page = ([], [], [])
        yield page


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _s3_pages(fs: Any, folder: str, as_listed: bool) -> Iterator[_Page]:
    """Each page is tried again by itself: one failure in a thousand would else spoil every long listing."""
    attempt(fs, folder, "list", lambda: fs.s3).meta.events.register(
        "before-parse.s3.ListObjectsV2", _lighten, unique_id="tokloss-lighten"
    )
    bucket, _, prefix = posixpath.join(folder.strip("/"), "").partition("/")
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, **fs.req_kw}
    while True:
        # The lambda is called before `asked` changes.
        answer = attempt(fs, folder, "list", lambda: fs.call_s3("list_objects_v2", **asked))
        entries = answer.get("Contents", ())
        yield _page(((e["Key"][len(prefix) :], int(e["Size"]), e.get("ETag", "")) for e in entries), as_listed)
        if not answer.get("IsTruncated"):
            return
        asked["ContinuationToken"] = answer["NextContinuationToken"]


def _lighten(response_dict: dict[str, Any], **_: Any) -> None:
    """Take out of a page, before botocore parses it, times and owners: two thirds of the time would go into them."""
    if isinstance(response_dict.get("body"), bytes):
        response_dict["body"] = _UNUSED.sub(b"", response_dict["body"])


def _found(fs: fsspec.AbstractFileSystem, folder: str, as_listed: bool) -> Iterator[_Page]:
    try:
        found = attempt(fs, folder, "list", lambda: fs.find(folder, detail=True))
    except FileNotFoundError:
        return
    files = (listed(fs, path, info) for path, info in found.items())
    yield _page(((file.path[len(folder) + 1 :], file.size, file.version) for file in files), as_listed)


def _page(files: Iterator[tuple[str, int, str]], as_listed: bool) -> _Page:
    page: _Page = ([], [], [])
    for path, size, version in files:
        hidden = posixpath.basename(path).startswith(".") and not as_listed
        if path and not path.endswith("/") and not hidden:  # some tools mark folders with an empty object
            page[0].append(path)
            page[1].append(size)
            page[2].append(version if as_listed else etag_version(version))
    return page
