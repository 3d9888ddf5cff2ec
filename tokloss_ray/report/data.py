"""The mining tables that a report is made of: those of OUTPUT/mining where they are what it needs, else new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused, before_work
from tokloss_ray.mining.mine import Progress, mine
from tokloss_ray.mining.mined import fits, mining_folder, read_provenance, read_table
from tokloss_ray.mining.ranks.label_scores import DEFAULT
from tokloss_ray.mining.tables import listing
from tokloss_ray.mining.tables.table import Tables
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.records import in_order, stream_records
from tokloss_ray.output.run import Run, read_finished
from tokloss_ray.output.score_files import reading
from tokloss_ray.output.totals import Tally, Totals
from tokloss_ray.schema import ERRORS_SCHEMA
from tokloss_ray.storage.files import open_location, read_whole

_ENOUGH = 1_000  # ranked rows, at least: the page shows a few hundred, and looks up their sentences
_BAD_ROWS = 5  # of each reason


@dataclass(frozen=True)
class ReportData:
    """All that a report is made of.

    Attributes:
        output: as it was given.
        run: what `_run.json` says.
        totals: over the commit records.
        finished: the run is.
        tables: mining tables by name.
        slices: `tags` and `entities` by slice, or none.
        by: the columns of the slices.
        where: which rows the tables are about, as it was given.
        rank, scheme: of the tables.
        bad_rows: a few rows of errors/ for each reason.
    """

    output: str
    run: Run
    totals: Totals
    finished: bool
    tables: Tables
    slices: Tables
    by: tuple[str, ...]
    where: tuple[str, ...]
    rank: str
    scheme: str | None
    bad_rows: pa.Table


def read_report_data(
    output: str,
    *,
    by: Sequence[str] = (),
    where: Sequence[str] = (),
    scheme: str | None = None,
    rank: str | None = None,
    partial: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
) -> ReportData:
    """Read or make the tables of a report. Writes nothing.

    Tables of `tokloss mine` are taken where they are about this output alone, as a whole and as it is now, and long
    enough; else they are made anew, in memory. Rank and scheme are those of the tables that are there, unless given.

    by: columns to compare slices by. where, scheme, rank, partial, address, progress: as for `mine`.

    Raises:
        Refused: not an output, not finished, no such column, and whatever else `mine` refuses.
        JobFailed: a file cannot be read.
    """
    with before_work():
        run, finished = read_finished(output, partial, "report")
        tally, with_errors = Tally(), []
        for record in stream_records(output, run.short_fingerprint):
            tally.add(record)
            if record.errors_file is not None:
                with_errors.append(record)
        totals = tally.totals()
        found, made = _read_tables(output)
        bad_rows = _read_bad_rows(output, with_errors)
    rank = rank or made.get("rank") or DEFAULT
    scheme = scheme or made.get("scheme")
    asked = {"rank": rank, "scheme": scheme, "min_count": 1}
    enough = found and not where and asked.items() <= made.items() and made["limit"] >= _ENOUGH
    tables = found if enough and fits(made, open_outputs(output, partial).runs[0]) else None

    def mined(columns: Sequence[str], moved: Progress | None) -> Tables:
        return mine(
            output, by=columns, where=where, scheme=scheme, rank=rank, partial=partial, write=False, address=address,
            progress=moved,
        )  # fmt: skip

    if tables is None:
        tables = mined((), progress)
    slices = {name: mined(by, progress)[name] for name in ("tags", "entities")} if by else {}
    return ReportData(output, run, totals, finished, tables, slices, tuple(by), tuple(where), rank, scheme, bad_rows)


def _read_tables(output: str) -> tuple[Tables, dict[str, Any]]:
    """The tables of OUTPUT/mining and how they were made; none at all where one is missing or is not ours."""
    tables: Tables = {}
    made: list[dict[str, Any]] = []
    for name in (table.name for table in listing.TABLES):
        try:
            tables[name] = read_table(f"{mining_folder(output)}/{name}.parquet")
        except (FileNotFoundError, Refused):
            return {}, made[0] if made else {}
        made.append(read_provenance(tables[name]))
    return (tables, made[0]) if all(other == made[0] for other in made) else ({}, made[0])


def _read_bad_rows(output: str, records: list[CommitRecord]) -> pa.Table:
    """The first rows of errors/, a few for each reason."""
    fs, root = open_location(output)
    kept: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    wanted = {reason for record in records for reason in record.errors}
    for record in in_order(records):
        if record.errors_file is None or all(seen.get(reason, 0) >= _BAD_ROWS for reason in wanted):
            continue
        path = record.errors_file.path
        with reading(output, path):
            file = pa.BufferReader(read_whole(fs, f"{root}/{path}"))
            rows = pq.read_table(file, schema=ERRORS_SCHEMA, page_checksum_verification=True).to_pylist()
        for row in rows:
            if seen.get(row["reason"], 0) < _BAD_ROWS:
                seen[row["reason"]] = seen.get(row["reason"], 0) + 1
                kept.append(row)
    kept.sort(key=lambda row: row["reason"])
    return pa.Table.from_pylist(kept, ERRORS_SCHEMA)
