"""The files of the input as columns: a hundred bytes each, and objects only while they are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa

from tokloss_ray.storage.files import Listed

INPUT_FILES = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("source", pa.string()),
        ("format", pa.string()),
    ]
)
"""Path as users write it; size and version as in `Listed`; path relative to the input root; name of the format."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file: its listing, its path relative to the input root, and the name of its format."""

    listed: Listed
    source: str
    format: str


class InputFiles(Sequence[InputFile]):
    """Input files in their order.

    Attributes:
        table: rows of INPUT_FILES.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, files: Iterable[InputFile]) -> InputFiles:
        """From single files."""
        if isinstance(files, InputFiles):
            return files
        rows = [(f.listed.path, f.listed.size, f.listed.version, f.source, f.format) for f in files]
        columns = zip(*rows, strict=True) if rows else [()] * len(INPUT_FILES)
        return cls(pa.table([pa.array(c, f.type) for c, f in zip(columns, INPUT_FILES, strict=True)], INPUT_FILES))

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each file, int64."""
        return self.table.column("size").to_numpy()

    def take(self, which: np.ndarray) -> InputFiles:
        """Some of the files, by their places or by a mask."""
        chosen = pa.array(which)
        return InputFiles(self.table.filter(chosen) if which.dtype == bool else self.table.take(chosen))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, place: int) -> InputFile: ...
    @overload
    def __getitem__(self, place: slice) -> InputFiles: ...
    def __getitem__(self, place: int | slice) -> InputFile | InputFiles:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        (file,) = _objects(self.table.slice(range(len(self))[place], 1))
        return file

    def __iter__(self) -> Iterator[InputFile]:
        for batch in self.table.to_batches(max_chunksize=1 << 14):
            yield from _objects(batch)


def _objects(rows: pa.Table | pa.RecordBatch) -> Iterator[InputFile]:
    for path, size, version, source, format_ in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        yield InputFile(Listed(path, size, version), source, format_)
