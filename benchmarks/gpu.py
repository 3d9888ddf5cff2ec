"""The job on a GPU, side by side with the notebook's procedure and a plain loop over the same rows and model.

    python benchmarks/gpu.py --size base --runs 5 --json gpu.json

Targets: the job's steady rate at least 0.9 of the plain length-sorted loop in bfloat16, and the GPU busy for at least
90 % of the steady phase (mean utilisation that nvidia-smi reports between the first full shard's commit and the last).
The loop's copies wait for its products and the job's do not, so a ratio above 1 means that copies overlap.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import corpora
import procedures
import pyarrow.parquet as pq
import torch
from common import save, say, show
from throughput import Commits, job

ROWS, SLOWER, REPEATS = 40_000, 8, 10
BUDGET = 1 << 15
TARGETS = {"job / loop": 0.9, "GPU busy": 0.9}


class Utilisation(threading.Thread):
    """What nvidia-smi says of the first GPU, four times a second, once the first full shard is through."""

    def __init__(self, commits: Commits) -> None:
        super().__init__(daemon=True)
        self.commits, self.over, self.samples = commits, threading.Event(), [0.0][:0]
        self.start()

    def run(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0"]
        while not self.over.wait(0.25):
            if self.commits.steady():
                self.samples.append(float(subprocess.check_output(command, text=True).split()[0]) / 100)


def measure(size: str, dtype_name: str, rows: int, runs: int) -> dict:
    dtype = getattr(torch, dtype_name)
    table = corpora.panx(rows)
    rates: dict[str, list[float]] = {}
    busy: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = corpora.make_model(size, Path(scratch) / "model"), Path(scratch) / "rows.parquet"
        pq.write_table(corpora.repeated(table, REPEATS), data)
        few = procedures.encode(folder, table.take(list(range(0, rows, SLOWER))))
        ragged, model = procedures.Ragged(procedures.encode(folder, table)), procedures.load(folder, dtype).cuda()
        forward, pad_id = procedures.torch_forward(model), int(model.config.pad_token_id)
        ways: dict[str, Callable[[], float]] = {
            "a reference": lambda: procedures.reference(model, folder, few),
            "d loop": lambda: ragged.loop(forward, pad_id, BUDGET),
        }
        for way in ways.values():
            way()  # kernels are chosen and memory is taken at the first call
        for _ in range(runs):
            for name, way in ways.items():
                rates.setdefault(name, []).append(way())
            commits = Commits()
            utilisation = Utilisation(commits)
            rates.setdefault("f job", []).append(job(folder, data, dtype_name, None, commits)[0])
            utilisation.over.set()
            busy.append(statistics.mean(utilisation.samples))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "size": size,
        "dtype": dtype_name,
        "device": torch.cuda.get_device_name(0),
        "tokens_per_second": {name: round(value) for name, value in medians.items()},
        "runs": {name: [round(value) for value in values] for name, values in rates.items()},
        "ratios": {
            "job / reference": round(medians["f job"] / medians["a reference"], 2),
            "job / loop": round(medians["f job"] / medians["d loop"], 3),
            "GPU busy": round(statistics.median(busy), 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(corpora.SIZES), default="base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "This machine has no GPU that PyTorch can use.\n")
    result = measure(args.size, args.dtype, args.rows, args.runs)
    show(
        f"{result['device']}, {args.size}, {args.dtype}",
        ["procedure", "tokens/s"],
        [*result["tokens_per_second"].items()],
    )
    for name, value in result["ratios"].items():
        target = TARGETS.get(name)
        said = f" (target {target}: {'met' if value >= target else 'not met'})" if target else ""
        say(f"{name}: {value}{said}")
    save(args.json, "gpu", result)


if __name__ == "__main__":
    main()
