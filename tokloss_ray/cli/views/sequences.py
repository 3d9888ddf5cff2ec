"""Sequences token by token, as `tokloss show` prints them."""

from __future__ import annotations

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokloss_ray import schema
from tokloss_ray.output.search import Issues, Notes
from tokloss_ray.schema import IGN
from tokloss_ray.text import visible


def print_sequences(
    console: Console,
    sequences: pa.Table,
    mark: str | None = None,
    issues: Issues | None = None,
    notes: Notes | None = None,
) -> None:
    """Each sequence as a table of its tokens; where label and prediction differ, both stand out.

    mark: a token to point out. issues: adds a column with the suggested tags. notes: lines below a sequence.
    """
    for row in sequences.to_pylist():
        window = f", window {row[schema.WINDOW]}" if row[schema.WINDOW] else ""
        mean = "" if row[schema.MEAN_LOSS] is None else f", mean {row[schema.MEAN_LOSS]:.2f}"
        header = Text(f"{visible(row[schema.EXAMPLE_ID])}{window}", style="bold")
        header.append(f"  total loss {row[schema.TOTAL_LOSS]:.2f}{mean}", style="not bold")
        console.print(header)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("token", "label", "predicted", "prob", "loss", *(["suggested"] if issues else [])):
            table.add_column(name, justify="right" if name in ("prob", "loss") else "left", overflow="fold")
        key = (row[schema.SOURCE], row[schema.SOURCE_ROW], row[schema.WINDOW])
        suggested = (issues or {}).get(key, {})
        columns = (schema.INPUT_TOKENS, schema.LABELS, schema.PREDICTED_LABEL, schema.PREDICTED_PROB, schema.LOSS)
        tokens = zip(*(row[name] for name in columns), strict=True)
        for i, (token, label, predicted, prob, loss) in enumerate(tokens):
            ignored = label == IGN
            style = "dim" if ignored else "" if label == predicted else "bold red"
            marked = (mark is not None and token == mark) or i in suggested
            shown = Text(visible(token) if token is not None else "?", style="reverse" if marked else "")
            figures = ("", "") if ignored else (f"{prob:.2f}", f"{loss:.2f}")
            cells: list[Text | str] = [
                shown,
                *(Text(visible(tag)) for tag in (label, "" if ignored else predicted)),
                *figures,
            ]
            table.add_row(*cells, *([Text(visible(suggested.get(i, "")))] if issues else []), style=style)
        console.print(table)
        for note in (notes or {}).get(key, ()):
            console.print(Text(visible(note), style="dim"))
        console.print()
