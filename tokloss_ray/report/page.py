"""The report: one HTML page that needs nothing else, made of the mining tables. docs/report.md says what is on it."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any, NamedTuple

import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tokloss_ray import __version__
from tokloss_ray.errors import Refused
from tokloss_ray.mining.tables.certainty import labelled_and_not
from tokloss_ray.mining.tables.confusion import entity_types
from tokloss_ray.mining.words.words import NO_STRING
from tokloss_ray.report import charts
from tokloss_ray.report import grids as page_grids
from tokloss_ray.report import heat as page_heat
from tokloss_ray.report.data import ReportData
from tokloss_ray.report.details import details, subject
from tokloss_ray.report.grids import NONE, WORST, count, number, percent
from tokloss_ray.report.sentences import Sentence, Worst, key_of, rows_by_key, sentence, shorten
from tokloss_ray.report.unlabelled import about_unlabelled
from tokloss_ray.storage.files import kind_of, open_location, open_random, write_whole
from tokloss_ray.text import visible

ISSUES = 60
_CHART_TAGS = 24
_FIRST_SCREEN = 5
_GENERATOR, _HEAD = b'<meta name="generator" content="tokloss ', 4096  # by which our pages are known, and how far in

_KINDS = {
    "add": "Add an entity",
    "remove": "Remove the entity",
    "retype": "Change the type",
    "move": "Move the boundary",
    "change": "Change words and type",
    "word": "Change the tag",
}


class Issue(NamedTuple):
    """A suspicious label with its sentence, which is None where the table of sequences does not reach so far."""

    kind: str
    text: str
    now: str
    then: str
    score: str
    example_id: str
    sentence: Sentence | None


def render(data: ReportData) -> str:
    """The page. The same data give the same page."""
    environment = Environment(
        loader=PackageLoader("tokloss_ray.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        # Whatever is put into the page, control and bidirectional characters become visible.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.j2").render(
        style=Markup(_asset("report.css")),  # ours
        script=Markup(script),
        script_hash=Markup(digest),
        **page_values(data),
    )
    return page.lstrip() + "\n"


def page_values(data: ReportData) -> dict[str, Any]:
    """What the template shows, by name."""
    tables = data.tables
    types = entity_types(data.run.tags, data.scheme)
    issues = _issues(data, types)
    chart_tags = _chart_tags(data)
    has_entities = bool(tables["entities"].num_rows)
    labelled, unlabelled = labelled_and_not(tables)
    return {
        "has_labels": labelled > 0,
        "unlabelled": unlabelled,
        "all_words": labelled + unlabelled,
        "certainty": about_unlabelled(data, unlabelled) if unlabelled else None,
        "version": __version__,
        "name": shorten(data.output.rstrip("/").rsplit("/", 1)[-1], 60),
        "subject": subject(data, _labelled(data)[0], unlabelled),
        "unfinished": not data.finished,
        "where": list(data.where),
        "headline": _headline(data),
        "trouble": _trouble(data),
        "trouble_total": _trouble_total(data),
        "issues": issues,
        "issues_total": tables["entity_issues" if tables["entity_issues"].num_rows else "label_issues"].num_rows,
        "first_issues": issues[:_FIRST_SCREEN],
        "rank": data.rank,
        "loss_chart": charts.loss_chart(tables["loss_distribution"], chart_tags),
        "chart_note": len(chart_tags) < tables["tags"].num_rows and len(chart_tags),
        "lengths_chart": charts.lengths_chart(tables["lengths"], page_grids.PROPERTIES),
        "heats": [
            made
            for level in (("type", "tag") if has_entities else ("tag",))
            if (made := page_heat.heat(tables, level, f"heat-{level}"))
        ],
        "has_entities": has_entities,
        "tags": page_grids.tags_grid(tables),
        "pairs": page_grids.pairs_grid(tables),
        "entities": page_grids.entities_grid(tables),
        "entity_errors": page_grids.entity_errors_grid(tables),
        "malformed": page_grids.malformed_grid(tables),
        "label_issues": page_grids.label_issues_grid(tables),
        "issue_groups": page_grids.issue_groups_grid(tables),
        "inconsistent": page_grids.inconsistent_grid(tables),
        "words_table": page_grids.tokens_grid(tables, "words"),
        "tokens": page_grids.tokens_grid(tables, "tokens"),
        "slices": page_grids.slices_grid(data.slices, data.by) if data.by else None,
        "by": list(data.by),
        "worst": _worst(data),
        "reasons": sorted(data.totals.errors.items(), key=lambda item: (-item[1], item[0])),
        "rows": data.totals.rows,
        "error_rows": data.totals.error_rows,
        "bad_rows": [
            {name: shorten(str(value), 300) for name, value in row.items()} for row in data.bad_rows.to_pylist()
        ],
        "details": details(data),
        "shown_first": 15,
    }


def _asset(name: str) -> str:
    return (files("tokloss_ray.report") / "templates" / name).read_text(encoding="utf-8")


def _labelled(data: ReportData) -> tuple[int, int, float]:
    """Labelled tokens, errors and total loss."""
    tags = data.tables["tags"]
    counts, errors, sums = (pc.sum(tags.column(name)).as_py() or 0 for name in ("count", "errors", "sum"))
    return counts, errors, sums


def _micro(data: ReportData) -> dict[str, Any] | None:
    rows = data.tables["entities"].to_pylist()
    return next((row for row in rows if (row["mode"], row["level"]) == ("default", "micro")), None)


def _headline(data: ReportData) -> dict[str, Any]:
    """The one figure that says most, what it is, and those beside it."""
    labelled, errors, loss = _labelled(data)
    right = percent(1 - errors / labelled if labelled else None)
    beside = [("Mean loss", number(loss / labelled if labelled else None)), ("Wrong tokens", count(errors))]
    micro = _micro(data)
    if micro is None:
        return {"value": right, "unit": "%", "what": "of the labelled tokens are tagged correctly", "beside": beside}
    beside = [
        ("Precision", f"{percent(micro['precision'])} %"),
        ("Recall", f"{percent(micro['recall'])} %"),
        ("Correctly tagged tokens", f"{right} %"),
        *beside,
    ]
    return {"value": percent(micro["f1"]), "unit": "%", "what": "F1 of entities, exact match", "beside": beside}


def _trouble(data: ReportData) -> list[tuple[str, int, float]]:
    """Kinds of errors, or confused tags, most frequent first: what, how often, share of the most frequent."""
    sums: dict[str, int] = {}
    for row in data.tables["entity_error_counts"].to_pylist():
        a, b = row["label_type"], row["predicted_type"]
        name = page_grids.ERROR_NAMES[row["error"]]
        what = f"{a} → {b}, {name}" if a and b and a != b else f"{a or b}, {name}"
        sums[what] = sums.get(what, 0) + row["count"]
    if not sums:
        for row in page_grids.confused(data.tables, "tag").to_pylist():
            sums[f"{row['label']} → {row['predicted']}"] = row["count"]
    first = sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:_FIRST_SCREEN]
    return [(what, times, times / first[0][1]) for what, times in first]


def _trouble_total(data: ReportData) -> str:
    wrong = pc.sum(data.tables["entity_error_counts"].column("count")).as_py()
    micro = _micro(data)
    if micro and wrong:
        return f"{wrong:,} entities are wrong; {micro['correct']:,} of {micro['support']:,} annotated ones are found."
    labelled, errors, _ = _labelled(data)
    return f"{errors:,} of {labelled:,} labelled tokens are wrong." if errors else "No errors were found."


def _issues(data: ReportData, types: dict[str, str]) -> list[Issue]:
    """The first label issues, of entities where there are any, else of words, with their sentences."""
    tables = data.tables
    entities = tables["entity_issues"].num_rows > 0
    rows = tables["entity_issues" if entities else "label_issues"].slice(0, ISSUES).to_pylist()
    keys = [key_of(row) for row in rows]
    found = rows_by_key(tables["sequences"], keys, data.run.identity.get("label_all_subtokens", False))
    issues = []
    for row, key in zip(rows, keys, strict=True):
        if entities:
            kind, text, start = row["kind"], row["text"], row["start"]
            labels, suggested = row["label_tags"], row["suggested_tags"]
        else:
            kind, start = "word", row["word_index"]
            text = NO_STRING if row["word"] is None else row["word"]
            labels, suggested = [row["label"]], [row["suggested_label"] or row["predicted"]]
        if entities:
            now, then = _types_of(labels, types), _suggestion(kind, text, suggested, types)
        else:
            now, then = labels[0], suggested[0]
        shown = sentence(found[key], start, text, suggested) if key in found else None
        name = shorten(row["example_id"] or NONE, 60)
        issues.append(Issue(_KINDS[kind], shorten(text), now, then, number(row["score"], 2), name, shown))
    return issues


def _types_of(tags: list[str], types: dict[str, str]) -> str:
    """The entity types of some tags, in order; `none` if there is no entity."""
    named = list(dict.fromkeys(types.get(tag, tag) for tag in tags))
    return ", ".join(name for name in named if name != "O") or "none"


def _suggestion(kind: str, text: str, tags: list[str], types: dict[str, str]) -> str:
    """The types of the suggested tags; where the words change, with the words that then are entities."""
    words = text.split(" ")
    if kind not in ("move", "change") or len(words) != len(tags):
        return _types_of(tags, types)
    inside = [word for word, tag in zip(words, tags, strict=True) if types.get(tag, tag) != "O"]
    return shorten(f"{_types_of(tags, types)} {' '.join(inside)}", 80)


def _worst(data: ReportData) -> list[Worst]:
    """The sentences with the highest total loss."""
    table = data.tables["sequences"]
    rows = table.filter(pc.is_valid(table.column("rank_total"))).slice(0, WORST)
    words = "tokens" if data.run.identity.get("label_all_subtokens", False) else "words"
    worst = []
    for row in rows.to_pylist():
        figures = (
            f"total loss {number(row['total_loss'], 1)}, mean {number(row['mean_loss'], 2)}, "
            f"{row['errors']:,} of {row['num_labels']:,} wrong"
        )
        shown = sentence(row | {"words": row[words]})
        worst.append(Worst(shorten(row["example_id"] or NONE, 60), figures, shown))
    return worst


def _chart_tags(data: ReportData) -> list[str]:
    """Tags of the chart: all that are labelled in the order of the table, or of many those with the most loss."""
    rows = [row for row in data.tables["tags"].to_pylist() if row["count"]]
    most = sorted(rows, key=lambda row: (-row["sum"], row["tag"]))[:_CHART_TAGS]
    chosen = {row["tag"] for row in most}
    return [row["tag"] for row in rows if row["tag"] in chosen]


def check_place(place: str, own: str) -> None:
    """See that the page may be written to a file or address: that nothing is there, or another such page.

    own: the file that is for such pages, whatever it holds.

    Raises:
        Refused: it is a folder, or a file of something else.
    """
    fs, path = open_location(place)
    kind = kind_of(fs, path)
    if kind == "directory":
        raise Refused(f"{place} is a folder: choose a file for the page")
    if kind is None or (fs, path) == open_location(own):
        return
    with open_random(fs, path) as file:
        begin = file.read(_HEAD)
    if begin and _GENERATOR not in begin:
        raise Refused(
            f"{place} already exists and was not written by tokloss report: choose another file, or remove it"
        )


def write_page(place: str, page: str) -> None:
    """Write the page to a file or address, whole or not at all.

    Raises:
        StorageFailed: it cannot be written.
    """
    fs, path = open_location(place)
    write_whole(fs, path, page.encode())
