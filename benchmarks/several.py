"""What two checkpoints cost in one pass, against a pass for each.

    python benchmarks/several.py
    python benchmarks/several.py --dtype bfloat16 --runs 5 --json several.json

Runs `tokloss score` over PAN-X.de sentences with two checkpoints of a BERT encoder (random weights, one tokenizer),
once as one command with `--model A --model B`, and once as two commands, in turn. It compares whole commands, start and
end included, by the clock and by the processor time of all their processes; and what a million tokens take between the
first commit of a command and its last: what is saved on a corpus so large that the start does not count. The outputs of
both ways are compared as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import corpora
import psutil
import pyarrow.parquet as pq
from common import processes, save, say, show, spread

from tokloss_ray.output.run import read_run
from tokloss_ray.output.verify import verify

ROWS, TARGET = 20_000, 0.95
WAYS = ("one pass", "two passes")
UNITS = {
    "commands": "whole commands, seconds",
    "processor": "whole commands, seconds of processors",
    "steady": "between commits, seconds per million tokens",
}


class Processor(threading.Thread):
    """The processor time of a process and its descendants, each as it was last seen alive."""

    def __init__(self, root: int, every: float = 0.25) -> None:
        super().__init__(daemon=True)
        self.root, self.every, self.over = root, every, threading.Event()
        self.seen: dict[tuple[int, float], float] = {}
        self.start()

    def run(self) -> None:
        while not self.over.wait(self.every):
            for process in processes(self.root):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self.seen[process.pid, process.create_time()] = times.user + times.system

    def stop(self) -> float:
        """Seconds so far; looks no more."""
        self.over.set()
        self.join()
        return sum(self.seen.values())


class Cost(NamedTuple):
    """What a command took: seconds by the clock and of processors; and from its first commit to its last, seconds and
    the tokens of all commits but the first."""

    seconds: float
    processor: float
    between: float
    tokens: int


def command(models: list[Path], outputs: list[Path], data: Path, dtype: str) -> Cost:
    """Score with some models in one pass.

    Raises:
        SystemExit: it failed, with what it said.
    """
    words = [sys.executable, "-m", "tokloss_ray", "score", "--log-format", "json", "-i", str(data), "--dtype", dtype]
    words += ["--id-column", "id", *(word for m in models for word in ("-m", str(m)))]
    words += [word for output in outputs for word in ("-o", str(output))]
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        watch = Processor(process.pid)
        said, _ = process.communicate()
    seconds, processor = time.perf_counter() - start, watch.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{said}")
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    commits = [line for line in lines if line["event"] == "commit"]
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in commits]
    return Cost(seconds, processor, times[-1] - times[0], sum(line["tokens"] for line in commits[1:]))


def same(one: Path, other: Path) -> bool:
    """Whether two outputs are of one run by their fingerprints, are whole, and have files of the same names."""
    runs = [read_run(str(output)) for output in (one, other)]
    names = [sorted(p.relative_to(output) for p in output.rglob("*.parquet")) for output in (one, other)]
    whole = not any(verify(str(output)).problems for output in (one, other))
    return bool(whole and runs[0] and runs[1] and runs[0].fingerprint == runs[1].fingerprint and names[0] == names[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=sorted(corpora.SIZES))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one run, 400 rows")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.runs = 400, 1
    costs: dict[str, dict[str, list[float]]] = {what: {way: [] for way in WAYS} for what in UNITS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(corpora.panx(args.rows), folder / "in.parquet")
        models = [corpora.make_model(args.size, folder / name, seed) for seed, name in enumerate(("a", "b"))]
        for run in range(args.runs):  # in turn, so that what the machine does beside it falls on both
            for way, groups in zip(WAYS, ([models], [models[:1], models[1:]]), strict=True):
                outputs = [[folder / f"{way} {run}" / model.name for model in group] for group in groups]
                found = [
                    command(group, out, folder / "in.parquet", args.dtype)
                    for group, out in zip(groups, outputs, strict=True)
                ]
                costs["commands"][way].append(sum(cost.seconds for cost in found))
                costs["processor"][way].append(sum(cost.processor for cost in found))
                between, tokens = (sum(getattr(cost, name) for cost in found) for name in ("between", "tokens"))
                costs["steady"][way].append(between / tokens * 1e6 if tokens else 0.0)
            for model in models:
                if not same(folder / f"one pass {run}" / model.name, folder / f"two passes {run}" / model.name):
                    raise SystemExit(f"the outputs of {model.name} differ")
    medians = {what: {way: spread(values, 2) for way, values in runs.items()} for what, runs in costs.items()}
    pairs = {what: [found[way]["median"] for way in WAYS] for what, found in medians.items()}
    ratios = {what: round(one / two, 3) if two else None for what, (one, two) in pairs.items()}
    rows = [[UNITS[what], *pairs[what], ratios[what]] for what in UNITS]
    title = f"two {args.size} models, {args.dtype}, {args.rows:,} rows; medians of {args.runs}"
    show(title, ["", *WAYS, "ratio"], rows)
    ratio = ratios["commands"] or 0.0
    say(f"one pass costs {ratio} of two; target {TARGET:g}: {'met' if ratio < TARGET else 'missed'}")
    settings = {"size": args.size, "dtype": args.dtype, "rows": args.rows}
    save(args.json, "several", {**settings, **medians, "ratios": ratios, "target": TARGET})


if __name__ == "__main__":
    main()
