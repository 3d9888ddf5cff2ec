"""Everything there is to measure on a GPU, in one run: is it exact, how fast is it, and does the job keep up.

    python benchmarks/gpu.py --runs 3 --json gpu.json
    python benchmarks/gpu.py --quick --device cpu        # all of it, tiny, to see that it works

parity: losses in float32 on the device against one sentence at a time on the CPU, for eight families of encoders; then
bfloat16 and float16 against float32, on the demo's model and corpus, as `precision.py` does for a CPU.

throughput: small, base and large; bfloat16 and float32; PAN-X and a long tail of lengths. (a) the notebook's procedure
and (b) `transformers.pipeline`, in batches of 32; (c) a sorted, padded loop in PyTorch; (d) the best of the loops in
`by_hand.py`: padded or packed, compiled or not, two budgets; (e) the scorer, three shards at a time, as in an actor.
They take turns; figures are medians. The share of the peak is that of a large matrix product, measured here: a token
costs twice the weights of the linear layers (attention's own products are left out, as is usual).

job: the whole job with Ray against the scorer alone, the share of the time that the device waited, and cores used.

Goals: losses within 1e-4; 0.95 of the best loop; half of the peak for base and large in bfloat16 on the long tail, 0.35
on PAN-X; ten times the notebook; the job 0.95 of the scorer, its device waiting less than 5 %. Models have random
weights: their speed does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import by_hand
import corpora
import numpy as np
import precision
import procedures
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import processes, save, say, show
from throughput import Commits, job

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support import families, reference  # noqa: E402
from tokloss_ray import schema  # noqa: E402
from tokloss_ray.config import ScoreConfig  # noqa: E402
from tokloss_ray.inputs.read import read_unit  # noqa: E402
from tokloss_ray.ragged import one_array  # noqa: E402
from tokloss_ray.scoring.plan import make_plan  # noqa: E402
from tokloss_ray.scoring.preflight import preflight  # noqa: E402
from tokloss_ray.scoring.stages import compiling  # noqa: E402
from tokloss_ray.scoring.stages.cutting import encode_unit  # noqa: E402
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer  # noqa: E402
from tokloss_ray.scoring.stages.scorer import Scorer  # noqa: E402

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta-v2", "modernbert", "camembert")
PARTS = ("parity", "precision", "throughput", "job")
DTYPES = ("bfloat16", "float32")
AT_A_TIME = 3
"""Shards that an actor works on at a time on a GPU."""


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
        sizes: of the models. rows: PAN-X rows, and those of the long tail. few: rows of the slow procedures.
        shards: of a million tokens that the loops and the scorer get, by the model's size.
        budgets: padded tokens a micro-batch of the loops. product: rows and columns of the matrix product.
        job_rows: rows of the job.
    """

    sizes: tuple[str, ...]
    rows: tuple[int, int]
    few: int
    shards: dict[str, int]
    shard_tokens: int
    budgets: tuple[int, ...]
    product: int
    job_rows: int


FULL = Scale(
    ("small", "base", "large"), (40_000, 12_000), 1_000, {"small": 12, "base": 4, "large": 2}, 1 << 20,
    (1 << 15, 1 << 17), 8192, 2_000_000,
)  # fmt: skip
QUICK = Scale(("tiny",), (150, 40), 32, {"tiny": 2}, 1 << 11, (1 << 9,), 256, 3_000)


def scorer_of(
    model: Path, data: Path, device: torch.device, **settings: Any
) -> tuple[Scorer, list[pa.Table], tuple[str, ...]]:
    """A scorer, the sequences of all shards, and the tags."""
    gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        # As on a GPU also where there is none.
        settings = {"packing": "on", **settings}
        config = ScoreConfig(model=str(model), input=(str(data),), output=f"{folder}/out", **settings)
        plan = make_plan(preflight(config), gpu, gpu)
    tokenizer = RowTokenizer(plan.job.tokenizer_json)
    cuts = [cut for unit in plan.units for cut in encode_unit(plan.job, tokenizer, unit, read_unit(plan.job, unit))]
    return Scorer(plan.job, None, 1.0 if gpu else 0.0), [cut.sequences for cut in cuts], plan.job.tags


def score_all(scorer: Scorer, shards: list[pa.Table]) -> tuple[list[pa.Table], dict[str, float]]:
    """Score shards, several at a time on a GPU: the results, and seconds for which the device computed and waited."""
    with ThreadPoolExecutor(AT_A_TIME if scorer.queue is not None else 1) as pool:
        done = list(pool.map(scorer.score, shards))
    spent = {name: sum(figures["seconds"][name] for _, figures in done) for name in ("score", "wait")}
    return [table for table, _ in done], spent


# Is it exact?


def parity(device: torch.device, rows: int) -> dict[str, Any]:
    """Largest difference of a loss, relative to one more than the loss, by family, and how they were batched."""
    table = corpora.panx(rows)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "rows.parquet")
        pq.write_table(table, data)
        tokenizer = families.make_tokenizer(Path(scratch, "tokenizer"), table.column("tokens").to_pylist())
        for family in FAMILIES:
            path = families.build(family, Path(scratch, family), tokenizer)
            tags = list(families.TAGS)
            scorer, shards, _ = scorer_of(path, data, device, tokenizer=str(tokenizer), tags=tags, dtype="float32")
            model = by_hand.load(path, torch.float32, torch.device("cpu"))
            results, _ = score_all(scorer, shards)
            worst = max(_off(model, row) for result in results for row in result.to_pylist())
            found[family] = {"difference": worst, "batching": scorer.batching}
    return found


def _off(model: Any, row: dict[str, Any]) -> float:
    wanted = np.array(reference.reference_encoded(model, row[schema.INPUT_IDS], row[schema.LABEL_IDS])["loss"])
    return float((np.abs(np.array(row[schema.LOSS]) - wanted) / (1 + np.abs(wanted))).max())


def low_precision(device: torch.device, limit: int | None) -> dict[str, dict[str, float]]:
    """bfloat16 and float16 against float32 on the device, over the labelled tokens of the demo's corpus."""
    found = {}
    for dtype in ("float32", "bfloat16", "float16"):
        scorer, shards, tags = scorer_of(corpora.DEMO_MODEL, corpora.DEMO_DATA, device, dtype=dtype, limit=limit)
        results, _ = score_all(scorer, shards)
        flat = {
            name: np.concatenate([one_array(table.column(name)).flatten().to_numpy() for table in results])
            for name in (schema.LABEL_IDS, schema.PREDICTED_IDS, schema.LOSS)
        }
        labelled = flat[schema.LABEL_IDS] != schema.IGNORE_INDEX
        found[dtype] = {
            "labels": flat[schema.LABEL_IDS][labelled],
            "predicted_label": np.array(tags)[flat[schema.PREDICTED_IDS][labelled]],
            "loss": flat[schema.LOSS][labelled],
        }
    exact = found.pop("float32")
    return {dtype: precision.compare(exact, other, dtype) for dtype, other in found.items()}


# How fast is it?


def product_tflops(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """TFLOP/s of a product of two square matrices, the best of twenty."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(20):
        wait_for(device)
        begin = time.perf_counter()
        a @ b
        wait_for(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - begin) / 1e12)
    return best


def wait_for(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def throughput(size: str, dtype: str, corpus: str, device: torch.device, scale: Scale, runs: int) -> dict[str, Any]:
    """Tokens per second of every way, in turn."""
    kind = getattr(torch, dtype)
    table = corpora.panx(scale.rows[0]) if corpus == "panx" else corpora.long_tail(scale.rows[1])
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = corpora.make_model(size, Path(scratch) / "model"), Path(scratch) / "rows.parquet"
        pq.write_table(table, data)
        scorer, (first, *_), _ = scorer_of(folder, data, device, dtype=dtype, shard_tokens=1 << 30, compile="on")
        # In float32 a GPU is ten times as slow, and every way as well.
        tokens = scale.shard_tokens // (4 if dtype == "float32" else 1)
        shards = [_repeated(first, tokens)] * scale.shards[size]
        rows = by_hand.Rows(pa.concat_tables(shards))
        few = table.take(list(range(0, table.num_rows, max(1, table.num_rows // scale.few))))
        encoded_few = procedures.encode(folder, few)
        tokens_of_few = procedures.tokens_of(encoded_few)
        model = by_hand.load(folder, kind, device)
        pad_id, backend = int(model.config.pad_token_id), compiling.BACKEND
        eager, compiled = (by_hand.make_step(model, compile, backend) for compile in (False, True))

        def scored() -> float:
            begin = time.perf_counter()
            score_all(scorer, shards)
            return rows.tokens / (time.perf_counter() - begin)

        ways: dict[str, Callable[[], float]] = {
            "a notebook": lambda: procedures.reference(model, folder, encoded_few),
            "b pipeline": lambda: procedures.hf_pipeline(model, folder, few, tokens_of_few, str(device)),
            "c sorted loop": lambda: by_hand.padded_loop(eager, rows, pad_id, scale.budgets[0], device),
            "e scorer": scored,
        }
        for budget in scale.budgets:
            for name, step in (("eager", eager), ("compiled", compiled)):
                ways[f"d padded, {name}, {budget:,}"] = lambda step=step, budget=budget: by_hand.padded_loop(
                    step, rows, pad_id, budget, device
                )
                ways[f"d packed, {name}, {budget:,}"] = lambda step=step, budget=budget: by_hand.packed_loop(
                    model, step, rows, budget, device
                )
        rates: dict[str, list[float]] = {}
        failed: dict[str, str] = {}
        for run in range(runs + 1):  # the first is for kernels to be chosen and compiled
            for name, way in ways.items():
                if name in failed:
                    continue
                try:
                    rate = way()
                except Exception as error:  # a loop that this GPU has no memory or no kernel for
                    failed[name] = f"{type(error).__name__}: {error}".split("\n")[0]
                    continue
                if run:
                    rates.setdefault(name, []).append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peak = product_tflops(kind, device, scale.product)
    flops = 2 * corpora.parameters(size) * medians["e scorer"] / 1e12
    best = max(rate for name, rate in medians.items() if name[0] in "cd")
    return {
        "tokens_per_second": {name: round(value) for name, value in sorted(medians.items())},
        "runs": {name: [round(value) for value in values] for name, values in sorted(rates.items())},
        "failed": failed,
        "batching": scorer.batching,
        "compiled": scorer.compiled,
        "batch_tokens": scorer.budget.tokens,
        "product_tflops": round(peak, 3),
        "ratios": {
            "scorer / best loop": round(medians["e scorer"] / best, 3),
            "scorer / notebook": round(medians["e scorer"] / medians["a notebook"], 2),
            "scorer / pipeline": round(medians["e scorer"] / medians["b pipeline"], 2),
            "share of peak": round(flops / peak, 3),
        },
    }


def _repeated(sequences: pa.Table, tokens: int) -> pa.Table:
    """The first sequences of a table, again and again, up to so many tokens."""
    lengths = by_hand.Rows(sequences).lengths
    times = -(-tokens // int(lengths.sum()))
    many = pa.concat_tables([sequences] * times).combine_chunks()
    return many.slice(0, max(1, int(np.searchsorted(np.cumsum(np.tile(lengths, times)), tokens))))


# Does the job keep up?


class Cores(threading.Thread):
    """Cores that this process and its descendants use while shards are committed, looked at every second."""

    def __init__(self, commits: Commits) -> None:
        super().__init__(daemon=True)
        self.commits, self.over = commits, threading.Event()
        self.seen: list[tuple[float, float]] = []
        self.start()

    def run(self) -> None:
        known: dict[int, float] = {}
        total = 0.0
        while not self.over.wait(1.0):
            if self.commits.steady():
                now = {process.pid: _seconds(process) for process in processes()}
                # Processes end, and what they have used counts all the same; a new one began since the last look.
                if known:
                    total += sum(max(0.0, seconds - known.get(pid, 0.0)) for pid, seconds in now.items())
                known |= now
                self.seen.append((time.perf_counter(), total))

    def used(self) -> float | None:
        """None where the steady phase was too short to be looked at twice."""
        self.over.set()
        if len(self.seen) < 2:
            return None
        (begin, before), (end, after) = self.seen[0], self.seen[-1]
        return round((after - before) / (end - begin), 2)


def _seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:
        return 0.0


def whole_job(size: str, dtype: str, device: torch.device, scale: Scale) -> dict[str, Any]:
    """The job with Ray, and the scorer alone on the same rows, before and after it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = corpora.make_model(size, Path(scratch) / "model"), Path(scratch) / "rows.parquet"
        rows = min(scale.job_rows, scale.rows[0])
        table = corpora.panx(rows)
        pq.write_table(table, data)
        many = Path(scratch) / "many.parquet"
        pq.write_table(corpora.repeated(table, scale.job_rows // rows), many, row_group_size=2_500)

        def alone() -> float:
            scorer, (first, *_), _ = scorer_of(folder, data, device, dtype=dtype, shard_tokens=1 << 30)
            shards = [_repeated(first, scale.shard_tokens)] * scale.shards[size]
            score_all(scorer, shards[:1])
            begin = time.perf_counter()
            score_all(scorer, shards)
            return by_hand.Rows(pa.concat_tables(shards)).tokens / (time.perf_counter() - begin)

        before = alone()
        commits = Commits()
        cores = Cores(commits)
        steady, summary = job(folder, many, dtype, scale.shard_tokens if scale is QUICK else None, commits)
        rates = [before, alone()]
    return {
        "size": size,
        "dtype": dtype,
        "tokens": summary.totals.tokens,
        "tokens_per_second": {"job": round(steady), "scorer alone": round(statistics.mean(rates))},
        "device_wait": summary.totals.device_wait,
        "cores": cores.used(),
        "ratios": {"job / scorer": round(steady / statistics.mean(rates), 3)},
    }


# All of it.


def goals(result: dict[str, Any]) -> dict[str, float]:
    """The worst of each kind of figure, which `floors.json` holds to the goals; only of what was measured."""
    found: dict[str, float] = {}
    if "parity" in result:
        found["parity, worst"] = max(family["difference"] for family in result["parity"].values())
    for dtype, figures in result.get("precision", {}).items():
        found[f"{dtype}, mean absolute difference"] = figures["mean absolute difference"]
        found[f"{dtype}, share of changed predictions"] = figures["share of them"]
    measured: dict[str, Any] = result.get("throughput", {})
    for ratio in ("scorer / best loop", "scorer / notebook"):
        if measured:
            found[f"{ratio}, least"] = min(figures["ratios"][ratio] for figures in measured.values())
    for corpus in ("tail", "panx"):
        shares = [
            figures["ratios"]["share of peak"]
            for name, figures in measured.items()
            if name.endswith(f"bfloat16, {corpus}") and not name.startswith("small")
        ]
        if shares:
            found[f"share of peak, {corpus}, least"] = min(shares)
    if "job" in result:
        found["job / scorer"] = result["job"]["ratios"]["job / scorer"]
        found["device wait"] = result["job"]["device_wait"] or 0.0
    return found


@contextmanager
def without_kernels(quick: bool) -> Iterator[None]:
    """In the quick mode the compiler follows the code and leaves it as it is: kernels would take minutes on a CPU."""
    before = compiling.BACKEND
    compiling.BACKEND = "eager" if quick else before
    try:
        yield
    finally:
        compiling.BACKEND = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated (default: all)")
    parser.add_argument("--size", choices=FULL.sizes, action="append", help="a size; may be repeated (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="of the throughput; may be repeated")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few rows, to see that it works")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "This machine has no GPU that PyTorch can use: --quick --device cpu tries all of it without.\n")
    device, scale = torch.device(args.device), QUICK if args.quick else FULL
    parts, sizes = args.only or PARTS, args.size if args.size and not args.quick else scale.sizes
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(0) if args.device == "cuda" else "cpu"}
    with without_kernels(args.quick):
        if "parity" in parts:
            result["parity"] = parity(device, 40 if args.quick else 300)
            shown = [[name, f"{f['difference']:.1e}", f["batching"]] for name, f in result["parity"].items()]
            show("losses in float32 against the CPU's loop", ["family", "largest difference", "batching"], shown)
        if "precision" in parts:
            result["precision"] = low_precision(device, 100 if args.quick else None)
            for dtype, figures in result["precision"].items():
                show(f"{dtype} against float32", ["", "value"], [[name, value] for name, value in figures.items()])
        if "throughput" in parts:
            result["throughput"] = {}
            for size in sizes:
                for dtype in args.dtype or DTYPES:
                    for corpus in ("panx", "tail"):
                        name = f"{size}, {dtype}, {corpus}"
                        figures = throughput(size, dtype, corpus, device, scale, 1 if args.quick else args.runs)
                        result["throughput"][name] = figures
                        show(name, ["procedure", "tokens/s"], [*figures["tokens_per_second"].items()])
                        say("  ".join(f"{ratio}: {value}" for ratio, value in figures["ratios"].items()))
                        for way, why in figures["failed"].items():
                            say(f"{way}: failed, {why}")
                        save(args.json, "gpu", result)  # what there is, should the machine be taken away
        if "job" in parts:
            middle = sizes[len(sizes) // 2]
            result["job"] = whole_job(middle, "bfloat16" if args.device == "cuda" else "float32", device, scale)
            shown = {**result["job"]["tokens_per_second"], **result["job"]["ratios"]}
            shown |= {"device wait": result["job"]["device_wait"], "cores": result["job"]["cores"]}
            show(f"the job, {middle}", ["", "value"], [[name, value] for name, value in shown.items()])
    result["goals"] = goals(result)
    show(str(result["device"]), ["goal", "value"], [[name, value] for name, value in result["goals"].items()])
    save(args.json, "gpu", result)


if __name__ == "__main__":
    main()
