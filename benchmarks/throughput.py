"""Tokens per second of the job, side by side with other ways of putting the same rows through the same model.

    python benchmarks/throughput.py --size small --dtype float32 --corpus panx --runs 5 --json small.json
    python benchmarks/throughput.py --against-ray --runs 5

(a) the notebook's procedure, `datasets.map` with batches of 32   (b) `transformers.pipeline`, batches of 32
(c) `Trainer.predict`, batches of 32   (d) a length-sorted, token-budgeted loop in PyTorch, plain and with the job's
packed linear layers   (e) ONNX Runtime on the batches of (d)   (f) the job between its first commit and its last
(g) `--against-ray`: a Ray Data job as one would write it by hand; whole commands, start and end included

The procedures take turns, so that a slow minute of the machine hits all of them; figures are medians, and what counts
is their ratios. (a) to (c) get every eighth row, (f) the rows several times over under new ids: all of them the same
lengths. Tokens are those of the sequences; padding is not counted. The model is randomly initialised (its speed does
not depend on its weights), with the demo's tokenizer.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import corpora
import procedures
import pyarrow.parquet as pq
import torch
from common import save, say, show

from tokloss_ray.config import ScoreConfig
from tokloss_ray.output.totals import RunSummary
from tokloss_ray.scoring.driver import score
from tokloss_ray.scoring.stages.cutting import FIRST_HALVINGS
from tokloss_ray.scoring.watcher import Watcher

ROWS = {("small", "panx"): 4000, ("base", "panx"): 600, ("small", "tail"): 1000, ("base", "tail"): 200}
"""Rows of (d) and (e)."""
SLOWER, REPEATS = 8, 7
"""(a) to (c) get one row in eight, the job each row seven times."""
SHARD_TOKENS = {"small": 1 << 16, "base": 1 << 15}
"""The job's default, and half of it for the base model: a shard of that takes a minute."""


class Commits(Watcher):
    """When each shard was committed, and its tokens."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def committed(self, record: dict) -> None:
        self.seen.append((time.perf_counter(), record.tokens))

    def steady(self) -> bool:
        """Whether the first, smaller shards are through."""
        return len(self.seen) > FIRST_HALVINGS

    def rate(self) -> float:
        """Tokens per second of the steady phase."""
        (start, _), *later = self.seen[FIRST_HALVINGS:]
        return sum(tokens for _, tokens in later) / (later[-1][0] - start)


def job(
    model: Path, data: Path, dtype: str, shard_tokens: int | None, commits: Commits | None = None
) -> tuple[float, RunSummary]:
    """(f) The job: its steady rate and its summary."""
    commits = commits or Commits()
    with tempfile.TemporaryDirectory() as folder:
        summary = score(
            ScoreConfig(
                model=str(model),
                input=(str(data),),
                output=f"{folder}/out",
                id_column="id",
                dtype=dtype,  # type: ignore[arg-type]
                shard_tokens=shard_tokens,
            ),
            commits,
        )
    return commits.rate(), summary


def measure(size: str, dtype_name: str, corpus: str, runs: int, quick: bool) -> dict:
    dtype = getattr(torch, dtype_name)
    rows = 200 if quick else ROWS[size, corpus]
    table = corpora.panx(rows) if corpus == "panx" else corpora.long_tail(rows)
    rates: dict[str, list[float]] = {}
    efficiency = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = corpora.make_model(size, Path(scratch) / "model")
        data = Path(scratch) / "rows.parquet"
        pq.write_table(corpora.repeated(table, 1 if quick else REPEATS), data)
        few = table.take(list(range(0, rows, SLOWER)))
        encoded, encoded_few = procedures.encode(folder, table), procedures.encode(folder, few)
        plain, packed = procedures.load(folder, dtype), procedures.packed(procedures.load(folder, dtype))
        ragged, pad_id = procedures.Ragged(encoded), int(plain.config.pad_token_id)
        ways: dict[str, Callable[[], float]] = {
            "a reference": lambda: procedures.reference(plain, folder, encoded_few),
            "b pipeline": lambda: procedures.hf_pipeline(plain, folder, few, procedures.tokens_of(encoded_few)),
            "c trainer": lambda: procedures.trainer_predict(plain, folder, encoded_few),
            "d loop": lambda: ragged.loop(procedures.torch_forward(plain), pad_id, procedures.BUDGET),
            "d loop, packed": lambda: ragged.loop(procedures.torch_forward(packed), pad_id, procedures.BUDGET),
        }
        if dtype != torch.float32:  # what the notebook does, whatever the job is told
            exact = procedures.load(folder, torch.float32)
            ways["a reference, float32"] = lambda: procedures.reference(exact, folder, encoded_few)
        else:
            onnx = procedures.onnx_forward(plain, Path(scratch))
            ways["e onnxruntime"] = lambda: ragged.loop(onnx, pad_id, procedures.BUDGET)
        for _ in range(runs):
            for name, way in ways.items():
                rates.setdefault(name, []).append(way())
            rate, summary = job(folder, data, dtype_name, 1 << 10 if quick else SHARD_TOKENS[size])
            efficiency = summary.totals.padding_efficiency or 0
            rates.setdefault("f job", []).append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "job / reference": round(medians["f job"] / medians["a reference"], 2),
        "job / loop": round(medians["f job"] / medians["d loop"], 3),
        "job / packed loop": round(medians["f job"] / medians["d loop, packed"], 3),
    }
    if "a reference, float32" in medians:
        ratios["job / reference in float32"] = round(medians["f job"] / medians["a reference, float32"], 2)
    if "e onnxruntime" in medians:
        ratios["job / onnxruntime"] = round(medians["f job"] / medians["e onnxruntime"], 3)
    flops = 2 * corpora.parameters(size) * medians["f job"] / 1e9
    peak = procedures.product_rate(dtype, "packed")
    return {
        "size": size,
        "dtype": dtype_name,
        "corpus": corpus,
        "threads": torch.get_num_threads(),
        "tokens_per_second": {name: round(value) for name, value in medians.items()},
        "runs": {name: [round(value) for value in values] for name, values in rates.items()},
        "ratios": ratios,
        "padding_efficiency": round(efficiency, 3),
        "product_gflops": {"plain": round(procedures.product_rate(dtype, "plain")), "packed": round(peak)},
        "job_gflops": round(flops),
        "share_of_peak": round(flops / peak, 2),
    }


def against_ray(size: str, dtype: str, sentences: int, runs: int) -> dict:
    """(g) Whole commands, from the start of their process to its end."""
    seconds: dict[str, list[float]] = {"job": [], "by hand": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = corpora.DEMO_MODEL if size == "demo" else corpora.make_model(size, Path(scratch) / "model")
        data = Path(scratch) / "rows.parquet"
        pq.write_table(corpora.panx(sentences), data)
        common = ["--model", str(folder), "--input", str(data), "--dtype", dtype]
        commands = {
            "job": [sys.executable, "-m", "tokloss_ray", "score", *common],
            "by hand": [sys.executable, str(Path(__file__).parent / "plain_ray.py"), *common],
        }
        for run in range(runs):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([*command, "--output", f"{scratch}/{name}-{run}"], check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "size": size,
        "dtype": dtype,
        "sentences": sentences,
        "seconds": {name: round(value, 1) for name, value in medians.items()},
        "runs": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        "ratios": {"by hand / job": round(medians["by hand"] / medians["job"], 2)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["demo", "small", "base"], default="small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--corpus", choices=["panx", "tail"], default="panx")
    parser.add_argument("--against-ray", action="store_true", help="compare whole commands (g)")
    parser.add_argument("--sentences", type=int, default=40_000, help="rows of --against-ray")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it works")
    args = parser.parse_args()
    if args.against_ray:
        result = against_ray(args.size, args.dtype, args.sentences, args.runs)
    else:
        result = measure(args.size, args.dtype, args.corpus, args.runs, args.quick)
    unit = "seconds" if args.against_ray else "tokens_per_second"
    title = ", ".join(str(result[key]) for key in ("size", "dtype", "corpus", "sentences", "device") if key in result)
    show(title, ["procedure", unit.replace("_", " ")], list(result[unit].items()))
    say("  ".join(f"{name}: {value}" for name, value in result["ratios"].items()))
    save(args.json, "throughput", result)


if __name__ == "__main__":
    main()
