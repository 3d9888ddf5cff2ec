"""The tables that `tokloss mine` wrote, read again: only where they are about the output as it is now.

A table may be of several outputs, which may be of files of the same names. Its metadata say what each of them held when
it was mined; its rows say which one they are of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused
from tokloss_ray.mining.write import METADATA
from tokloss_ray.output.opened import OUTPUT, Contents, Scores, open_outputs
from tokloss_ray.output.score_files import cause_of
from tokloss_ray.storage.files import open_location, read_whole

_OPTIONS = {"by", "limit", "where"}


def mining_folder(output: str) -> str:
    """Where the tables of an output are."""
    return f"{output.rstrip('/')}/mining"


def provenance_of(scores: Scores, options: dict[str, Any]) -> dict[str, Any]:
    """What tables say about themselves: the options they were made with, and what the outputs held."""
    return {"outputs": list(scores.outputs), **options, "runs": [run._asdict() for run in scores.runs]}


def read_provenance(table: pa.Table) -> dict[str, Any]:
    """How a table was made; empty where it does not say so."""
    try:
        provenance: dict[str, Any] = json.loads((table.schema.metadata or {})[METADATA])
        provenance["runs"] = [Contents(**run) for run in provenance["runs"]]
    except (KeyError, TypeError, ValueError):
        return {}
    return provenance if provenance.keys() >= _OPTIONS else {}


def name_in(provenance: dict[str, Any], run: Contents) -> str | None:
    """The name by which a table calls a run; None if it is not about the run as it is now.

    The run is recognised by what it holds, so that relative names, other working directories and moved folders do not
    matter. Names tell apart what holds the same.
    """
    same = [other.output for other in provenance.get("runs", ()) if other.equals(run)]
    given = [name for name in same if name.rstrip("/") == run.output.rstrip("/")]
    return next(iter([*given, *same]), None)


def fits(provenance: dict[str, Any], run: Contents) -> bool:
    """Whether a table is about all of one output as it is now, and of no other."""
    alone = len(provenance.get("runs", ())) == 1 and not provenance.get("by") and not provenance.get("where")
    return alone and name_in(provenance, run) is not None


class Mined(NamedTuple):
    """Rows of a ranked table; `cut`: the table ends at `--limit`, so that there may be more of what it lists."""

    rows: pa.Table
    cut: bool


def read_mined(output: str, name: str) -> Mined:
    """A ranked table of OUTPUT/mining: of its rows, those of this output.

    Raises:
        Refused: there is none, it is damaged, or it is about other outputs, or about other rows than this one has now.
    """
    run = open_outputs(output, partial=True).runs[0]
    path = f"{mining_folder(output)}/{name}.parquet"
    try:
        table = read_table(path)
    except FileNotFoundError:
        raise Refused(f"{output} has no table of {name.replace('_', ' ')}: run tokloss mine {output}") from None
    provenance = read_provenance(table)
    called = name_in(provenance, run)
    if called is None or OUTPUT not in table.column_names:
        raise Refused(f"{path} does not match {output} as it is now: run tokloss mine {output} again")
    return Mined(table.filter(pc.equal(table.column(OUTPUT), called)), _is_cut(table, provenance))


def read_table(path: str) -> pa.Table:
    """A whole table that `tokloss mine` wrote.

    Raises:
        FileNotFoundError: there is none.
        Refused: it is damaged.
    """
    fs, place = open_location(path)
    try:
        data = read_whole(fs, place)
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
            table = parquet.read()
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        raise Refused(f"cannot read {path}: {cause_of(error)}; run tokloss mine again") from error


def _is_cut(table: pa.Table, provenance: dict[str, Any]) -> bool:
    by: Sequence[str] = provenance["by"]
    if not by or not table.num_rows:
        return bool(table.num_rows >= provenance["limit"])
    counts = table.select(list(by)).group_by(list(by)).aggregate([([], "count_all")]).column("count_all")
    return bool(pc.max(counts).as_py() >= provenance["limit"])
