"""The tables of `tokloss diff` from the sums over all words; `counts` says what is in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.diff.bootstrap import RESAMPLES, Statistic, paired_bootstrap
from tokloss_ray.mining.diff.counts import AT, BROKEN, FIGURES, FIXED, OUTCOMES, SPANS, Partial
from tokloss_ray.mining.tables.grouping import Order
from tokloss_ray.tags.schemes import TagSet

TABLES = ("summary", "outcomes", "types", "tags", "words", "regressions", "sequences", "agreement")
_NET = "_net"
_BY_PAIR: Order = [("predicted_a", "ascending"), ("predicted_b", "ascending")]


def diff_tables(
    part: Partial, tag_set: TagSet | None, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> dict[str, pa.Table]:
    """The tables of the docstring of `counts` from the partial of everything; no `words` if the partial has none."""
    tables = {
        "summary": _summary(part["sentences"], tag_set is not None, resamples, level, seed),
        "outcomes": _outcomes(part["tags"]),
        "types": _types(part["types"]),
        "tags": _sorted(by_group(part["tags"], "tag"), "tag"),
        "words": _sorted(by_group(part["words"], "word"), "word") if "words" in part else None,
        "regressions": part["regressions"],
        "sequences": part["sequences"],
        "agreement": part["agreement"].sort_by([("count", "descending"), *_BY_PAIR]),
    }
    return {name: table for name, table in tables.items() if table is not None}


def _summary(sums: np.ndarray, spans: bool, resamples: int, level: float, seed: int) -> pa.Table:
    measures = _measures(spans) if sums[:, AT["words"]].any() else {}
    pairs_of = {name: (measure("a"), measure("b")) for name, measure in measures.items()}
    total = sums.sum(axis=0)

    def difference(a: Statistic, b: Statistic) -> Statistic:
        return lambda totals: b(totals) - a(totals)

    intervals = paired_bootstrap(
        sums, {name: difference(a, b) for name, (a, b) in pairs_of.items()}, resamples, level, seed
    )
    return pa.table(
        {
            "metric": pa.array(list(measures), pa.string()),
            "a": [float(a(total)) for a, _ in pairs_of.values()],
            "b": [float(b(total)) for _, b in pairs_of.values()],
            "difference": [interval.estimate for interval in intervals.values()],
            "low": [interval.low for interval in intervals.values()],
            "high": [interval.high for interval in intervals.values()],
            "p_value": [interval.p_value for interval in intervals.values()],
            "share_above": [interval.share_above for interval in intervals.values()],
        }
    )


def _measures(spans: bool) -> dict[str, Any]:
    """Each metric as a function of the side that gives a function of totals [..., K]."""

    def ratio(above: str, below: str, factor: float = 1.0) -> Any:
        def of(side: str) -> Statistic:
            over, under = AT[above.format(side)], [AT[name.format(side)] for name in below.split("+")]
            return lambda totals: _divided(factor * totals[..., over], sum(totals[..., i] for i in under))

        return of

    # F1 = 2 tp / (gold + predicted), which is defined where precision or recall is not.
    entity = {
        "span_f1": ratio("hits_{}", "gold+spans_{}", 2.0),
        "span_precision": ratio("hits_{}", "spans_{}"),
        "span_recall": ratio("hits_{}", "gold"),
    }
    return (entity if spans else {}) | {"accuracy": ratio("right_{}", "words"), "mean_loss": ratio("loss_{}", "words")}


def _divided(above: np.ndarray, below: Any) -> np.ndarray:
    """Quotients, 0 where there is nothing to divide by, as seqeval has it."""
    return np.where(below > 0, above / np.maximum(below, 1e-300), 0.0)


def _outcomes(tags: pa.Table) -> pa.Table:
    words = np.array([sum(tags.column(name).to_pylist()) for name in OUTCOMES], dtype=np.int64)
    return pa.table({"outcome": OUTCOMES, "words": words, "share": _divided(words, words.sum())})


def in_order(key: str) -> Order:
    """How the tables by tag and by word are sorted: by what B gained or lost, in a column that they have for that."""
    return [(_NET, "descending"), (key, "ascending")]


def by_group(sums: pa.Table, key: str) -> pa.Table:
    """The figures by tag or word, with the column by which they are to be sorted."""
    column = {name: sums.column(name).to_numpy() for name in FIGURES}
    count = sum(column[name] for name in OUTCOMES)
    mean_a, mean_b = column["loss_a"] / count, column["loss_b"] / count
    return pa.table(
        {
            key: sums.column(key),
            "count": count,
            **{name: column[name] for name in OUTCOMES},
            "mean_loss_a": mean_a,
            "mean_loss_b": mean_b,
            "difference": mean_b - mean_a,
            _NET: column[BROKEN] - column[FIXED],
        }
    )


def _sorted(table: pa.Table, key: str) -> pa.Table:
    return table.sort_by(in_order(key)).drop_columns([_NET])


def _types(sums: pa.Table) -> pa.Table:
    column = {name: sums.column(name).to_numpy() for name in SPANS}
    gold, both = column["support"], column["both"]
    figures: dict[str, Any] = {
        "type": sums.column("type"),
        "support": gold,
        FIXED: column["hits_b"] - both,
        BROKEN: column["hits_a"] - both,
        "both": both,
        "neither": gold - column["hits_a"] - column["hits_b"] + both,
    }
    for side in ("a", "b"):
        hits, spans = column[f"hits_{side}"], column[f"spans_{side}"]
        figures[f"precision_{side}"] = _divided(hits, spans)
        figures[f"recall_{side}"] = _divided(hits, gold)
        figures[f"f1_{side}"] = _divided(2.0 * hits, gold + spans)
    figures["difference"] = figures["f1_b"] - figures["f1_a"]
    return pa.table(figures).sort_by("type")
