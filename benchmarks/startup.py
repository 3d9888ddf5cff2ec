"""How long a small job takes to begin and to end: `tokloss score` in local mode, from process start.

    python benchmarks/startup.py
    python benchmarks/startup.py --model MODEL --data corpus.parquet

Runs the command as a user does, several times, with points of the program noted in a file (TOKLOSS_FAULTS, see
`tokloss_ray/faults.py`). Seconds after the start of the process, as medians with least and most:

    actor ready    the model is loaded in a worker; until then it is start-up: Python, the preflight, Ray, torch
    first commit   the first shard is on disk
    _SUCCESS       the last file of the run is written
    exit           the process has gone
    exit - _SUCCESS   how long it takes to shut Ray down

The first corpus is the data as it is (by default the bundled one), the second a thousand of its rows, encoded before.
The latter has next to no work for the model, so that its `exit` is the price of running a job at all. Times do not
carry from machine to machine; the targets are for two cores and the demo model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import ID_COLUMN, save, settings, show, spread

from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.schema import EXAMPLE_ID, INPUT_IDS, LABEL_IDS, LABELS
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer

READY, FIRST, SUCCESS, EXIT, LEAVING = "actor ready", "first commit", "_SUCCESS", "exit", "exit - _SUCCESS"
POINTS = {"actor.ready": READY, "commit.record": FIRST, "success.after": SUCCESS}
PRE_ENCODED_ROWS = 1_000
DEMO, ENCODED = "data", "pre-encoded"
TARGETS = {DEMO: {READY: 10.0, FIRST: 11.0, LEAVING: 2.0}, ENCODED: {EXIT: 14.0, LEAVING: 2.0}}


def encode_rows(data: Path, model: str, target: Path, rows: int) -> Path:
    """The first rows as the tokenizer gives them: the input of a job that needs no tokenizer."""
    config = ScoreConfig(model=model, input=data, output=str(target.parent / "unused"), limit=rows, **settings(data))
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    tokenizer = RowTokenizer(plan.job.tokenizer_json)
    shards = [
        shard.sequences
        for unit in plan.units
        for shard in encode_unit(plan.job, tokenizer, unit, read_unit(plan.job, unit))
    ]
    sequences = pa.concat_tables(shards).slice(0, rows)
    columns = {EXAMPLE_ID: ID_COLUMN, INPUT_IDS: INPUT_IDS, LABEL_IDS: LABELS}
    pq.write_table(sequences.select(list(columns)).rename_columns(list(columns.values())), target)
    return target


def run_once(model: str, data: Path, folder: Path) -> dict[str, float]:
    """One job in a new folder; seconds after its start by point.

    Raises:
        SystemExit: the command failed, with what it said.
    """
    folder.mkdir()
    notes = folder / "notes"
    faults = ",".join(f"{point}=note:{notes}" for point in POINTS)
    command = [sys.executable, "-m", "tokloss_ray", "score", "--model", model, "--input", str(data)]
    for name, value in settings(data).items():
        command += [f"--{name.replace('_', '-')}", value]
    start = time.time()
    done = subprocess.run(
        [*command, "--output", str(folder / "out")],
        env={**os.environ, "TOKLOSS_FAULTS": faults},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ended = time.time() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    times: dict[str, float] = {}
    for line in notes.read_text().splitlines():
        at, point, *_ = line.split(" ")
        times[POINTS[point]] = min(times.get(POINTS[point], 1e9), float(at) - start)
    return {**times, EXIT: ended, LEAVING: ended - times[SUCCESS]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="(default: the bundled one)")
    parser.add_argument("--data", type=Path, default=DATA, help="a Parquet file (default: the bundled corpus)")
    parser.add_argument("--runs", type=int, default=5, help="of which the median counts")
    parser.add_argument("--only", choices=[DEMO, ENCODED], help="one of the two corpora alone")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one run, on the pre-encoded rows")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    if args.quick:
        args.runs, args.only = 1, ENCODED
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpora = {DEMO: args.data}
        if args.only != DEMO:
            corpora[ENCODED] = encode_rows(args.data, args.model, folder / "encoded.parquet", PRE_ENCODED_ROWS)
        chosen = [corpus for corpus in corpora if args.only in (None, corpus)]
        runs: dict[str, list[dict[str, float]]] = {corpus: [] for corpus in chosen}
        for number in range(args.runs):
            for corpus in chosen:  # in turn, so that what the machine does beside it falls on both
                runs[corpus].append(run_once(args.model, corpora[corpus], folder / f"{corpus}-{number}"))
        sizes = {corpus: pq.read_metadata(corpora[corpus]).num_rows for corpus in chosen}
    rows = []
    for corpus, times in runs.items():
        figures[corpus] = {"rows": sizes[corpus], "points": {}}
        for point in times[0]:
            found = spread([run[point] for run in times], 2)
            target = TARGETS[corpus].get(point)
            met = None if target is None else found["median"] <= target
            figures[corpus]["points"][point] = {**found, "target": target, "met": met}
            rows.append(
                [
                    f"{corpus}, {sizes[corpus]:,} rows: {point}",
                    *(f"{found[which]:.2f}" for which in ("median", "min", "max")),
                    "" if target is None else f"{target:g} {'met' if met else 'missed'}",
                ]
            )
    show(f"seconds, median of {args.runs}", ["point", "median", "least", "most", "target"], rows)
    save(args.json, "startup", figures)


if __name__ == "__main__":
    main()
