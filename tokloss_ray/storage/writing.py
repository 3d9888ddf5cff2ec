"""Files that are larger than memory, written piece by piece, and there whole or not at all.

`files.write_whole` is for what is in memory already.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import fsspec

from tokloss_ray.faults import fault_point
from tokloss_ray.storage.failures import as_storage_failure, attempt, is_local

_BUFFER = 1 << 20


@contextmanager
def writing_whole(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Callable[[bytes], None]]:
    """A function that takes a file piece by piece; the file appears when the context ends without an exception.

    For an object store the pieces wait in a temporary file, which is put as one operation: in parts if it is large,
    which s3fs takes back if one of them fails.

    Raises:
        StorageFailed: it cannot be written.
    """
    with _on_disk(fs, path) if is_local(fs) else _in_bucket(fs, path) as file:

        def write(piece: bytes) -> None:
            with as_storage_failure(fs, path, "write"):
                file.write(piece)

        yield write


@contextmanager
def _on_disk(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with as_storage_failure(fs, path, "write"):
            os.makedirs(folder, exist_ok=True)
            file = open(temporary, "wb", buffering=_BUFFER)  # noqa: SIM115 (closed below: failures in between are others')
        try:
            yield file
            with as_storage_failure(fs, path, "write"):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with as_storage_failure(fs, path, "write"):
                file.close()
        fault_point("file.temporary", path)
        with as_storage_failure(fs, path, "write"):
            os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


@contextmanager
def _in_bucket(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile(prefix="tokloss-", buffering=_BUFFER) as file:
        yield file  # type: ignore[misc]
        with as_storage_failure(fs, path, "write"):
            file.flush()
        attempt(fs, path, "write", lambda: fs.put_file(file.name, path))
