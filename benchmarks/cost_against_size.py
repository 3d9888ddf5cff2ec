"""What verify, mine, diff and export cost a token, in time and memory, on outputs a hundred times apart.

    python benchmarks/cost_against_size.py --sizes 1000000,100000000 --json results.json

Outputs are stand-ins (`stand_in_outputs.py`): two of each size with the predictions of two models, and one whose input
files have other names, so that diff has to match rows by their ids. Each figure is of a process of its own: seconds are
those of the work without the start of Python, `cpu s` is processor time, from which the cost of a token is taken, as
other work on the machine does not change it. Memory is the peak of the whole process; `anon.` leaves out what is
read from files by mapping them, which the system may drop at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import save, say, show
from stand_in_outputs import write_output


def run_verify(folder: Path, scratch: Path) -> None:
    from tokloss_ray.output.verify import verify

    found = verify(str(folder / "a"))
    assert not found.problems, found.problems[:3]


def run_mine(folder: Path, scratch: Path) -> None:
    from tokloss_ray.mining.mine import mine

    mine(str(folder / "a"), to=str(scratch / "tables"))


def _diff(a: Path, b: Path, scratch: Path) -> None:
    from tokloss_ray.mining.diff.compare import diff
    from tokloss_ray.mining.write import write_tables

    found = diff(str(a), str(b))
    assert found.matched.only_a == found.matched.only_b == 0
    write_tables(str(scratch / "tables"), found.tables, {})


def run_diff(folder: Path, scratch: Path) -> None:
    _diff(folder / "a", folder / "b", scratch)


def run_diff_by_id(folder: Path, scratch: Path) -> None:
    _diff(folder / "a", folder / "c", scratch)


def run_export(folder: Path, scratch: Path) -> None:
    from tokloss_ray.exporting.export import export

    export(str(folder / "a"), str(scratch / "all.conll"), "conll")


PROGRAMS: dict[str, Callable[[Path, Path], None]] = {
    "verify": run_verify,
    "mine": run_mine,
    "diff, by row": run_diff,
    "diff, by id": run_diff_by_id,
    "export": run_export,
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "a": {},
    "b": {"model": 1, "shard_tokens": 700_000},
    "c": {"model": 1, "shard_tokens": 700_000, "renamed": True},
}


NEEDED = {"diff, by row": "b", "diff, by id": "c"}


class _Anonymous(threading.Thread):
    """The peak of this process's memory that is not a mapped file, in kB, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(re.findall(r"RssAnon:\s+(\d+)", status)[0]))
            time.sleep(0.1)


def measured(program: str, folder: Path) -> dict[str, Any]:
    """Run a program in this process."""
    memory = _Anonymous() if Path("/proc/self/status").exists() else None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        start, cpu = time.perf_counter(), time.process_time()
        PROGRAMS[program](folder, Path(scratch))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "anonymous_mb": memory.peak / 1000 if memory else None,
    }


def in_process(program: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", program, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def outputs(folder: Path, size: int, names: set[str]) -> int:
    """The outputs of one size, made unless they are there; returns the tokens of each."""
    for name in sorted(names):
        made = folder / f"{name}.json"
        if not made.exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            made.write_text(json.dumps(write_output(folder / name, size, **OUTPUTS[name])))
    return int(json.loads((folder / "a.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="1000000,100000000", help="tokens")
    parser.add_argument("--programs", default=",".join(name.replace(", ", "_") for name in PROGRAMS), help="which")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; their medians count")
    parser.add_argument("--folder", type=Path, help="where outputs are made, and kept; by default a temporary one")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--only", choices=PROGRAMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measured(args.only, args.folder)))
        return
    programs = [name.replace("_", ", ") for name in args.programs.split(",")]
    sizes = [int(size) for size in args.sizes.split(",")]
    needed = (
        {"a"} | {"b" for name in programs if name == "diff, by row"} | {"c" for n in programs if n == "diff, by id"}
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        folders = {size: root / f"tokens-{size}" for size in sizes}
        tokens = {size: outputs(folder, size, needed) for size, folder in folders.items()}
        runs: dict[tuple[str, int], list[dict[str, Any]]] = {(p, size): [] for p in programs for size in sizes}
        for _ in range(args.repeats):
            for program, size in runs:
                runs[program, size].append(in_process(program, folders[size]))
    results = []
    for (program, size), found in runs.items():
        middle = sorted(found, key=lambda run: run["cpu"])[len(found) // 2]
        results.append({"program": program, "tokens": tokens[size], **middle})
    rows = []
    for program in programs:
        of_program = [result for result in results if result["program"] == program]
        first = of_program[0]
        for r in of_program:
            cost, least = r["cpu"] / r["tokens"], first["cpu"] / first["tokens"]
            rows.append([
                program, r["tokens"], f"{r['seconds']:.1f}", f"{r['cpu']:.1f}", f"{1e6 * cost:.2f}",
                f"{cost / least:.2f}", round(r["peak_mb"]), round(r["anonymous_mb"] or 0),
                f"{r['peak_mb'] / first['peak_mb']:.2f}",
            ])  # fmt: skip
    columns = ["", "tokens", "s", "cpu s", "us/token", "times", "MB", "anon.", "times"]
    show("Cost against size", columns, rows)
    say(f"{os.cpu_count()} cores")
    save(args.json, "cost_against_size", {"runs": results})


if __name__ == "__main__":
    main()
