"""What an input format is: how its files are called, looked at, cut into parts and read."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.inputs.unit import Columns, FilePart
from tokloss_ray.storage.files import Listed

PACKED = (".gz", ".bz2", ".xz", ".zst")
CHUNK_ROWS = 1024
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What opening or unpacking a text file raises."""


class RawChunk(NamedTuple):
    """Rows as they were read: a table of the needed columns that there are, their source rows, and records that are not
    rows; and the schema of the whole file, None of text."""

    table: pa.Table
    source_rows: np.ndarray
    broken: list[dict]
    schema: pa.Schema | None = None


Groups = tuple[tuple[int, int, int], ...]
"""(rows, bytes, offset of an Arrow batch) of what a file's metadata name as read together."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """An input format. Files are read in it as soon as `formats.FORMATS` has it.

    Attributes:
        name: in plans.
        title: in messages.
        suffixes: how the names of its files end, in lower case.
        named_suffixes: the same of files that may be anything, so that a folder's are left alone.
        packed: files may be packed (`PACKED`).
        bytes_per_token: about; parts are cut by it.
        inspect: a listed file -> its schema (None where rows may differ) and groups (none of a text file), from its
            metadata or first lines. May raise `UNREADABLE` and `pa.ArrowException`.
        read: the columns and a part of a file -> its rows, some at a time.
        records: a part of a text file -> its records: of each the offset, the bytes, and what else there is. None:
            parts are runs of groups, not ranges of bytes.
        whole: a text file is one part, however large, as it cannot be entered midway.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    named_suffixes: tuple[str, ...] = ()
    packed: bool = False
    bytes_per_token: int
    inspect: Callable[[Listed], tuple[pa.Schema | None, Groups]]
    read: Callable[[Columns, FilePart], Iterator[RawChunk]]
    records: Callable[[FilePart], Iterator[tuple[Any, ...]]] | None = None
    whole: bool = False
