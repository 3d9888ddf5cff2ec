"""Rows divided into parts on disk: what is larger than memory as a whole is taken up again part by part.

The file has no name from the moment it is made (`TMPDIR` says where), so that nothing is left of it however the process
ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import pyarrow as pa

from tokloss_ray.errors import JobFailed
from tokloss_ray.ragged import offsets_of

_BUFFER = 64 << 20
_CODEC = "lz4"


class Spill:
    """Rows by the part they belong to, in each part in the order in which they were added.

    About `buffer` bytes of rows are held until they are written, sorted by part. No column may be a dictionary.
    """

    def __init__(self, parts: int, buffer: int = _BUFFER) -> None:
        self.parts, self.buffer = parts, buffer
        self._held: list[tuple[pa.Table, np.ndarray]] = []
        self._schema: pa.Schema | None = None
        self._pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(parts)]  # place, bytes, bytes unpacked
        self._file = tempfile.TemporaryFile(prefix="tokloss-")  # noqa: SIM115 (closed by `close`)
        self._size = 0

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the room on disk back."""
        self._held = []
        self._file.close()

    def add(self, rows: pa.Table, part: np.ndarray) -> None:
        """Add rows, all calls with the same columns. part: [N] integers in [0, parts).

        Raises:
            JobFailed: the disk is full.
        """
        self._schema = self._schema or rows.schema
        self._held.append((rows, part))
        if sum(table.nbytes for table, _ in self._held) >= self.buffer:
            self._write()

    def read(self, part: int) -> pa.Table | None:
        """The rows of a part; None if nothing was ever added."""
        if self._held:
            self._write()
        if self._schema is None:
            return None
        codec = pa.Codec(_CODEC)
        batches = []
        for place, packed, size in self._pieces[part]:
            data = codec.decompress(os.pread(self._file.fileno(), packed, place), size)
            batches.append(pa.ipc.read_record_batch(pa.py_buffer(data), self._schema))
        return pa.Table.from_batches(batches, self._schema)

    def read_all(self) -> Iterator[pa.Table]:
        """The rows of each part that has some, one part after another."""
        for part in range(self.parts):
            rows = self.read(part)
            if rows is not None and rows.num_rows:
                yield rows

    def _write(self) -> None:
        rows = pa.concat_tables([table for table, _ in self._held])
        part = np.concatenate([part for _, part in self._held])
        self._held = []
        rows = rows.take(pa.array(np.argsort(part, kind="stable"))).combine_chunks()
        ends = offsets_of(np.bincount(part, minlength=self.parts))
        codec = pa.Codec(_CODEC)
        for number in np.flatnonzero(np.diff(ends)):
            piece = rows.slice(ends[number], ends[number + 1] - ends[number])
            for batch in piece.to_batches():
                data = batch.serialize()
                packed = codec.compress(data)
                try:
                    self._file.write(packed)
                except OSError as error:
                    raise JobFailed(
                        f"no room for temporary files in {tempfile.gettempdir()} ({str(error.strerror).lower()}): set "
                        f"TMPDIR to a folder on a larger disk"
                    ) from error
                self._pieces[number].append((self._size, packed.size, data.size))
                self._size += packed.size
        self._file.flush()
