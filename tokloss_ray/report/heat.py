"""The confusion matrix of the report page: a table with shaded cells, which a screen reader reads like any other."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.report.grids import percent

_MOST = 16  # tags


class Heat(NamedTuple):
    """A heat map: each row is its label, and for each column (count, share, text)."""

    name: str
    caption: str
    labels: list[str]
    rows: list[tuple[str, list[tuple[int, float, str]]]]
    strongest: float


def heat(tables: dict[str, pa.Table], level: str, name: str) -> Heat | None:
    """The confusion matrix of the tags or types that are confused most; None for fewer than two."""
    cells = tables["confusion"].filter(pc.equal(tables["confusion"].column("level"), level)).to_pylist()
    errors: dict[str, int] = {}
    for row in cells:
        for side in ("label", "predicted"):
            errors[row[side]] = errors.get(row[side], 0) + (row["count"] if row["label"] != row["predicted"] else 0)
    if len(errors) < 2:
        return None
    chosen = sorted(errors, key=lambda tag: -errors[tag])[:_MOST]
    kept = [tag for tag in _in_order(cells) if tag in set(chosen)]
    value = {(row["label"], row["predicted"]): (row["count"], row["share"]) for row in cells}
    rows, strongest = [], 0.0
    for label in kept:
        line = []
        for predicted in kept:
            times, share = value.get((label, predicted), (0, 0.0))
            strongest = max(strongest, share if label != predicted else 0.0)
            text = f"label {label}, predicted {predicted}: {times:,} times, {percent(share, 2)} % of the label"
            line.append((times, share, text))
        rows.append((label, line))
    what = "entity type" if level == "type" else "tag"
    caption = f"What each {what} is predicted as, in percent of its labels"
    if len(errors) > len(kept):
        caption += f" ({len(kept)} of {len(errors):,}: those with the most errors)"
    return Heat(name, caption, kept, rows, strongest or 1.0)


def _in_order(cells: list[dict[str, Any]]) -> list[str]:
    """Names in the order of the matrix: its rows stand in it, and what is only predicted follows."""
    return list(dict.fromkeys([*(row["label"] for row in cells), *(row["predicted"] for row in cells)]))
