"""zstd, with what pyarrow has of it: its streams take files of several frames, as `pzstd` and `cat` make them.

pyarrow is imported when it is needed: commands that read no such file do not wait for it.
"""

from __future__ import annotations

import io
from typing import BinaryIO, cast

SUFFIX = ".zst"
_STEP = 1 << 20


def unpacked(file: BinaryIO) -> BinaryIO:
    """A file to read forwards, of what is packed in `file`, which is closed with it."""
    import pyarrow as pa

    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(file, "zstd"), _STEP))


def packed(data: bytes) -> bytes:
    """One frame."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())
