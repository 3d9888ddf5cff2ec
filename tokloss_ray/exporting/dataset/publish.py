"""A copied folder appears whole, or is known to be incomplete.

On a file system it is written beside its place, under a name that starts with a dot, and renamed in the end. An object
store cannot rename: there a marker is written first and removed last, and whoever finds it knows.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.faults import fault_point
from tokloss_ray.inputs.listing import INCOMPLETE
from tokloss_ray.storage.failures import as_storage_failure
from tokloss_ray.storage.files import exists, is_local, kind_of, open_location, read_whole, remove, write_whole


def check_free(output: str) -> None:
    """See that nothing is at a place, or just what an attempt that was cut off has left.

    Raises:
        Refused: there is a file or a folder.
    """
    fs, path = open_location(output)
    if kind_of(fs, path) is not None and not _cut_off(fs, path):
        raise Refused(f"-o {output} already exists: choose a new file or folder")


@contextmanager
def whole_folder(output: str) -> Iterator[str]:
    """The folder to write to, so that OUTPUT is there when all is written. What a cut-off attempt left is removed.

    Raises:
        JobFailed: somebody else has written to OUTPUT meanwhile.
        StorageFailed: it cannot be written.
    """
    fs, path = open_location(output)
    with _beside(fs, path) if is_local(fs) else _marked(fs, path, output) as place:
        yield place


@contextmanager
def _beside(fs: Any, path: str) -> Iterator[str]:
    parent, name = os.path.split(path)
    _remove_remains(fs, parent, name)
    temporary = os.path.join(parent, f".{name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with as_storage_failure(fs, path, "write"):
            os.makedirs(temporary)
        yield temporary
        fault_point("apply.whole", path)
        if exists(fs, path):
            raise JobFailed(f"another process has written {path} in the meantime: choose another folder")
        with as_storage_failure(fs, path, "write"):
            os.rename(temporary, path)
    finally:
        remove(fs, temporary)


def _remove_remains(fs: Any, parent: str, name: str) -> None:
    """Remove what processes of this machine that are no more have left beside the place."""
    pattern = re.compile(rf"\.{re.escape(name)}\.{re.escape(socket.gethostname())}\.(\d+)\.tmp")
    for entry in os.listdir(parent) if os.path.isdir(parent) else []:
        if (match := pattern.fullmatch(entry)) and not _alive(int(match[1])):
            remove(fs, os.path.join(parent, entry))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # one of the same number that is no more


def _cut_off(fs: Any, path: str) -> bool:
    return not is_local(fs) and exists(fs, f"{path}/{INCOMPLETE}")


@contextmanager
def _marked(fs: Any, path: str, output: str) -> Iterator[str]:
    if _cut_off(fs, path):
        remove(fs, path)
    marker, ours = f"{path}/{INCOMPLETE}", uuid.uuid4().hex.encode()
    write_whole(fs, marker, ours)
    yield output
    fault_point("apply.whole", path)
    try:
        there = read_whole(fs, marker)
    except FileNotFoundError:
        there = b""
    if there != ours:
        raise JobFailed(f"another process has written {output} in the meantime: choose another folder")
    remove(fs, marker)
