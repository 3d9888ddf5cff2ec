"""A commit record: what a shard came to, and which rows of its unit it holds.

The rows of a unit are counted from 0 in the order in which they are read; a record holds `start` and `stop` of its
shard in this count, and the `first_row` and `last_row` of it as `source_row` numbers. So it shows when two attempts cut
a unit at different places, which would lose rows or score them twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from sys import intern
from typing import Any, NamedTuple

from tokloss_ray.storage.sealed import DamagedError, is_sealed, unsealed


class RowRange(NamedTuple):
    """The rows of a shard: [start, stop) in the count of its unit, the highest source_row (-1: there is none), and
    whether the unit ends with them."""

    start: int
    stop: int
    last_row: int
    last: bool


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a shard: its path in the output, its rows and bytes, and the SHA-256 of its content (None in
    records of earlier versions)."""

    path: str
    rows: int
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a shard came to. The fields, in the order in which the file has them, are described in docs/output.md.

    A shard begins with `first_row` of the file `source` and ends with `last_row` of `last_source`. Records of earlier
    versions have None for `last_source`, `batching`, `device_wait`, and `start` to `last_row`; a shard without rows has
    None for the two rows. Losses are in nats.
    """

    shard: str
    fingerprint: str
    unit: int
    index: int
    source: str
    last_source: str | None
    last: bool
    rows: int
    start: int | None
    stop: int | None
    first_row: int | None
    last_row: int | None
    seconds: dict[str, float]
    padded_tokens: int
    batch_tokens: int
    batching: str | None
    scored_rows: int
    error_rows: int
    sequences: int
    tokens: int
    labels: int
    dropped_words: int
    errors: dict[str, int]
    loss_by_tag: dict[str, tuple[int, float]]
    files: tuple[DataFile, ...]
    errors_file: DataFile | None
    storage_retries: int
    memory_splits: int
    device_wait: float | None
    compiled: str | None = None

    @property
    def all_files(self) -> tuple[DataFile, ...]:
        """The data files, that of errors/ among them."""
        return self.files if self.errors_file is None else (*self.files, self.errors_file)

    @property
    def row_range(self) -> RowRange | None:
        """Which rows of its unit the shard holds; None in records of earlier versions."""
        if self.start is None or self.stop is None:
            return None
        return RowRange(self.start, self.stop, -1 if self.last_row is None else self.last_row, self.last)

    def to_json(self) -> dict[str, Any]:
        """As the file has it, and as it travels from a worker to the driver."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CommitRecord:
        """From the file, also of an earlier version; keys that are not known are passed over.

        Raises:
            DamagedError: something is missing, or is not what it must be.
        """
        try:
            errors_file = content["errors_file"]
            known: dict[str, Any] = {name: content[name] for name in _REQUIRED}
            known |= {name: content.get(name, default) for name, default in _LATER.items()}
            known["files"] = tuple(_data_file(file) for file in content["files"])
            known["errors_file"] = None if errors_file is None else _data_file(errors_file)
            # A name that many records have is kept once.
            known |= {name: intern(content[name]) for name in ("fingerprint", "source")}
            last_source = known["last_source"]
            known["last_source"] = None if last_source is None else intern(last_source)
            for name in ("seconds", "errors"):
                known[name] = {intern(key): value for key, value in content[name].items()}
            by_tag = content["loss_by_tag"].items()
            known["loss_by_tag"] = {intern(tag): (count, total) for tag, (count, total) in by_tag}
        except KeyError as error:
            raise DamagedError(f"it has no {error.args[0]}") from None
        except (TypeError, ValueError, AttributeError):
            raise DamagedError("it is not a commit record") from None
        return cls(**known)


def _data_file(content: Mapping[str, Any]) -> DataFile:
    return DataFile(content["path"], content["rows"], content["bytes"], content.get("sha256"))


_LATER: dict[str, Any] = {
    "last_source": None, "start": None, "stop": None, "first_row": None, "last_row": None, "batching": None,
    "storage_retries": 0, "memory_splits": 0, "device_wait": None, "compiled": None,
}  # fmt: skip
"""Fields that records of earlier versions lack, and what is taken for them."""
_REQUIRED = tuple(f.name for f in fields(CommitRecord) if f.name not in _LATER)


def parse_record(name: str, data: bytes) -> CommitRecord:
    """The record in a file of this name.

    Raises:
        DamagedError: with what is wrong with it.
    """
    record = CommitRecord.from_json(unsealed(data))
    if record.row_range is not None and not is_sealed(data):  # earlier versions wrote neither
        raise DamagedError("it has no checksum")
    if record.shard != name.removesuffix(".json"):
        raise DamagedError(f"it is the record of shard {record.shard}")
    return record
