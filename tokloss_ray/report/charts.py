"""The charts of the report page, as SVG whose colours are the page's (so that they follow light and dark).

matplotlib draws them without a display and without pyplot. Text stays text; what matplotlib puts into ids is made from
a fixed salt, so that the same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup, escape

from tokloss_ray.mining.tables.loss_distribution import EDGES
from tokloss_ray.text import visible

HIGH_LOSS = 1.0
"""From here on a loss is called high: the model gives the label less than 1 / e, 37 %."""

_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)",
            "#040404": "var(--accent)", "#050505": "var(--quiet)"}  # fmt: skip
_INK, _MUTED, _LINE, _ACCENT, _QUIET = _COLOURS
_ROW = 0.28  # inches
_WIDTH = 5.2  # narrow, so that text is readable on a phone


def loss_chart(distribution: pa.Table, tags: Sequence[str]) -> Markup:
    """How the losses of each of `tags` are distributed: one row each, on a log scale.

    Each row is as high as its highest bin: shapes can be compared, heights cannot.

    distribution: the table `loss_distribution`, not sliced.
    """
    shares = _shares(distribution, tags)
    known = np.flatnonzero(shares.sum(axis=0) > 0)
    if not len(known):
        return Markup("")
    first, last = known[0], known[-1]
    # The outer bins are open: drawn as wide as their neighbours.
    edges = np.log10(np.concatenate([[EDGES[0] / 10 ** (1 / 8)], EDGES, [EDGES[-1] * 10 ** (1 / 8)]]))
    high = int(np.searchsorted(EDGES, HIGH_LOSS)) + 1
    figure, axes = _figure(len(tags) * _ROW + 0.47)
    for row, share in enumerate(shares):
        base, top = len(tags) - 1 - row, float(share.max()) or 1.0
        for begin, end, colour in ((first, min(high, last + 1), _QUIET), (max(high, first), last + 1, _ACCENT)):
            if begin < end:
                axes.stairs(
                    base + 0.82 * share[begin:end] / top, edges[begin : end + 1], baseline=base, fill=True,
                    color=colour, linewidth=0,
                )  # fmt: skip
        axes.axhline(base, color=_LINE, linewidth=0.6, zorder=0)
        # mathtext would read $ in a tag's name
        axes.text(-0.012, base + 0.1, _cut(tags[row]), transform=axes.get_yaxis_transform(), ha="right", va="bottom",
                  color=_INK, fontsize=9, parse_math=False)  # fmt: skip
        axes.text(1.012, base + 0.1, f"{100 * share[high:].sum():.1f} %", transform=axes.get_yaxis_transform(),
                  ha="left", va="bottom", color=_ACCENT, fontsize=9)  # fmt: skip
    axes.axvline(0.0, color=_MUTED, linewidth=0.7, linestyle=(0, (3, 3)))
    axes.set_xlim(edges[first], edges[last + 1])
    axes.set_ylim(-0.08, len(tags))
    ticks = [k for k in range(-5, 3) if edges[first] <= k <= edges[last + 1]]
    axes.set_xticks(ticks, [f"{10.0**k:g}" if k >= -4 else "0.00001" for k in ticks])
    axes.set_yticks([])
    figure.subplots_adjust(left=0.16, right=0.87, top=0.98, bottom=0.42 / figure.get_figheight())
    axes.set_xlabel("loss", color=_MUTED, fontsize=9)
    text = "; ".join(
        f"{tag}: {100 * share[high:].sum():.1f} % of its tokens have a loss of 1 or more"
        for tag, share in zip(tags, shares, strict=True)
    )
    return _svg(figure, "loss", "Distribution of the loss by tag", text)


def lengths_chart(lengths: pa.Table, names: dict[str, str]) -> Markup:
    """Share of wrong words by bucket, a panel for each property. names: title by property.

    lengths: the table `lengths`, not sliced.
    """
    rows = lengths.to_pylist()
    panels = [name for name in names if any(row["property"] == name for row in rows)]
    if not panels:
        return Markup("")
    high = max((row["error_rate"] for row in rows), default=0.0) or 1.0
    figure, grid = _figure(1.4 * ((len(panels) + 1) // 2), ((len(panels) + 1) // 2, 2))
    said = []
    for axes, name in zip(np.ravel(grid), panels, strict=False):
        own = [row for row in rows if row["property"] == name]
        axes.bar(range(len(own)), [row["error_rate"] for row in own], color=_QUIET, width=0.72)
        axes.set_ylim(0, high * 1.22)
        axes.set_yticks([])
        axes.set_xticks(range(len(own)), [_brief(row["high"], i, len(own)) for i, row in enumerate(own)])
        axes.tick_params(labelsize=6.5, pad=2)
        axes.set_title(names[name], loc="left", color=_INK, fontsize=9)
        for at, row in enumerate(own):
            axes.text(at, row["error_rate"] + high * 0.03, f"{100 * row['error_rate']:.0f}", ha="center", color=_MUTED,
                      fontsize=6.5)  # fmt: skip
        said.append(f"{names[name]}: " + ", ".join(f"{_bucket(row)}: {100 * row['error_rate']:.1f} %" for row in own))
    for axes in np.ravel(grid)[len(panels) :]:
        axes.remove()
    figure.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.08, hspace=0.45, wspace=0.1)
    return _svg(figure, "lengths", "Share of wrong words, in percent", ". ".join(said))


def high_shares(distribution: pa.Table) -> dict[str, float]:
    """Of each tag, the share of its tokens with a high loss."""
    tags = sorted(set(distribution.column("tag").to_pylist()))
    return {tag: float(share[int(np.searchsorted(EDGES, HIGH_LOSS)) + 1 :].sum())
            for tag, share in zip(tags, _shares(distribution, tags), strict=True)}  # fmt: skip


def _shares(distribution: pa.Table, tags: Sequence[str]) -> np.ndarray:
    """[tags, bins]: share of a tag's tokens in each bin."""
    row = {tag: i for i, tag in enumerate(tags)}
    counts = np.zeros((len(tags), len(EDGES) + 1))
    columns = (distribution.column(name).to_pylist() for name in ("tag", "low", "count"))
    for tag, low, count in zip(*columns, strict=True):
        if tag in row:
            counts[row[tag], int(np.searchsorted(EDGES, low, side="right"))] = count
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _bucket(row: dict[str, Any]) -> str:
    return f"{row['low']}" if row["low"] == row["high"] else f"{row['low']}–{row['high']}"


def _brief(size: int, at: int, buckets: int) -> str:
    """The end of a bucket; every second one where there are many."""
    if buckets > 9 and at % 2:
        return ""
    return f"{size}" if size < 1000 else f"{size // 1024}k" if size < 1 << 20 else f"{size >> 20}M"


def _cut(text: str) -> str:
    text = visible(text)
    return text if len(text) <= 14 else text[:13] + "…"


def _figure(height: float, grid: tuple[int, int] = (1, 1)) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.subplots(*grid)
    for one in np.ravel(axes):
        one.spines[:].set_visible(False)
        one.tick_params(length=0, colors=_MUTED, labelsize=8)
    return figure, axes


def _svg(figure: Any, name: str, title: str, description: str) -> Markup:
    """The figure as an SVG element with a name and a description for screen readers."""
    import matplotlib

    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view
    # XML attributes of a stand-alone file mean nothing inside HTML.
    body = svg[svg.index(">") + 1 :]
    label = f"{name}-title {name}-text"
    head = (
        f'<svg class="chart" viewBox="{view[1]}" role="img" aria-labelledby="{label}">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(visible(description))}</desc>'
    )
    return Markup(head + body.strip())  # text in it was escaped by matplotlib and here
