"""Files by URI or local path: listings, whole reads, range reads and whole writes, the same on disk and in a bucket.

A file appears under its final name whole or not at all. On a file system that is a temporary name and a rename; an
object store publishes an object when the one call that puts it returns. File objects of fsspec and pyarrow do not do:
when the code that fills them raises, closing them publishes what there is.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.compression import compr
from fsspec.core import get_compression, url_to_fs

from tokloss_ray.errors import Refused
from tokloss_ray.faults import fault_point
from tokloss_ray.storage import zstd
from tokloss_ray.storage.failures import as_storage_failure, attempt, is_local
from tokloss_ray.threads import in_context

# One layer of retries, `attempt`, around each operation; those of botocore and s3fs would multiply with it. Listings
# are not cached, as other processes write too. No keys here: they would travel with every pickled file system.
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "max_concurrency": 1,  # whole objects in one GET, without asking for their size first
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "connect_timeout": 5,
        "read_timeout": 20,
        "max_pool_connections": 64,
    },
}
_SECRETS = re.compile(
    r"://[^/@]*:[^/@]*@|://.*[?&](x-amz-[a-z-]*|awsaccesskeyid|signature|sig|token|access_token)=", re.IGNORECASE
)
_READ_AHEAD = 4 << 20
_PINNED = re.compile(r"hf://datasets/[^/]+/[^/@]+@[0-9a-f]{40}/")


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of a listing: full path, size in bytes, and what changes when its content does."""

    path: str
    size: int
    version: str


def open_location(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI or local path, and the path on it (absolute, no trailing slash).

    Raises:
        Refused: the scheme is unknown, needs a package that is not installed, or the URI holds a secret.
    """
    if _SECRETS.search(uri):
        raise Refused(
            f"an address that starts with {uri.split('://')[0]}:// holds a key or a signature, which would end up in "
            f"logs: remove it, and put credentials in the environment"
        )
    scheme = uri.split("://")[0] if "://" in uri else "file"
    options = _S3_OPTIONS if scheme in ("s3", "s3a") else {}
    try:
        fs, path = url_to_fs(os.path.expanduser(uri), **options)
    except (ValueError, ImportError) as error:
        raise Refused(f"cannot open {uri}: {error}") from None
    if scheme in ("s3", "s3a"):
        fs.retries = 1
    return fs, path.rstrip("/") or "/"


def is_pinned(uri: str) -> bool:
    """Whether what a URI names cannot change: a file of the hub at a commit."""
    return _PINNED.match(uri) is not None


def kind_of(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """`file`, `directory` or None. (`fs.exists` and `fs.isfile` take every failure for a no.)

    Raises:
        StorageFailed: the answer is not to be had, or there is not even a bucket.
    """
    try:
        info = attempt(fs, path, "read", lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        bucket = path.strip("/").split("/")[0]
        if not is_local(fs) and bucket != path.strip("/"):
            attempt(fs, bucket, "read", lambda: _look_for_bucket(fs, bucket))
        return None
    return str(info["type"]) if is_local(fs) or info["type"] == "directory" else "file"


def _look_for_bucket(fs: fsspec.AbstractFileSystem, bucket: str) -> None:
    try:
        fs.info(bucket)
    except FileNotFoundError:
        fs.ls(bucket)  # s3fs before 2025.12 says of an empty bucket that there is none


def exists(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether there is such a file or folder."""
    return kind_of(fs, path) is not None


def listed(fs: fsspec.AbstractFileSystem, path: str, info: dict | None = None) -> Listed:
    """Size and version of one file: its etag where there is one, else its time of change."""
    info = info or attempt(fs, path, "read", lambda: fs.info(path))
    kinds = ("ETag", "etag", "mtime", "LastModified", "blob_id")
    version = next((info[kind] for kind in kinds if info.get(kind)), "")
    return Listed(path, int(info["size"] or 0), str(version))


def children(fs: fsspec.AbstractFileSystem, folder: str) -> list[dict]:
    """What is in a folder, by name, as fsspec describes it; empty if there is no such folder."""
    try:
        entries = attempt(fs, folder, "list", lambda: fs.ls(folder, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((e for e in entries if e["name"].rstrip("/") != folder), key=lambda e: e["name"])


def write_whole(fs: fsspec.AbstractFileSystem, path: str, data: bytes | memoryview) -> None:
    """Write `data` under `path`, replacing what was there, so that no reader ever sees a part of it.

    Raises:
        StorageFailed: it cannot be written.
    """
    if not is_local(fs):
        whole = bytes(data)
        attempt(fs, path, "write", lambda: fs.pipe_file(path, whole))
        return
    folder, name = os.path.split(path)
    # Readers skip names that start with a dot. The process id keeps two writers of one file apart.
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    with as_storage_failure(fs, path, "write"):
        try:
            os.makedirs(folder, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data[: len(data) // 2])
                fault_point("file.half", path)
                file.write(data[len(data) // 2 :])
                file.flush()
                os.fsync(file.fileno())
            fault_point("file.temporary", path)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise


def read_whole(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes of a file."""
    return attempt(fs, path, "read", lambda: fs.cat_file(path))


def read_files(fs: fsspec.AbstractFileSystem, folder: str, suffix: str) -> list[tuple[str, bytes]]:
    """Path and content of the files of a folder with this suffix, by name; nothing if there is no such folder.

    Files that others remove meanwhile are left out.
    """
    paths = [posixpath.join(folder, name) for name in file_names(fs, folder, suffix)]

    def content(path: str) -> bytes | None:
        try:
            return read_whole(fs, path)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(16) as pool:
        found = pool.map(in_context(content), paths)
        return [(path, data) for path, data in zip(paths, found, strict=True) if data is not None]


def open_file(fs: fsspec.AbstractFileSystem, path: str, size: int | None = None, unpack: bool = False) -> BinaryIO:
    """A file to read from, forwards; of an object in large steps. `unpack` goes by its name (.gz, .bz2, .xz, .zst)."""
    file = open_random(fs, path, size)
    if not is_local(fs):
        file = cast(BinaryIO, io.BufferedReader(cast(RangeFile, file), _READ_AHEAD))
    if unpack and path.lower().endswith(zstd.SUFFIX):
        return zstd.unpacked(file)
    packing = get_compression(path, "infer") if unpack else None
    return compr[packing](file, mode="rb") if packing else file


def open_random(fs: fsspec.AbstractFileSystem, path: str, size: int | None = None) -> BinaryIO:
    """A file to read here and there; of an object, just the ranges that are asked for are fetched."""
    if not is_local(fs):
        return cast(BinaryIO, RangeFile(fs, path, size))
    with as_storage_failure(fs, path, "read"):
        return open(path, "rb")


class RangeFile(io.RawIOBase):
    """An object as a file that reads exactly the ranges it is asked for, each tried again like any other operation.

    For Parquet: pyarrow asks for the column chunks it needs, and a file object with a read-ahead of its own would
    fetch several times as much.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int | None = None) -> None:
        self.fs, self.path = fs, path
        self.size = listed(fs, path).size if size is None else size
        self.position = 0
        # The hub's file system would read ahead, and ask for the size each time.
        self.options = {"cache_type": "none", "size": self.size} if "hf" in fs.protocol else {}
        self.attempt = in_context(attempt)  # Arrow reads in threads of its own

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; returns the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or as much of it as the object has."""
        start, stop = self.position, min(self.position + len(buffer), self.size)
        if start >= stop:
            return 0
        data = self.attempt(self.fs, self.path, "read", lambda: self._range(start, stop))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _range(self, start: int, stop: int) -> bytes:
        data = self.fs.cat_file(self.path, start=start, end=stop, **self.options)
        if len(data) != stop - start:
            raise TimeoutError("the response is shorter than requested")
        return data


def remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove a file or folder, if there is one.

    Raises:
        StorageFailed: something of it is still there: s3fs says nothing when a bulk delete is denied.
    """
    if is_local(fs):
        with as_storage_failure(fs, path, "delete"):
            if fs.exists(path):
                fs.rm(path, recursive=True)
        return

    def there() -> list[str]:
        return sorted(name for name in fs.find(path) if not name.endswith("/"))

    if not (files := attempt(fs, path, "list", there)):
        return
    attempt(fs, path, "delete", lambda: fs.rm(files))
    if left := attempt(fs, path, "list", there):
        attempt(fs, left[0], "delete", lambda: fs.rm_file(left[0]))


def file_names(fs: fsspec.AbstractFileSystem, folder: str, suffix: str) -> list[str]:
    """Sorted names of the finished files in one folder that end in `suffix`; none if there is no such folder."""
    names = (posixpath.basename(entry["name"]) for entry in children(fs, folder))
    return [name for name in names if name.endswith(suffix) and not name.startswith(".")]
