"""How figures and names are put on the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from tokloss_ray.schema import EQUAL_LENGTH, PACKED
from tokloss_ray.text import visible


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def figure_table() -> Table:
    """A table of names and figures, without lines."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    return table


def micro_batches(tokens: int, batching: str | None) -> str:
    """What is said of micro-batches: how large they are, and how they are formed if not as usual."""
    if batching == PACKED:
        return f"up to {tokens:,} tokens, put end to end without padding"
    equally_long = ", equally long sequences only: padding changes this model's results"
    return f"up to {tokens:,} padded tokens" + (equally_long if batching == EQUAL_LENGTH else "")


def repeated(count: int) -> str:
    """What is said of ids that several rows have."""
    return f"[yellow]{count:,}[/]  (rows that share their example_id with another row; join by source and source_row)"


def safe(text: str) -> str:
    """Text from data or paths: brackets in it are no markup, and control characters are shown, not obeyed."""
    return escape(visible(text))
