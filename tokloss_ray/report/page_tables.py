"""The mining tables that a report is made of: those of OUTPUT/mining where they are what it needs, else new ones."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.errors import before_work
from tokloss_ray.mining.label_scores import PRIOR_ADJUSTED
from tokloss_ray.mining.mine import METADATA, Progress, mine, mining_folder
from tokloss_ray.mining.run import Tables
from tokloss_ray.schema import ERRORS_SCHEMA
from tokloss_ray.scoring.output import read_finished
from tokloss_ray.scoring.records import read_records
from tokloss_ray.scoring.summary import Totals, total
from tokloss_ray.storage import open_location, read_whole

TABLES = (
    "confusion", "entities", "entity_error_counts", "entity_errors", "entity_issues", "inconsistent", "label_issues",
    "lengths", "loss_distribution", "malformed_tags", "sequences", "tags", "tokens", "words",
)  # fmt: skip
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
    run: dict[str, Any]
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
        records = read_records(output, run["fingerprint"][:6])
        totals = total(records.values())
        found, about = _read_tables(output)
        bad_rows = _read_bad_rows(output, records.values())
    rank = rank or about.get("rank") or PRIOR_ADJUSTED
    scheme = scheme or about.get("scheme")
    tables = found if not where and _fits(found, about, rank, scheme, totals) else None

    def made(columns: Sequence[str], moved: Progress | None) -> Tables:
        return mine(
            output, by=columns, where=where, scheme=scheme, rank=rank, partial=partial, write=False, address=address,
            progress=moved,
        )  # fmt: skip

    if tables is None:
        tables = made((), progress)
    slices = {name: made(by, progress)[name] for name in ("tags", "entities")} if by else {}
    return ReportData(output, run, totals, finished, tables, slices, tuple(by), tuple(where), rank, scheme, bad_rows)


def _read_tables(output: str) -> tuple[Tables, dict[str, Any]]:
    """The tables of OUTPUT/mining and how they were made; none at all where one is missing or is not ours."""
    fs, root = open_location(mining_folder(output))
    tables: Tables = {}
    abouts: list[dict[str, Any]] = []
    for name in TABLES:
        try:
            tables[name] = pq.read_table(pa.BufferReader(read_whole(fs, f"{root}/{name}.parquet")))
            abouts.append(json.loads(tables[name].schema.metadata[METADATA]))
        except (FileNotFoundError, NotADirectoryError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
            return {}, abouts[0] if abouts else {}
    return (tables, abouts[0]) if all(about == abouts[0] for about in abouts) else ({}, abouts[0])


def _fits(tables: Tables, about: dict[str, Any], rank: str, scheme: str | None, totals: Totals) -> bool:
    """Whether tables are about the whole output as it is now."""
    whole = tables and len(about["outputs"]) == 1 and not about["by"] and not about["where"]
    same = whole and (about["rank"], about["scheme"], about["min_count"]) == (rank, scheme, 1)
    if not same or about["limit"] < _ENOUGH:
        return False
    tags = tables["tags"]
    sums = zip(*(tags.column(name).to_pylist() for name in ("tag", "count", "sum")), strict=True)
    now = {tag: of_tag for tag, of_tag in totals.loss_by_tag.items() if of_tag[0]}
    then = {tag: (count, loss) for tag, count, loss in sums if count}
    return now.keys() == then.keys() and all(
        now[tag][0] == then[tag][0] and math.isclose(now[tag][1], then[tag][1], rel_tol=1e-5, abs_tol=1e-5)
        for tag in now
    )


def _read_bad_rows(output: str, records: Any) -> pa.Table:
    """The first rows of errors/, a few for each reason."""
    fs, root = open_location(output)
    kept: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    wanted = {reason for record in records for reason in record["errors"]}
    for record in sorted(records, key=lambda r: (r["unit"], r["index"])):
        if not record.get("errors_file") or all(seen.get(reason, 0) >= _BAD_ROWS for reason in wanted):
            continue
        file = pa.BufferReader(read_whole(fs, f"{root}/{record['errors_file']['path']}"))
        for row in pq.read_table(file, schema=ERRORS_SCHEMA).to_pylist():
            if seen.get(row["reason"], 0) < _BAD_ROWS:
                seen[row["reason"]] = seen.get(row["reason"], 0) + 1
                kept.append(row)
    kept.sort(key=lambda row: row["reason"])
    return pa.Table.from_pylist(kept, ERRORS_SCHEMA)
