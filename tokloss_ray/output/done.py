"""What is committed, kept so that memory grows with the units at work and not with the shards that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.output.names import ERRORS, SCORES, shard_name, shard_place
from tokloss_ray.output.record import CommitRecord, RowRange
from tokloss_ray.output.records import RecordStream
from tokloss_ray.output.totals import Tally
from tokloss_ray.storage.files import open_location
from tokloss_ray.storage.listings import LISTING, list_files


class _Place(NamedTuple):
    """What is kept of a shard while its unit is not whole."""

    last: bool
    rows: int
    held: RowRange | None


class Done:
    """Which shards of which units are committed, and which rows they hold.

    A unit that is whole, and whose shards fit together, is two numbers; of others each shard is kept.
    """

    def __init__(self, records: Iterable[CommitRecord] = ()) -> None:
        self.shards = 0
        self._open: dict[int, dict[int, _Place]] = {}
        self._last: dict[int, int] = {}
        self._whole: dict[int, tuple[int, int | None]] = {}  # shards, and rows where the records say
        self._beyond: dict[int, int] = {}
        for record in records:
            self.add(record)

    def add(self, record: CommitRecord) -> bool:
        """Count a shard; False if it was there before."""
        unit, index = record.unit, record.index
        if (whole := self._whole.get(unit)) is not None:
            new = index >= whole[0] and self._beyond.get(unit) != index
            if new:
                self._beyond[unit] = min(index, self._beyond.get(unit, index))
            self.shards += new
            return new
        places = self._open.setdefault(unit, {})
        if index in places:
            return False
        self.shards += 1
        places[index] = _Place(record.last, record.rows, record.row_range)
        if record.last:
            self._last[unit] = max(index, self._last.get(unit, index))
        if self._last.get(unit) == len(places) - 1 and _is_whole(unit, places):
            rows = places[self._last.pop(unit)].held
            self._whole[unit] = len(places), None if rows is None else rows.stop
            del self._open[unit]
        return True

    def has(self, unit: int, index: int) -> bool:
        """Whether a shard is committed."""
        whole = self._whole.get(unit)
        return index in self._open.get(unit, {}) if whole is None else index < whole[0]

    def missing(self, units: Iterable[int]) -> list[tuple[int, str]]:
        """What is not committed yet, as (unit, name): shards before a unit's last one, and units without a last one."""
        missing = []
        for unit in units:
            if unit in self._whole:
                continue
            have, last = self._open.get(unit, {}), self._last.get(unit)
            if last is None:
                known = f" after {max(have):03d}" if have else ""
                missing.append((unit, f"{unit:06d}{known}"))
            else:
                missing += [(unit, shard_name(unit, i)) for i in range(last) if i not in have]
        return missing

    def misfits(self, units: Mapping[int, int | None]) -> Iterator[tuple[str, str]]:
        """Where the shards of a unit do not hold its rows from the first to the last, each once: (shard, problem).

        units: the rows of each unit by its number, None where metadata do not tell. Missing shards are another matter
        (`missing`): nothing is said of what follows one. Records of earlier versions hold no rows.
        """
        for unit in sorted(self._open.keys() | self._whole.keys()):
            whole = self._whole.get(unit)
            first = 0 if whole else min(self._open[unit])
            if unit not in units:
                yield shard_name(unit, first), f"the plan has no unit {unit}"
            elif whole is None:
                yield from _misfits(unit, self._open[unit], units[unit])
            else:
                name, planned, rows = shard_name(unit, whole[0] - 1), units[unit], whole[1]
                if unit in self._beyond:
                    yield name, _followed(unit, self._beyond[unit])
                if planned is not None and rows is not None and rows != planned:
                    yield name, _ends_elsewhere(rows, planned)

    def held(self) -> dict[int, dict[int, RowRange]]:
        """Which rows the committed shards of each unit that is not whole hold, by the shard's number in its unit."""
        return {
            unit: {index: place.held for index, place in places.items() if place.held is not None}
            for unit, places in self._open.items()
        }


def _misfits(unit: int, places: Mapping[int, _Place], rows: int | None = None) -> Iterator[tuple[str, str]]:
    """As `Done.misfits`, of one unit."""
    after = 0
    order = sorted(places)
    for position, index in enumerate(order):
        last, count, held = places[index]
        name = shard_name(unit, index)
        if index != position or held is None:
            return
        if held.start != after:
            yield name, f"it begins at row {held.start:,} of its unit, but the previous shard ends at row {after:,}"
            return
        if held.stop - held.start != count:
            yield name, f"it has {count:,} rows, from {held.start:,} to {held.stop:,}"
        after = held.stop
        if last:
            if position + 1 < len(order):
                yield name, _followed(unit, order[position + 1])
            if rows is not None and after != rows:
                yield name, _ends_elsewhere(after, rows)
            return


def _is_whole(unit: int, places: Mapping[int, _Place]) -> bool:
    """Whether the shards, as many as the last one's number says, are all there is to know of a unit."""
    held = [place.held is None for place in places.values()]
    return max(places) == len(places) - 1 and all(held) == any(held) and next(_misfits(unit, places), None) is None


def _ends_elsewhere(row: int, planned: int) -> str:
    return f"its unit ends at row {row:,}, but the plan says {planned:,}"


def _followed(unit: int, index: int) -> str:
    return f"it is the last of its unit, but shard {shard_name(unit, index)} follows"


_NAMED = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("shard", pa.string())])
_ROWS = 10_000


class Committed:
    """All that a run needs to know of its commit records, from one pass over them.

    Attributes:
        done: the shards that are committed.
        tally: what they add up to.
        damaged, of_other_runs: records that do not count, as in `records.Scan`.
        other_segments: file names of segments of other runs.
        next_segment: the number that no segment of records has yet.
    """

    def __init__(self, records: Iterable[CommitRecord] = ()) -> None:
        self.done, self.tally = Done(), Tally()
        self.damaged: dict[str, str] = {}
        self.of_other_runs: list[str] = []
        self.other_segments: list[str] = []
        self.next_segment = 1
        self._files: list[pa.RecordBatch] = []
        self._rows: list[tuple[str, int, str]] = []
        for record in records:
            self.add(record)

    def add(self, record: CommitRecord) -> bool:
        """Count a record; False if it was there before."""
        if not self.done.add(record):
            return False
        self.tally.add(record)
        self._rows += [(file.path, file.bytes, record.shard) for file in record.all_files]
        if len(self._rows) >= _ROWS:
            self._flush()
        return True

    def among(self, shards: Iterable[str]) -> list[str]:
        """Those of some shards that are committed."""
        return [shard for shard in shards if (place := shard_place(shard)) is not None and self.done.has(*place)]

    def files(self) -> pa.Table:
        """The data files that the records name: `path`, `bytes`, `shard`."""
        self._flush()
        return pa.Table.from_batches(self._files, _NAMED)

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, _NAMED, strict=True)]
            self._files.append(pa.record_batch(arrays, _NAMED))
            self._rows = []


def read_committed(
    output: str,
    fingerprint: str,
    skip: Iterable[str] = (),
    *,
    roll_up: bool = False,
    each: Callable[[CommitRecord], None] = lambda record: None,
) -> Committed:
    """Read the records of a run.

    skip: shards that do not count. roll_up: put records that are in no segment into new ones, if they are many. each:
    is called with each record that counts.
    """
    stream, left_out = RecordStream(output, fingerprint, roll_up=roll_up), set(skip)
    committed = Committed()
    for record in stream:
        if record.shard not in left_out and committed.add(record):
            each(record)
    committed.damaged, committed.of_other_runs = stream.damaged, stream.of_other_runs
    committed.other_segments, committed.next_segment = stream.other_segments, stream.next_segment
    return committed


def list_data(output: str) -> pa.Table:
    """The files in scores/ and errors/, with their paths in the output: rows of LISTING."""
    fs, root = open_location(output)
    tables = []
    for folder in (SCORES, ERRORS):
        table = list_files(fs, f"{root}/{folder}")
        path = pc.binary_join_element_wise(folder, table.column("path"), "/")
        tables.append(table.set_column(0, LISTING.field("path"), path))
    return pa.concat_tables(tables)


def file_problems(listing: pa.Table, named: pa.Table) -> list[tuple[str | None, str]]:
    """What a listing of the data files shows, by shard: files that records name and that are not there or of another
    size; and, with None for the shard, files of nobody."""
    problems: list[tuple[str | None, str]] = []
    there = pc.index_in(named.column("path"), listing.column("path"))
    sizes = listing.column("size").take(there)
    wrong = pc.fill_null(pc.not_equal(sizes, named.column("bytes")), True)
    columns = (named.append_column("size", sizes).filter(wrong)).to_pylist()
    for row in sorted(columns, key=lambda row: (row["shard"], row["path"])):
        if row["size"] is None:
            problems.append((row["shard"], f"{row['path']} is missing"))
        else:
            problems.append((row["shard"], f"{row['path']} has {row['size']:,} bytes, not {row['bytes']:,}"))
    return problems + [(None, f"{path} belongs to no shard") for path in sorted(strangers(listing, named))]


def strangers(listing: pa.Table, named: pa.Table) -> list[str]:
    """Listed files that no record names."""
    paths = listing.column("path")
    return paths.filter(pc.invert(pc.is_in(paths, named.column("path")))).to_pylist()
