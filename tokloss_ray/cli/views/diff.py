"""What `tokloss diff` prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokloss_ray.mining.diff.compare import Diff
from tokloss_ray.mining.diff.counts import OUTCOMES
from tokloss_ray.mining.tables.grouping import rank_in_slice
from tokloss_ray.text import visible

_MOST = 50  # lines of a table, however many slices there are

_TITLES = {
    "types": "By entity type (annotated entities found only by B: fixed; only by A: broken)",
    "tags": "By tag, where B loses most",
    "words": "By word, where B loses most",
    "sequences": "Sentences where B is worse",
    "regressions": "Words where B is worse",
    "agreement": "Words without a label that A and B tag differently",
}
_SHOWN = {
    "types": ("type", "support", "fixed", "broken", "f1_a", "f1_b", "difference"),
    "tags": ("tag", "count", "fixed", "broken", "mean_loss_a", "mean_loss_b"),
    "words": ("word", "count", "fixed", "broken", "mean_loss_a", "mean_loss_b"),
    "sequences": ("example_id", "words", "fixed", "broken", "total_loss_a", "total_loss_b"),
    "regressions": ("example_id", "word", "label", "predicted_a", "predicted_b", "loss_a", "loss_b"),
    "agreement": ("predicted_a", "predicted_b", "count"),
}


def print_diff(
    console: Console, found: Diff, a: str, b: str, folder: str, by: Sequence[str], level: float, show: int
) -> None:
    """The summary in full, the first `show` rows of the other tables, and where they are."""
    matched = found.matched
    words = f"A is {a}, B is {b}: {matched.rows:,} rows and {matched.words:,} words in both."
    alone = [
        f"{count:,} {what} only in {side}"
        for side, figures in (
            ("A", (matched.only_a, matched.words_only_a)),
            ("B", (matched.only_b, matched.words_only_b)),
        )
        for what, count in zip(("rows", "words"), figures, strict=True)
        if count
    ]
    console.print(Text(visible(words + (f" Left out: {', '.join(alone)}." if alone else ""))))
    console.print()
    slices = [*by]
    if found.tables["summary"].num_rows:
        console.print(_summary(found.tables["summary"].slice(0, _MOST), slices, level))
        console.print()
        console.print(_plain(found.tables["outcomes"].slice(0, _MOST), [*slices, "outcome", "words", "share"]))
    if found.tables["agreement"].num_rows:
        console.print(Text(_agreement(found.tables["agreement"])))
    for name, columns in _SHOWN.items():
        table = found.tables[name]
        if name == "agreement":
            table = table.filter(pc.not_equal(table.column("predicted_a"), table.column("predicted_b")))
        if show and table.num_rows:
            console.print()
            console.print(Text(_TITLES[name], style="bold"))
            first = table.filter(pa.array(rank_in_slice(table, slices) < show)) if by else table.slice(0, show)
            console.print(_plain(first.slice(0, _MOST), [*slices, *columns]))
    console.print()
    console.print(Text(f"The tables are in {visible(folder)}. To see a sentence with B's predictions:"))
    ids = found.tables["sequences"].column("example_id").slice(0, 1).to_pylist()
    name = shlex.quote(visible(ids[0])) if ids else "ID"
    console.print(Text(f"  tokloss show {visible(shlex.quote(b))} --id {name}"), soft_wrap=True)


def _agreement(table: pa.Table) -> str:
    """How many of the words without a label both models tag alike."""
    same = table.filter(pc.equal(table.column("predicted_a"), table.column("predicted_b")))
    alike, words = (pc.sum(of.column("count")).as_py() or 0 for of in (same, table))
    return f"{alike:,} of {words:,} words without a label are tagged alike ({alike / words:.2%})"


def _summary(table: pa.Table, slices: list[str], level: float) -> Table:
    view = _columns([*slices, "metric", "A", "B", "B - A", f"{100 * level:g} % interval", "p"], len(slices) + 1)
    for row in table.to_pylist():
        interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
        figures = (f"{row['a']:.4f}", f"{row['b']:.4f}", f"{row['difference']:+.4f}", interval, f"{row['p_value']:.4f}")
        keys = [_cell(row[name]) for name in slices]
        view.add_row(*map(Text, (*keys, row["metric"].replace("_", " "), *figures)))
    return view


def _plain(table: pa.Table, columns: Sequence[str]) -> Table:
    text = sum(pa.types.is_string(table.schema.field(name).type) for name in columns)
    view = _columns([name.replace("_", " ") for name in columns], text)
    for row in table.to_pylist():
        view.add_row(*(Text(_cell(row[name])) for name in columns))
    return view


def _columns(names: Sequence[str], left: int) -> Table:
    view = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(names):
        view.add_column(
            Text(visible(name)),
            justify="left" if i < left else "right",
            overflow="ellipsis",
            no_wrap=True,
            max_width=30,
        )
    return view


def _cell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return value.replace("_", " ") if value in OUTCOMES else visible(value)
