"""Sequences token by token, for `tokloss show`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.schema import IGN
from tokloss_ray.scoring.output import is_finished, read_run
from tokloss_ray.scoring.ragged import list_lengths, one_array
from tokloss_ray.storage import exists, open_location

_SHOWN = [
    schema.EXAMPLE_ID,
    schema.WINDOW,
    schema.INPUT_TOKENS,
    schema.LABELS,
    schema.PREDICTED_LABEL,
    schema.PREDICTED_PROB,
    schema.LOSS,
    schema.TOTAL_LOSS,
    schema.MEAN_LOSS,
]


def open_scores(output: str) -> pads.Dataset:
    """The rows of scores/ as an Arrow dataset.

    Raises:
        Refused: not an output, or nothing is committed yet.
    """
    if read_run(output) is None:
        raise Refused(f"{output} is not an output of tokloss score")
    fs, root = open_location(output)
    if not exists(fs, f"{root}/scores"):
        state = "has no scored rows" if is_finished(output) else "has no committed shard yet"
        raise Refused(f"{output} {state}")
    return pads.dataset(
        f"{root}/scores", filesystem=fs, format="parquet", partitioning="hive", exclude_invalid_files=False
    )


def worst_sequences(scores: pads.Dataset, count: int) -> pa.Table:
    """The `count` sequences with the highest total loss, highest first."""
    return _top(scores, None, count)


def sequences_with_token(scores: pads.Dataset, token: str, count: int) -> tuple[pa.Table, int]:
    """Sequences with a token of that string, or a word, worst first; and how many there are in all."""
    best: list[pa.Table] = []
    found = 0
    for batch in scores.to_batches(columns=[*_SHOWN, schema.WORDS]):
        table = pa.Table.from_batches([batch])
        has = _contains(table.column(schema.INPUT_TOKENS), token) | _contains(table.column(schema.WORDS), token)
        table = table.filter(pa.array(has)).select(_SHOWN)
        found += table.num_rows
        best = [_sorted(pa.concat_tables([*best, table])).slice(0, count)]
    return best[0] if best else pa.table({}), found


def sequences_by_id(scores: pads.Dataset, example_id: str) -> pa.Table:
    """The sequence with an id, or the windows it became, in order."""
    table = scores.to_table(columns=_SHOWN, filter=pc.field(schema.EXAMPLE_ID) == example_id)
    return table.sort_by(schema.WINDOW)


def _top(scores: pads.Dataset, where: pc.Expression | None, count: int) -> pa.Table:
    best: list[pa.Table] = []
    for batch in scores.to_batches(columns=_SHOWN, filter=where):
        best = [_sorted(pa.concat_tables([*best, pa.Table.from_batches([batch])])).slice(0, count)]
    return best[0] if best else pa.table({})


def _sorted(table: pa.Table) -> pa.Table:
    keys = [(schema.TOTAL_LOSS, "descending"), (schema.EXAMPLE_ID, "ascending"), (schema.WINDOW, "ascending")]
    return table.sort_by(keys)


def _contains(column: pa.ChunkedArray, text: str) -> np.ndarray:

    array = one_array(column)
    hits = pc.fill_null(pc.equal(array.flatten(), text), False).to_numpy(zero_copy_only=False)
    result = np.zeros(len(array), dtype=bool)
    result[np.repeat(np.arange(len(array)), list_lengths(array))[hits]] = True
    return result


def print_sequences(console: Console, sequences: pa.Table, mark: str | None = None) -> None:
    """Each sequence as a table of its tokens; where label and prediction differ, both stand out."""
    for row in sequences.to_pylist():
        window = f", window {row[schema.WINDOW]}" if row[schema.WINDOW] else ""
        mean = "" if row[schema.MEAN_LOSS] is None else f", mean {row[schema.MEAN_LOSS]:.2f}"
        header = Text(f"{row[schema.EXAMPLE_ID]}{window}", style="bold")
        header.append(f"  total loss {row[schema.TOTAL_LOSS]:.2f}{mean}", style="not bold")
        console.print(header)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("token", "label", "predicted", "prob", "loss"):
            table.add_column(name, justify="right" if name in ("prob", "loss") else "left", overflow="fold")
        columns = (schema.INPUT_TOKENS, schema.LABELS, schema.PREDICTED_LABEL, schema.PREDICTED_PROB, schema.LOSS)
        for token, label, predicted, prob, loss in zip(*(row[name] for name in columns), strict=True):
            ignored = label == IGN
            style = "dim" if ignored else "" if label == predicted else "bold red"
            shown = Text(
                token if token is not None else "?", style="reverse" if mark is not None and token == mark else ""
            )
            figures = ("", "") if ignored else (f"{prob:.2f}", f"{loss:.2f}")
            table.add_row(shown, Text(label), Text("" if ignored else predicted), *figures, style=style)
        console.print(table)
        console.print()
