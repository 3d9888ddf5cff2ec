"""How long a person waits in `tokloss review`, over an output of ten million words.

    python benchmarks/review.py tokloss-demo --tokens 20000000 --limit 1000000

Copies a finished output (by default the demo's) with other ids until it has so many tokens, mines it with that limit,
starts `tokloss review` in a process of its own, and goes through issues in the machine's Chromium:

    address   from the start of the process until the address is printed
    first     from opening it until the first issue is shown
    next      from a key until the next issue is shown, the decision saved
    group     from `g` until the other places are listed
    filter    from Apply until the first issue of the second most frequent pair of tags is shown
    places    from opening the page until the words of the whole corpus are counted, in the background

`next, at once` is while the work in the background still runs. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from common import save, show
from mining import copy_output

import tokloss_ray
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.mining.mine import mine
from tokloss_ray.output.records import read_records
from tokloss_ray.output.totals import total


def waits(output: Path, keys: int) -> dict[str, Any]:
    """Seconds of each wait in one review of an output."""
    from playwright.sync_api import sync_playwright

    shutil.rmtree(output / "review", ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "tokloss_ray", "review", str(output), "--reviewer", "bench"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout
    address = server.stdout.readline().strip()
    figures: dict[str, Any] = {"address": time.perf_counter() - start}
    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto("about:blank")
            opened = time.perf_counter()
            page.goto(address)
            page.locator("#card:not([hidden])").wait_for()
            figures["first"] = time.perf_counter() - opened
            figures["next, at once"] = press(page, 10)
            page.get_by_role("button", name="Show places").wait_for(timeout=600_000)
            figures["places"] = time.perf_counter() - opened
            figures["next"] = press(page, keys)
            begun = time.perf_counter()
            page.keyboard.press("g")
            page.locator("#group[open]").wait_for()
            figures["group"] = time.perf_counter() - begun
            page.keyboard.press("Escape")
            page.keyboard.press("f")
            page.locator("#pair option").nth(2).wait_for(state="attached")
            page.locator("#pair").select_option(index=2)
            before = page.inner_text("#where")
            begun = time.perf_counter()
            page.get_by_role("button", name="Apply").click()
            page.locator("#where").filter(has_not_text=before).wait_for()
            figures["filter"] = time.perf_counter() - begun
            figures["server_mb"] = psutil.Process(server.pid).memory_info().rss / 1e6
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return figures


def demo_output(folder: Path) -> Path:
    """Some sentences of the demo, scored."""
    rows, output = folder / "rows.parquet", folder / "small"
    pq.write_table(pq.read_table(DATA).slice(0, 1500), rows)
    tokloss_ray.score(tokloss_ray.ScoreConfig(model=str(MODEL), input=str(rows), output=str(output), id_column="id"))
    return output


def press(page: Any, keys: int) -> dict[str, float]:
    """Median and slowest of some decisions, by `k` and `a` in turn."""
    seconds = []
    for i in range(keys):
        decided = int(page.inner_text("#progress").split()[0].replace(",", ""))
        begun = time.perf_counter()
        page.keyboard.press("ka"[i % 2])
        page.get_by_text(f"{decided + 1:,} decided").wait_for()
        page.locator("body:not([aria-busy])").wait_for()
        seconds.append(time.perf_counter() - begun)
    return {"median": statistics.median(seconds), "slowest": max(seconds)}


def main() -> None:
    """Make the output, if it is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", default="tokloss-demo", type=Path)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--limit", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="make the large output here, and use it if it is there already")
    parser.add_argument("--quick", action="store_true", help="1,500 sentences of the demo, once, with few keys")
    parser.add_argument("--json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.quick:
            given.output, given.keep = demo_output(Path(scratch)), None
            given.tokens, given.limit, given.keys, given.runs = 60_000, 10_000, 4, 1
        large = given.keep or Path(scratch, "large")
        if not (large / "_SUCCESS").exists():
            copy_output(given.output, large, given.tokens)
            mine(str(large), limit=given.limit)
        totals = total(read_records(str(large)).values())
        runs = [waits(large, given.keys) for _ in range(given.runs)]
    rows = {}
    for name in ("address", "first", "places", "group", "filter", "server_mb"):
        rows[name] = statistics.median(run[name] for run in runs)
    for name in ("next, at once", "next"):
        for what in ("median", "slowest"):
            rows[f"{name}: {what}"] = statistics.median(run[name][what] for run in runs)
    show(
        f"tokloss review over {totals.labels:,} words, medians of {given.runs}",
        ["", "seconds"],
        [[name, f"{value:.3f}"] for name, value in rows.items() if name != "server_mb"],
    )
    found = {"words": totals.labels, "issues": given.limit, **rows, "runs": runs}
    save(given.json, "review", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
