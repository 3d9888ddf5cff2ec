"""`jobs/grafana.json` asks for what the job exports, in queries that Prometheus understands."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from tokloss_ray.scoring.on_ray.metrics import COUNTERS, GAUGES, REASON, RUN, STAGE, exported

FILE = Path(__file__).resolve().parents[1] / "jobs" / "grafana.json"
LABELS = {exported(name): {RUN, *tags} for name, (_, tags) in COUNTERS.items()} | {
    exported(name): {RUN} for name in GAUGES
}
OF_GRAFANA = {"$__rate_interval": "5m", "$__range": "3h", "$run": "3f2a9c|a1b2c3"}
"""What Grafana puts in place of its variables."""


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def queries(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for name, value in OF_GRAFANA.items():
        found = [query.replace(name, value) for query in found]
    return found


def selectors(query: str) -> list[Any]:
    """The metrics that a query selects, with their labels; Prometheus must be able to read it."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def test_it_shows_every_metric_of_the_job_and_no_other(dashboard: dict[str, Any]) -> None:
    found = [s for query in queries(dashboard) for s in selectors(query)]
    assert {s.name for s in found} == set(LABELS)
    for selector in found:
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert RUN in asked, "another run's figures would be mixed in"
        assert asked <= LABELS[selector.name], selector.name


def test_it_groups_and_names_by_labels_that_are_there(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (shown,) = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            assert set(re.findall(r" by \((\w+)\)", target["expr"])) == {shown}
            for name in re.findall(r"ray_tokloss_\w+", target["expr"]):
                assert shown in LABELS[name], panel["title"]


def test_a_counter_is_never_shown_as_it_is(dashboard: dict[str, Any]) -> None:
    """It starts at 0 with each attempt."""
    for query in queries(dashboard):
        counted = len(re.findall(r"_total\{", query))
        assert counted == len(re.findall(r"(?:rate|increase)\(\w+_total\{[^}]*\}\[\w+\]\)", query)), query


def test_its_variables_are_defined(dashboard: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", FILE.read_text(encoding="utf-8")))
    assert used == defined == {"datasource", "run"}
    (run,) = (v for v in dashboard["templating"]["list"] if v["name"] == "run")
    (metric, label) = re.fullmatch(r"label_values\((\w+), (\w+)\)", run["query"]).groups()  # type: ignore[union-attr]
    assert label in LABELS[metric]


def test_its_panels_fit_the_grid(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        {*itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))}
        for at in (panel["gridPos"] for panel in panels)
    ]
    assert max(x for x, _ in set().union(*cells)) < 24
    assert len(set().union(*cells)) == sum(map(len, cells)), "panels overlap"


def test_it_is_imported_without_a_number_of_another_grafana(dashboard: dict[str, Any]) -> None:
    """An `id` is the database's; a data source's uid is one installation's."""
    assert "id" not in dashboard
    sources = [dashboard["panels"], dashboard["templating"]["list"][1:], *(p["targets"] for p in dashboard["panels"])]
    assert {part["datasource"]["uid"] for parts in sources for part in parts} == {"${datasource}"}


def test_labels_are_what_the_queries_call_them() -> None:
    assert (RUN, REASON, STAGE) == ("run", "reason", "stage")
