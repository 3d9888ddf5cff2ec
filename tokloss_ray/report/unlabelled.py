"""The part of the report about words that have no label: how sure the model is of them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.tables.certainty import EXPECTED
from tokloss_ray.report.data import ReportData
from tokloss_ray.report.grids import FEW, NONE, ROWS, WORST, Grid, count, grid, number, percent, tag_counts
from tokloss_ray.report.sentences import Worst, shorten, uncertain_sentence


def about_unlabelled(data: ReportData, unlabelled: int) -> dict[str, Any]:
    """What there is to say of words without a label."""
    tables = data.tables
    expected = pc.sum(
        tables["certainty"].filter(pc.invert(tables["certainty"].column("labelled"))).column(EXPECTED)
    ).as_py()
    rows = tables["uncertain_sequences"].slice(0, WORST).to_pylist()
    sentences = [
        Worst(
            shorten(row["example_id"] or NONE, 60),
            f"{number(row[EXPECTED], 2)} errors expected in {row['num_words']:,} words without a label",
            uncertain_sentence(row),
        )
        for row in rows
    ]
    return {
        "sure": percent(1 - expected / unlabelled),
        "expected": f"{expected:,.0f}",
        "tags": certainty_grid(tables),
        "words": uncertain_words_grid(tables),
        "places": uncertain_places_grid(tables),
        "sentences": sentences,
    }


def certainty_grid(tables: dict[str, pa.Table]) -> Grid:
    """How sure the model is, by predicted tag."""
    return grid(
        "certainty", "Predicted tags, of words without a label and of others", tables["certainty"],
        {
            "predicted": (False, lambda row: row["predicted"]),
            "labelled": (False, lambda row: "yes" if row["labelled"] else "no"),
            "words": (True, lambda row: count(row["count"])),
            "mean probability, %": (True, lambda row: percent(row["mean_prob"])),
            "expected errors": (True, lambda row: number(row["expected_errors"], 1)),
            "errors": (True, lambda row: count(row["errors"])),
            "mean entropy": (True, lambda row: number(row["mean_entropy"])),
        },
        ROWS,
    )  # fmt: skip


def uncertain_words_grid(tables: dict[str, pa.Table]) -> Grid:
    """Words without a label, by how many errors are expected in them."""
    return grid(
        "uncertain-words", "Words without a label, most expected errors first", tables["uncertain_words"],
        {
            "word": (False, lambda row: shorten(row["word"])),
            "times": (True, lambda row: count(row["count"])),
            "expected errors": (True, lambda row: number(row["expected_errors"], 2)),
            "mean probability, %": (True, lambda row: percent(row["mean_prob"])),
            "mean entropy": (True, lambda row: number(row["mean_entropy"])),
            "predicted as": (False, lambda row: tag_counts(row["predicted"])),
        },
        ROWS,
    )  # fmt: skip


def uncertain_places_grid(tables: dict[str, pa.Table]) -> Grid:
    """The words without a label of which the model is least sure."""
    return grid(
        "uncertain-places", "Where the model is least sure", tables["uncertain_places"],
        {
            "word": (False, lambda row: shorten(row["word"])),
            "predicted": (False, lambda row: row["predicted"]),
            "probability, %": (True, lambda row: percent(row["predicted_prob"])),
            "or": (False, lambda row: row["second_label"] or NONE),
            "its probability, %": (True, lambda row: percent(row["second_prob"])),
            "see": (False, lambda row: shorten(row["example_id"] or NONE, 60)),
        },
        FEW,
    )  # fmt: skip
