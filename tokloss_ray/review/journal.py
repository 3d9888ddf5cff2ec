"""One reviewer's decisions, durable when `write` returns: a file that is appended to, or an object for each batch."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Sequence

from tokloss_ray.errors import Refused, StorageFailed
from tokloss_ray.output.decisions import Decision, file_stem, review_folder, to_line
from tokloss_ray.storage.failures import is_local
from tokloss_ray.storage.files import open_location, write_whole


class Journal:
    """Where the decisions of one reviewer go. `close` it at the end.

    Raises:
        Refused: the same reviewer is at work already, on this machine, or the folder cannot be written.
    """

    def __init__(self, output: str, reviewer: str, batches: int) -> None:
        self.fs, self.root = open_location(review_folder(output))
        self.stem, self.batches = file_stem(reviewer), batches
        self.session = secrets.token_hex(3)
        self.descriptor: int | None = None
        if is_local(self.fs):
            try:
                self.descriptor = self._opened(reviewer)
            except OSError as error:
                raise Refused(f"cannot write {self.root}: {(error.strerror or str(error)).lower()}") from None

    def _opened(self, reviewer: str) -> int:
        os.makedirs(self.root, exist_ok=True)
        path = f"{self.root}/{self.stem}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Refused(
                f"{reviewer} is reviewing this output in another process: end that one, or pass another --reviewer"
            ) from None
        self.whole = _cut_unfinished(descriptor)
        _sync_folder(self.root)  # the file's name must be as durable as what is in it
        _sync_folder(os.path.dirname(self.root))
        return descriptor

    def write(self, decisions: Sequence[Decision]) -> None:
        """Write one batch; it is on the disk, or in the bucket, when this returns.

        Raises:
            StorageFailed: it is not; nothing of it counts.
        """
        data = b"".join(map(to_line, decisions))
        self.batches += 1
        if self.descriptor is None:
            write_whole(self.fs, f"{self.root}/{self.stem}/{self.batches:06d}-{self.session}.jsonl", data)
            return
        try:
            done = 0
            while done < len(data):
                done += os.write(self.descriptor, data[done:])
            os.fsync(self.descriptor)
            self.whole += len(data)
        except OSError as error:
            os.ftruncate(self.descriptor, self.whole)  # half a batch must not count later
            raise StorageFailed(f"cannot write {self.root}: {(error.strerror or str(error)).lower()}") from None

    def close(self) -> None:
        """Let another process write for this reviewer."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def _cut_unfinished(descriptor: int) -> int:
    """Remove a last line without an end, which was never confirmed; returns the size of what is left."""
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size, 0)
    whole = data.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(descriptor, whole)
    return whole


def _sync_folder(path: str) -> None:
    folder = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
