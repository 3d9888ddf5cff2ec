"""Hold benchmark results to the floors (and ceilings) in floors.json; ends with 1 if one does not hold.

    python benchmarks/check_floors.py benchmarks/results

`floors.json` names for each result file the figures, by their path in it, and their least or greatest value. Most are
ratios of one run, which carry from machine to machine; seconds and rates are for two cores. A result that is not there
is said and skipped: run `make bench` for all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import say, show

FLOORS = Path(__file__).parent / "floors.json"


def look_up(figures: Any, path: list[str]) -> float:
    """The figure at a path; KeyError if there is none."""
    for key in path:
        figures = figures[key]
    return float(figures)


def check(results: Path, floors: dict[str, list[dict[str, Any]]]) -> tuple[list[list[Any]], list[str], list[str]]:
    """Rows of a table, what does not hold, and the files that are missing."""
    rows, broken, missing = [], [], []
    for name, limits in floors.items():
        if not (results / name).exists():
            missing.append(name)
            continue
        figures = json.loads((results / name).read_text())
        for limit in limits:
            value = look_up(figures, limit["figure"])
            holds = limit.get("min", value) <= value <= limit.get("max", value)
            wanted = f"at least {limit['min']}" if "min" in limit else f"at most {limit['max']}"
            what = " / ".join(limit["figure"]) if len(limit["figure"]) > 1 else limit["figure"][0]
            rows.append([name, what, round(value, 3), wanted, "yes" if holds else "NO"])
            if not holds:
                broken.append(f"{name}: {what} is {value:g}, {wanted} is wanted")
    return rows, broken, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with the JSON files of the benchmarks")
    args = parser.parse_args()
    rows, broken, missing = check(args.results, json.loads(FLOORS.read_text()))
    show("floors", ["result", "figure", "value", "wanted", "holds"], rows)
    if missing:
        say(f"not measured: {', '.join(missing)}")
    if broken or not rows:
        sys.exit("\n".join(broken) or f"no results in {args.results}")


if __name__ == "__main__":
    main()
