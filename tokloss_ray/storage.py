"""From URIs to file systems, and whole-file writes.

A file appears under its final name whole or not at all. On a file system that is a temporary name and a rename; an
object store publishes an object when the one call that puts it returns.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tokloss_ray.errors import Refused


@dataclass(frozen=True)
class Listed:
    """One file of a listing: full path, size in bytes, and what changes when its content does."""

    path: str
    size: int
    version: str


def open_location(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI or local path, and the path on it (absolute, no trailing slash).

    Raises:
        Refused: the scheme is unknown, or needs a package that is not installed.
    """
    try:
        fs, path = url_to_fs(os.path.expanduser(uri))
    except (ValueError, ImportError) as error:
        raise Refused(f"cannot open {uri}: {error}") from None
    return fs, path.rstrip("/") or "/"


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether paths of `fs` are paths of this machine."""
    return isinstance(fs, LocalFileSystem)


def listed(fs: fsspec.AbstractFileSystem, path: str, info: dict | None = None) -> Listed:
    """Size and version of one file: its etag where there is one, else its time of change."""
    info = info or fs.info(path)
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return Listed(path, int(info["size"] or 0), str(version))


def files_below(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """All files in a folder and the folders in it, by name; links are followed.

    Raises:
        Refused: a folder in it cannot be listed.
    """
    if not is_local(fs):
        return sorted(fs.find(folder))

    def refuse(error: OSError) -> None:
        raise Refused(f"cannot list {error.filename}: {error.strerror}")

    files, seen = [], set()
    for inside, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(inside) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(os.path.realpath(inside))
        files += [posixpath.join(inside, name) for name in names]
    return sorted(files)


def write_whole(fs: fsspec.AbstractFileSystem, path: str, data: bytes | memoryview) -> None:
    """Write `data` under `path`, replacing what was there, so that no reader ever sees a part of it."""
    if not is_local(fs):
        fs.pipe_file(path, bytes(data))
        return
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    # Readers skip names that start with a dot. The process id keeps two writers of one file apart.
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read_whole(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes of a file."""
    return fs.cat_file(path)


def file_names(fs: fsspec.AbstractFileSystem, folder: str, suffix: str) -> list[str]:
    """Sorted names of the finished files in one folder that end in `suffix`; none if there is no such folder."""
    fs.invalidate_cache()
    try:
        entries = fs.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    names = (posixpath.basename(entry) for entry in entries)
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))
