"""Sequences token by token, as `tokloss show` prints them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokloss_ray import schema
from tokloss_ray.output.search import EXPECTED, Issues, Notes
from tokloss_ray.output.windows import PLACES, WINDOWS
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
        words = _unlabelled(row)
        expected = f"  {row[EXPECTED]:.2f} errors expected in {len(words):,} words without a label" if words else ""
        loss = f"  total loss {row[schema.TOTAL_LOSS]:.2f}{mean}" if mean or not words else ""
        header.append(loss + expected, style="not bold")
        console.print(header)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("token", "label", "predicted", "prob", "loss", *(["suggested"] if issues else [])):
            table.add_column(name, justify="right" if name in ("prob", "loss") else "left", overflow="fold")
        keys = [
            (row[schema.SOURCE], row[schema.SOURCE_ROW], w) for w in dict.fromkeys(row[WINDOWS] or [row[schema.WINDOW]])
        ]
        at = {place: i for i, place in enumerate(zip(row[WINDOWS], row[PLACES], strict=True))} if row[WINDOWS] else None
        suggested = {
            i if at is None else at[key[2], i]: tag
            for key in keys
            for i, tag in (issues or {}).get(key, {}).items()
            if at is None or (key[2], i) in at
        }
        columns = (schema.INPUT_TOKENS, schema.LABELS, schema.PREDICTED_LABEL, schema.PREDICTED_PROB, schema.LOSS)
        tokens = zip(*(row[name] for name in columns), strict=True)
        for i, (token, label, predicted, prob, loss) in enumerate(tokens):
            ignored = label == IGN and i not in words
            style = "dim" if ignored else "" if label in (predicted, IGN) else "bold red"
            marked = (mark is not None and token == mark) or i in suggested
            shown = Text(visible(token) if token is not None else "?", style="reverse" if marked else "")
            figures = ("", "") if ignored else (f"{prob:.2f}", "" if label == IGN else f"{loss:.2f}")
            cells: list[Text | str] = [
                shown,
                *(Text(visible(tag)) for tag in (label, "" if ignored else predicted)),
                *figures,
            ]
            table.add_row(*cells, *([Text(visible(suggested.get(i, "")))] if issues else []), style=style)
        console.print(table)
        for key in keys:
            for note in (notes or {}).get(key, ()):
                console.print(Text(visible(note), style="dim"))
        console.print()


def _unlabelled(row: dict[str, Any]) -> set[int]:
    """Positions of the first tokens of words without a label."""
    words: dict[int, list[int]] = {}
    for i, word in enumerate(row[schema.WORD_IDS] or ()):
        if word is not None:
            words.setdefault(word, []).append(i)
    return {at[0] for at in words.values() if all(row[schema.LABELS][i] == IGN for i in at)}
