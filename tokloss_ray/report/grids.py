"""Tables of the report page: mining tables as columns and rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.report.charts import high_shares
from tokloss_ray.report.sentences import shorten

ROWS = 500
"""Rows of the tables by tag, word and token."""
FEW = 200
"""Rows of the other ranked tables."""
WORST = 30
"""Sentences that are shown whole."""
NONE = "–"
"""Where there is no value. The page's script sorts it last."""

ERROR_NAMES = {
    "missed": "missed",
    "spurious": "spurious",
    "wrong_type": "wrong type",
    "wrong_boundary": "wrong boundary",
    "wrong_both": "wrong type and boundary",
}
PROPERTIES = {
    "sequence_length": "Words in the sentence",
    "position": "Position of the word in its row",
    "subtokens": "Tokens in the word",
    "word_frequency": "Occurrences of the word in the corpus",
}


class Grid(NamedTuple):
    """A table of the page. columns: title and whether it holds numbers. The first cell of a row is its heading.

    total: rows there are, of which these are the first.
    """

    name: str
    caption: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    total: int


def count(value: int | None) -> str:
    """An integer."""
    return NONE if value is None else f"{value:,}"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with decimals; none for what is not there or not a number."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share, as a percentage without its sign."""
    return number(None if value is None else 100 * value, digits)


def grid(
    name: str,
    caption: str,
    table: pa.Table,
    columns: dict[str, tuple[bool, Callable[[dict[str, Any]], str]]],
    most: int,
) -> Grid:
    """The first `most` rows of a table. columns: title -> whether it holds numbers, and its text made of a row."""
    rows = [[make(row) for _, make in columns.values()] for row in table.slice(0, most).to_pylist()]
    return Grid(name, caption, [(title, numeric) for title, (numeric, _) in columns.items()], rows, table.num_rows)


def tags_grid(tables: dict[str, pa.Table]) -> Grid:
    """By tag."""
    high = high_shares(tables["loss_distribution"])
    return grid(
        "tags", "Tags, highest mean loss first", tables["tags"],
        {
            "tag": (False, lambda row: row["tag"]),
            "labelled": (True, lambda row: count(row["count"])),
            "predicted": (True, lambda row: count(row["predicted"])),
            "errors": (True, lambda row: count(row["errors"])),
            "mean loss": (True, lambda row: number(row["mean"])),
            "loss ≥ 1, %": (True, lambda row: percent(high.get(row["tag"]))),
            "precision, %": (True, lambda row: percent(row["precision"])),
            "recall, %": (True, lambda row: percent(row["recall"])),
            "F1, %": (True, lambda row: percent(row["f1"])),
        },
        ROWS,
    )  # fmt: skip


def tokens_grid(tables: dict[str, pa.Table], name: str) -> Grid:
    """By word or token: `name` is the table, words or tokens."""
    key = name.removesuffix("s")
    columns: dict[str, tuple[bool, Callable[[dict[str, Any]], str]]] = {
        key: (False, lambda row: shorten(row[key]) if row[key] is not None else NONE),
        "labelled": (True, lambda row: count(row["count"])),
        "errors": (True, lambda row: count(row["errors"])),
        "errors, %": (True, lambda row: percent(row["errors"] / row["count"])),
        "mean loss": (True, lambda row: number(row["mean"])),
        "total loss": (True, lambda row: number(row["sum"], 1)),
    }
    if name == "words":
        columns["labelled as"] = (False, lambda row: tag_counts(row["labelled"]))
        columns["predicted as"] = (False, lambda row: tag_counts(row["predicted"]))
    else:
        columns["highest loss"] = (True, lambda row: number(row["max"], 2))
    return grid(name, f"{name.capitalize()}, highest total loss first", tables[name], columns, ROWS)


def inconsistent_grid(tables: dict[str, pa.Table]) -> Grid:
    """Words labelled in different ways."""
    return grid(
        "inconsistent", "Words labelled inconsistently", tables["inconsistent"],
        {
            "word": (False, lambda row: shorten(row["word"])),
            "labelled": (True, lambda row: count(row["count"])),
            "mostly": (False, lambda row: row["majority"]),
            "otherwise": (True, lambda row: count(row["minority"])),
            "otherwise, %": (True, lambda row: percent(row["minority_share"])),
            "labelled as": (False, lambda row: tag_counts(row["labelled"])),
            "see": (False, lambda row: shorten(row["labelled"][-1]["example_id"] or NONE, 60)),
        },
        FEW,
    )  # fmt: skip


def label_issues_grid(tables: dict[str, pa.Table]) -> Grid:
    """Words whose label is probably wrong."""
    return grid(
        "label-issues", "Words, most suspicious label first", tables["label_issues"],
        {
            "word": (False, lambda row: shorten(row["word"] or NONE)),
            "label": (False, lambda row: row["label"]),
            "suggested": (False, lambda row: row["suggested_label"] or NONE),
            "score": (True, lambda row: number(row["score"], 2)),
            "loss": (True, lambda row: number(row["loss"], 2)),
            "why": (False, lambda row: row["why"] or NONE),
            "sentence": (False, lambda row: shorten(row["example_id"] or NONE, 60)),
        },
        FEW,
    )  # fmt: skip


def issue_groups_grid(tables: dict[str, pa.Table]) -> Grid:
    """Label issues of the same words with the same labels and suggestion."""
    return grid(
        "label-issue-groups", "The same words, labels and suggestion", tables["label_issue_groups"],
        {
            "text": (False, lambda row: shorten(row["text"])),
            "labels": (False, lambda row: shorten(" ".join(row["label_tags"]))),
            "suggested": (False, lambda row: shorten(" ".join(row["suggested_tags"]))),
            "times": (True, lambda row: count(row["count"])),
            "highest score": (True, lambda row: number(row["score"], 2)),
            "first sentence": (False, lambda row: shorten(row["example_id"] or NONE, 60)),
        },
        FEW,
    )  # fmt: skip


def entity_errors_grid(tables: dict[str, pa.Table]) -> Grid:
    """Wrong entities."""
    return grid(
        "entity-errors", "Wrong entities, highest loss first", tables["entity_errors"],
        {
            "text": (False, lambda row: shorten(row["text"])),
            "error": (False, lambda row: ERROR_NAMES[row["error"]]),
            "labelled": (False, lambda row: row["label_type"] or NONE),
            "predicted": (False, lambda row: row["predicted_type"] or NONE),
            "loss": (True, lambda row: number(row["loss"], 2)),
            "sentence": (False, lambda row: shorten(row["example_id"] or NONE, 60)),
        },
        FEW,
    )  # fmt: skip


def entities_grid(tables: dict[str, pa.Table]) -> Grid:
    """Scores and errors by entity type."""
    strict = {
        (row["level"], row["type"]): row["f1"] for row in tables["entities"].to_pylist() if row["mode"] == "strict"
    }
    errors: dict[tuple[str | None, str], int] = {}
    for row in tables["entity_error_counts"].to_pylist():
        for of in (row["label_type"] or row["predicted_type"], None):  # None: of all types
            key = (of, row["error"])
            errors[key] = errors.get(key, 0) + row["count"]
    shown = tables["entities"].filter(pc.equal(tables["entities"].column("mode"), "default"))
    averages = {"micro": "all", "macro": "mean over types", "weighted": "weighted mean"}

    def wrong(error: str) -> tuple[bool, Callable[[dict[str, Any]], str]]:
        return (
            True,
            lambda row: NONE if row["level"] in ("macro", "weighted") else count(errors.get((row["type"], error), 0)),
        )

    return grid(
        "entities", "Entities by type, exact match", shown,
        {
            "type": (False, lambda row: averages.get(row["level"]) or row["type"]),
            "annotated": (True, lambda row: count(row["support"])),
            "predicted": (True, lambda row: count(row["predicted"])),
            "precision, %": (True, lambda row: percent(row["precision"])),
            "recall, %": (True, lambda row: percent(row["recall"])),
            "F1, %": (True, lambda row: percent(row["f1"])),
            "strict F1, %": (True, lambda row: percent(strict.get((row["level"], row["type"])))),
        }
        | {name: wrong(error) for error, name in ERROR_NAMES.items()},
        ROWS,
    )  # fmt: skip


def malformed_grid(tables: dict[str, pa.Table]) -> Grid:
    """Tags that may not stand where they do."""
    sides = {"label": "annotation", "predicted": "prediction"}
    return grid(
        "malformed", "Malformed tag sequences", tables["malformed_tags"],
        {
            "tag": (False, lambda row: row["tag"]),
            "in the": (False, lambda row: sides[row["side"]]),
            "what": (False, lambda row: row["kind"].replace("_", " ")),
            "words": (True, lambda row: count(row["count"])),
            "sentences": (True, lambda row: count(row["sequences"])),
        },
        FEW,
    )  # fmt: skip


def pairs_grid(tables: dict[str, pa.Table]) -> Grid:
    """Confused tags, most frequent first."""
    wrong = confused(tables, "tag").sort_by(
        [("count", "descending"), ("label", "ascending"), ("predicted", "ascending")]
    )
    return grid(
        "pairs", "Confused tags, most frequent first", wrong,
        {
            "label": (False, lambda row: row["label"]),
            "predicted": (False, lambda row: row["predicted"]),
            "words": (True, lambda row: count(row["count"])),
            "of the label, %": (True, lambda row: percent(row["share"])),
        },
        FEW,
    )  # fmt: skip


def slices_grid(slices: dict[str, pa.Table], by: Sequence[str]) -> Grid:
    """Slices side by side: tokens, errors, mean loss, F1."""
    sums = (
        slices["tags"]
        .group_by([*by], use_threads=False)
        .aggregate([("count", "sum"), ("errors", "sum"), ("sum", "sum")])
    )
    micro = {
        tuple(row[name] for name in by): row["f1"]
        for row in slices["entities"].to_pylist()
        if (row["mode"], row["level"]) == ("default", "micro")
    }
    columns: dict[str, tuple[bool, Callable[[dict[str, Any]], str]]] = {}
    for name in by:
        columns[name] = (False, lambda row, name=name: NONE if row[name] is None else shorten(row[name]))  # type: ignore[misc]
    columns |= {
        "labelled": (True, lambda row: count(row["count_sum"])),
        "errors": (True, lambda row: count(row["errors_sum"])),
        "errors, %": (True, lambda row: percent(row["errors_sum"] / max(row["count_sum"], 1))),
        "mean loss": (True, lambda row: number(row["sum_sum"] / max(row["count_sum"], 1))),
    }
    if micro:
        columns["entity F1, %"] = (True, lambda row: percent(micro.get(tuple(row[name] for name in by))))
    ordered = sums.sort_by([(name, "ascending") for name in by])
    return grid("slices", "Slices side by side", ordered, columns, 1000)


def confused(tables: dict[str, pa.Table], level: str) -> pa.Table:
    """Cells of the confusion matrix off its diagonal."""
    table = tables["confusion"]
    other = pc.not_equal(table.column("label"), table.column("predicted"))
    return table.filter(pc.and_(pc.equal(table.column("level"), level), other))


def tag_counts(values: list[dict[str, Any]]) -> str:
    """Tags with their counts, the most frequent ones."""
    more = ", …" if len(values) > 5 else ""
    return ", ".join(f"{value['tag']} {value['count']:,}" for value in values[:5]) + more
