"""The top of each mining table on the terminal, and progress while they are made."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tokloss_ray.mining.tables import listing
from tokloss_ray.mining.tables.certainty import labelled_and_not
from tokloss_ray.mining.tables.table import Table as MiningTable
from tokloss_ray.text import visible

_LINE_SECONDS = 5.0
_SLICES_SHOWN = 3
_WIDEST = 30


class MiningProgress:
    """A bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("mining"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.last = time.monotonic()

    def __enter__(self) -> MiningProgress:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def moved(self, done: int, tokens: int) -> None:
        """So many tokens are done, of so many."""
        if self.console.is_terminal:
            if self.task is None:
                self.task = self.bar.add_task("mining", total=tokens)
            self.bar.update(self.task, completed=done)
        elif time.monotonic() - self.last > _LINE_SECONDS and done < tokens:
            self.last = time.monotonic()
            self.console.print(f"mining: {done:,} of {tokens:,} tokens", highlight=False)


def print_tables(
    console: Console, tables: dict[str, pa.Table], show: int, by: Sequence[str], output: str, folder: str
) -> None:
    """The first `show` rows of each table that has words to tell of (of each of the first slices), where the files are,
    and what to do next."""
    labelled, unlabelled = labelled_and_not(tables)
    there = {"all": labelled + unlabelled, "labelled": labelled, "unlabelled": unlabelled}
    if show:
        for table in listing.TABLES:
            # Of labelled words alone the tables of losses say more.
            if table.name in tables and there[table.of] and (unlabelled or table.of == "labelled"):
                _print_one(console, table, tables[table.name], show, by)
    if unlabelled and not labelled:
        console.print(
            Text(f"None of {unlabelled:,} words has a label: tables that need labels are empty, and left out.")
        )
    elif unlabelled:
        console.print(
            Text(
                f"{unlabelled:,} of {labelled + unlabelled:,} words have no label: the tables of uncertain words and "
                f"sequences are of these, those of losses, errors and issues of the others."
            )
        )
    worst = ("the worst sequences", "--worst 3") if labelled else ("the least certain sequences", "--rank certainty")
    console.print(
        Text.assemble(f"{len(tables)} tables are in ", (visible(folder), "bold"), f". Next, {worst[0]} in full:")
    )
    console.print(Text(f"  tokloss show {visible(shlex.quote(output))} {worst[1]}"))


def _print_one(console: Console, listed: MiningTable, table: pa.Table, show: int, by: Sequence[str]) -> None:
    table = listed.view(table, by) if listed.view else table
    shown = [c for c in listed.shown if c not in by]
    slices = table.select(list(by)).group_by(list(by), use_threads=False).aggregate([]).to_pylist() if by else [{}]
    for values in slices[:_SLICES_SHOWN]:
        rows = table
        for column, value in values.items():
            at = pc.is_null(rows.column(column)) if value is None else pc.equal(rows.column(column), value)
            rows = rows.filter(pc.fill_null(at, False))
        first = rows.slice(0, show)
        where = "".join(f", {visible(f'{column} {value}')}" for column, value in values.items())
        more = f"  ({first.num_rows:,} of {rows.num_rows:,})" if first.num_rows < rows.num_rows else ""
        console.print(Text.assemble((listed.title + where, "bold"), (more, "dim")))
        console.print(_view(first, shown))
        console.print()
    if len(slices) > _SLICES_SHOWN:
        console.print(Text(f"... and {len(slices) - _SLICES_SHOWN:,} more slices in {listed.name}.parquet\n", "dim"))


def _view(rows: pa.Table, columns: Sequence[str]) -> Table:
    lists = {c for c in columns if pa.types.is_nested(rows.schema.field(c).type) or c in ("text", "why", "summary")}
    view = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=bool(lists))
    for column in columns:
        kind = rows.schema.field(column).type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        view.add_column(
            column.replace("_", " "),
            justify="right" if number else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if column in lists else None,  # the room that the others leave
            max_width=None if column in lists else _WIDEST,
        )
    for row in rows.select(list(columns)).to_pylist():
        view.add_row(*(Text(_cell(row[column])) for column in columns))
    return view


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}"
    if isinstance(value, list):
        return _listed(value)
    return visible(str(value))


def _listed(values: list[Any]) -> str:
    """Tags with their counts, or words, as far as a line goes."""
    if values and isinstance(values[0], dict):
        return ", ".join(f"{visible(item['tag'])} {item['count']:,}" for item in values[:4])
    return visible(" ".join(str(value) for value in values[:40]))
