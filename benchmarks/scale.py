"""How many GPUs the CPU stages of this machine feed, what a shard costs the driver, and how memory grows with rows.

    python benchmarks/scale.py                       all three parts: some fifteen minutes on two cores
    python benchmarks/scale.py --part feed           one part; --gpu-rate, --shard-tokens and --actors as wanted

The whole job runs, with its planning, its Ray and its commits, but for the model: a stand-in takes each shard, waits
as long as a GPU of so many tokens per second would (`--gpu-rate`), and answers random numbers. It needs no torch and
next to no CPU, so that many fit on one machine. Readers and stand-ins begin together, when all stand-ins have started;
queues are empty then. Every line is a process of its own.

feed     GPUs of `--gpu-rate`, more and more of them, until the CPU stages have no more to give. `tokens/s` is the rate
         of commits without the first two shards and the last of each stand-in, `of linear` its share of what so many
         GPUs take, `overall` the rate from the common start to the last commit, where filling and draining count too
         (the longer the run, the closer the two). The largest `tokens/s` is what this machine feeds; divided by the
         GPU's rate, the point of saturation.
actors   up to 64 stand-ins that are so slow that all of them together need less than the CPU stages can give. Should
         be linear to within 10 %: what is missing is the cost of handing shards to many actors. A process of Ray that
         waits takes 0.5 to 1 % of a core; 64 of them are half a core that a real cluster has elsewhere.
memory   peak memory of all processes (pages that they share count once) for 10 thousand rows to 1 million. Should stay
         level: 1 million at most 1.1 times 100 thousand.

`driver CPU` is the processor time, for each shard, of the process that plans and hands shards out. From it and from the
saturated rate follow, on paper, the CPU cores that a GPU needs and what one driver can serve.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from common import Memory, StandIn, machine, processes, role_of, save, say, settings, show, write_corpus

from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.schema import INPUT_IDS, PADDED
from tokloss_ray.scoring import begin, driver, pipeline
from tokloss_ray.scoring.on_ray.hardware import Actors
from tokloss_ray.scoring.stages.shard import Shard, from_row, to_row

TOKENS_PER_ROW = 18.7  # of the bundled corpus with the bundled tokenizer
LINEAR, MEMORY_GROWTH = 0.9, 1.1
BILLION = 1_000_000_000
CORPUS_ROWS = 1_000_000


class Barrier:
    """Lets several processes begin at the same moment: each leaves a file and waits for those of the others."""

    def __init__(self, folder: str, size: int) -> None:
        self.folder, self.size = Path(folder), size

    def arrive(self) -> None:
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False):
            pass

    def wait(self) -> None:
        while len(list(self.folder.iterdir())) < self.size:
            time.sleep(0.1)


def stand_in_actor(barrier: Barrier, rate: float, shard_tokens: int) -> type:
    """A class in place of the actor that holds the model."""

    class ScoreActor:
        def __init__(self, jobs_ref: ray.ObjectRef, *_: Any) -> None:
            self.stand_in = StandIn(len(ray.get(jobs_ref)[0].tags))
            # The first call imports what it needs; 64 of them at once would take two cores for half a minute.
            warm = Shard({}, pa.table({INPUT_IDS: pa.array([[0] * shard_tokens], pa.list_(pa.int32()))}), pa.table({}))
            shard = from_row(to_row(warm))
            to_row(shard._replace(sequences=self.stand_in.answer(shard.sequences)[0]))
            assert "torch" not in sys.modules, "64 of them would not fit into memory"
            barrier.arrive()

        def __call__(self, batch: pa.Table) -> pa.Table:
            barrier.wait()
            shard = from_row(batch)
            start = time.perf_counter()
            sequences, tokens = self.stand_in.answer(shard.sequences)
            time.sleep(max(0.0, tokens / rate - (time.perf_counter() - start)))
            shard.about["seconds"]["score"] = time.perf_counter() - start
            about = {**shard.about, "padded_tokens": tokens, "batch_tokens": 1024, "batching": PADDED}
            return to_row(shard._replace(about=about, sequences=sequences))

    return ScoreActor


def late_reader(barrier: Barrier) -> Any:
    """The read stage, which begins when all stand-ins have started."""

    def read_and_encode(batch: pa.Table, jobs_ref: ray.ObjectRef, counter: Any = None) -> Any:
        from tokloss_ray.scoring import pipeline

        barrier.wait()
        yield from pipeline.read_and_encode(batch, jobs_ref, counter)

    return read_and_encode


class Clock(driver.Watcher):
    """Notes the common start and each commit, with the processor time of the driver."""

    def __init__(self, barrier: Barrier) -> None:
        self.commits: list[tuple[float, int]] = []
        self.barrier = barrier
        threading.Thread(target=self._await, daemon=True).start()

    def _await(self) -> None:
        self.barrier.wait()
        self.start, self.cpu = time.time(), time.process_time()

    def committed(self, record: dict[str, Any]) -> None:
        self.commits.append((time.time(), record.tokens))
        self.cpu_then = time.process_time()

    def figures(self, actors: int) -> dict[str, Any]:
        """Rates in tokens per second, seconds, and the driver's processor time."""
        times, tokens = zip(*self.commits, strict=True)
        steady = None
        if len(times) > 4 * actors:  # without the first two and the last of each stand-in
            first, last = 2 * actors - 1, len(times) - actors - 1
            steady = sum(tokens[first + 1 : last + 1]) / (times[last] - times[first])
        return {
            "shards": len(times),
            "tokens": sum(tokens),
            "start": self.start,
            "end": times[-1],
            "tokens_per_second": steady,
            "overall": sum(tokens) / (times[-1] - self.start),
            "driver_cpu_s": self.cpu_then - self.cpu,
        }


def run_point(point: dict[str, Any]) -> dict[str, Any]:
    """One job with stand-ins, in this process."""
    actors, barrier = point["actors"], Barrier(point["barrier"], point["actors"])
    pipeline.ScoreActor = stand_in_actor(barrier, point["gpu_rate"], point["shard_tokens"])
    pipeline.read_and_encode = late_reader(barrier)
    # Next to no CPU for each, as on a machine that has the GPUs and the cores that go with them.
    begin.plan_actors = driver.plan_actors = lambda config, hardware: Actors(actors, actors, 0.001, 0, 1)
    clock = Clock(barrier)
    data = Path(point["data"])
    config = ScoreConfig(
        model=point["model"],
        input=data,
        output=point["output"],
        shard_tokens=point["shard_tokens"],
        limit=point["rows"],
        **settings(data),
    )
    summary = driver.score(config, clock)
    return {**clock.figures(actors), "rows": summary.totals.rows}


class Usage(threading.Thread):
    """Processor time of a process (the driver) and its descendants, or of another process's, by what they are."""

    def __init__(self, root: int, above: int | None = None) -> None:
        super().__init__(daemon=True)
        self.root, self.above, self.over = root, above or root, threading.Event()
        self.used: dict[int, tuple[str, float]] = {}
        self.samples: list[tuple[float, dict[str, float]]] = []
        self.start()

    def run(self) -> None:
        while not self.over.wait(2.0):
            for process in processes(self.above):
                try:
                    role, times = role_of(process, self.root), process.cpu_times()
                except psutil.Error:
                    continue
                # A worker has its role from its first task on; before it is one that waits.
                self.used[process.pid] = (role, times.user + times.system)
            sums: dict[str, float] = {}
            for role, seconds in self.used.values():
                sums[role] = sums.get(role, 0.0) + seconds
            self.samples.append((time.time(), sums))

    def between(self, start: float, end: float) -> dict[str, float]:
        """Seconds by role between two moments, as far as samples tell."""
        inside = [sums for at, sums in self.samples if start <= at <= end + 2]
        if len(inside) < 2:
            return {}
        return {role: inside[-1][role] - inside[0].get(role, 0.0) for role in inside[-1]}


def run_apart(
    script: str, point: dict[str, Any], name: str, above: int | None = None, watch_memory: bool = False
) -> tuple[dict[str, Any], dict[str, float], Memory | None]:
    """What `run_point` of a script finds in a process of its own, watched from outside: its figures, the seconds of
    processor time by role, and its memory if that is asked for.

    name: of the run, if it fails. above: of `Usage`.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        barrier, result = Path(folder, "barrier"), Path(folder, "result.json")
        barrier.mkdir()
        point = {**point, "barrier": str(barrier), "output": f"{folder}/out"}
        command = [sys.executable, script, "--point", json.dumps(point), "--json", str(result)]
        with Path(folder, "stderr").open("w") as errors:  # where Ray warns of things that this job knows
            process = subprocess.Popen(command, stderr=errors)
        usage = Usage(process.pid, above)
        memory = Memory(process.pid) if watch_memory else None
        if process.wait():
            raise SystemExit(f"{name} failed:\n{Path(folder, 'stderr').read_text()}")
        usage.over.set()
        found = json.loads(result.read_text())
        return found, usage.between(found["start"], found["end"]), memory


def measure(point: dict[str, Any], watch_memory: bool = False) -> dict[str, Any]:
    """`run_point` in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    name = f"the run of {point['actors']} stand-ins"
    found, used, memory = run_apart(__file__, point, name, watch_memory=watch_memory)
    seconds = found.pop("end") - found.pop("start")
    found |= {name: point[name] for name in ("actors", "gpu_rate", "shard_tokens")}
    found |= {
        "seconds": round(seconds, 1),
        "driver_cpu_ms_per_shard": round(found["driver_cpu_s"] * 1e3 / found["shards"], 1),
        "cpu_s": {role: round(cpu, 2) for role, cpu in used.items()},
    }
    if found["tokens_per_second"]:
        found["of_linear"] = round(found["tokens_per_second"] / (point["actors"] * point["gpu_rate"]), 3)
    if memory:
        found["peak_memory_mb"] = round(memory.stop() / 1e6)
        found["memory_mb"] = memory.tenths()
    steady = f"{found['tokens_per_second']:,.0f} tokens/s" if found["tokens_per_second"] else "too short for a rate"
    say(f"  {point['actors']} stand-ins, {found['shards']:,} shards in {found['seconds']} s: {steady}")
    return found


LEAST_SHARDS = 7


def rows_for(actors: int, gpu_rate: float, shard_tokens: int, seconds: float, fed: float) -> int:
    """Rows of a run that should last so long, of some shards for each stand-in at least."""
    tokens = max(seconds * min(actors * gpu_rate, fed), LEAST_SHARDS * actors * shard_tokens)
    return round(tokens / TOKENS_PER_ROW)


def show_rates(title: str, found: list[dict[str, Any]]) -> None:
    """The points of one of the first two parts."""
    columns = ["stand-ins", "shards", "tokens/s", "of linear", "overall", "driver CPU, ms a shard", "of cores busy"]
    cores = machine()["cores"]
    rows = [
        [
            f"{f['actors']}",
            f["shards"],
            f"{f['tokens_per_second'] or 0:,.0f}",
            f"{f.get('of_linear', 0):.2f}",
            f"{f['overall']:,.0f}",
            f["driver_cpu_ms_per_shard"],
            f"{sum(f['cpu_s'].values()) / f['seconds'] / cores:.0%}",
        ]
        for f in found
    ]
    show(title, columns, rows)


def part_feed(base: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """GPUs of one rate, until the CPU stages have no more to give."""
    found, fed = [], float("inf")
    for actors in args.actors:
        rows = rows_for(actors, args.gpu_rate, args.shard_tokens, args.seconds, fed)
        point = {**base, "actors": actors, "gpu_rate": args.gpu_rate, "shard_tokens": args.shard_tokens, "rows": rows}
        found.append(measure(point))
        fed = max(found[-1]["overall"], found[-1]["tokens_per_second"] or 0)
    show_rates(f"GPUs of {args.gpu_rate:,} tokens/s, shards of {args.shard_tokens:,} tokens", found)
    large = 8 * args.shard_tokens
    rows = rows_for(args.actors[-1], args.gpu_rate, large, args.seconds, fed)
    large_shards = measure({**point, "shard_tokens": large, "rows": rows})
    show_rates(f"the same, shards of {large:,} tokens", [large_shards])
    cores, limit = machine()["cores"], max(f["tokens_per_second"] or f["overall"] for f in found)
    linear = [f["actors"] for f in found if f.get("of_linear", 0) >= LINEAR]
    figures = {
        "points": found,
        "large_shards": large_shards,
        "most_tokens_per_second": round(limit),
        "gpus_fed": round(limit / args.gpu_rate, 2),
        "cores_per_gpu": round(cores * args.gpu_rate / limit, 2),
        "linear_up_to": max(linear, default=0),
        "saturated": found[-1].get("of_linear", 1) < LINEAR,
    }
    if figures["saturated"]:
        say(
            f"{cores} cores feed {limit:,.0f} tokens/s, that is {figures['gpus_fed']} GPUs of {args.gpu_rate:,} "
            f"tokens/s ({figures['cores_per_gpu']} cores for each); linear to within 10 % up to "
            f"{figures['linear_up_to']} GPUs"
        )
    else:
        say(f"not saturated by {args.actors[-1]} GPUs of {args.gpu_rate:,} tokens/s: give more with --actors")
    return figures


def part_actors(base: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Many slow stand-ins, whose sum the CPU stages can feed."""
    found = []
    for actors in args.many:
        rows = rows_for(actors, args.slow_rate, args.slow_shard_tokens, args.seconds, float("inf"))
        point = {"actors": actors, "gpu_rate": args.slow_rate, "shard_tokens": args.slow_shard_tokens, "rows": rows}
        found.append(measure({**base, **point}))
    show_rates(f"stand-ins of {args.slow_rate:,} tokens/s, shards of {args.slow_shard_tokens:,} tokens", found)
    met = all(f.get("of_linear", 0) >= LINEAR for f in found)
    say(f"linear to within 10 % up to {args.many[-1]} stand-ins: {'yes' if met else 'no'}")
    return {"points": found, "met": met}


def part_memory(base: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of all processes by rows."""
    found = []
    for rows in args.rows:
        point = {"actors": 1, "gpu_rate": args.gpu_rate, "shard_tokens": args.memory_shard_tokens, "rows": rows}
        found.append(measure({**base, **point}, watch_memory=True))
    show(
        f"peak memory of all processes, one GPU of {args.gpu_rate:,} tokens/s",
        ["rows", "shards", "tokens/s overall", "MB", "driver CPU, ms a shard"],
        [
            [f"{f['rows']:,}", f["shards"], f"{f['overall']:,.0f}", f["peak_memory_mb"], f["driver_cpu_ms_per_shard"]]
            for f in found
        ],
    )
    say("by kind of process, median of each tenth of the longest run, MB:")
    for role, megabytes in found[-1]["memory_mb"].items():
        say(f"  {role:14}" + "".join(f"{value:7,}" for value in megabytes))
    growth = found[-1]["peak_memory_mb"] / found[-2]["peak_memory_mb"] if len(found) > 1 else None
    if growth:
        met = "met" if growth <= MEMORY_GROWTH else "not met"
        most, before = args.rows[-1], args.rows[-2]
        say(f"{most:,} rows take {growth:.2f} times the memory of {before:,}; target {MEMORY_GROWTH}: {met}")
    return {"points": found, "growth": growth and round(growth, 3)}


def on_paper(feed: dict[str, Any], gpu_rate: int) -> dict[str, Any]:
    """What a billion sentences would take, from what was measured.

    The driver's processor time is taken apart, by least squares, into a share of the time that passes, in which it
    looks after the run, and a cost for each shard.
    """
    points = [*feed["points"], feed["large_shards"]]
    given = np.array([[f["seconds"], f["shards"]] for f in points])
    (idle, each), *_ = np.linalg.lstsq(given, np.array([f["driver_cpu_s"] for f in points]), rcond=None)
    shard = feed["large_shards"]["tokens"] / feed["large_shards"]["shards"]
    tokens = BILLION * sum(f["tokens"] for f in points) / sum(f["rows"] for f in points)
    hours, limit = tokens / gpu_rate / 3600, (1 - idle) / each
    cores = feed["cores_per_gpu"]
    paper = {
        "tokens": round(tokens),
        "shards": round(tokens / shard),
        "driver_ms_per_shard": round(each * 1e3, 1),
        "driver_share_of_time": round(idle, 3),
        "driver_shards_per_second": round(limit, 1),
        "gpus_of_one_driver": int(limit * shard / gpu_rate),
        "gpu_hours": round(hours, 1),
        "cores_per_gpu": cores,
        "cpu_core_hours": round(hours * cores, 1),
    }
    say(
        f"On paper, a billion sentences: {tokens / 1e9:.1f} billion tokens, {tokens / shard:,.0f} shards, {hours:.1f} "
        f"hours of one GPU of {gpu_rate:,} tokens/s and {hours * cores:.1f} of a CPU core ({cores} cores for each GPU)."
        f" The driver takes {each * 1e3:.0f} ms a shard and {idle:.1%} of a core all the time; it could hand out "
        f"{limit:.0f} shards/s, which is work for {paper['gpus_of_one_driver']} GPUs."
    )
    return paper


def numbers(text: str) -> list[int]:
    """`1,2,4` as a list."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=["feed", "actors", "memory"], help="may be repeated")
    parser.add_argument("--data", type=Path, default=DATA, help="a Parquet file (default: the bundled corpus)")
    parser.add_argument("--model", default=str(MODEL), help="its tokenizer and tags are used, never its weights")
    parser.add_argument("--seconds", type=float, default=20, help="about how long each point of a rate lasts")
    parser.add_argument("--gpu-rate", type=int, default=200_000, help="tokens per second of a GPU")
    parser.add_argument("--shard-tokens", type=int, default=1 << 17, help="tokens of a shard (feed)")
    parser.add_argument("--actors", type=numbers, default="1,2,3,4,8", help="how many GPUs (feed)")
    parser.add_argument("--slow-rate", type=int, default=1_000, help="tokens per second of a stand-in (actors)")
    parser.add_argument("--slow-shard-tokens", type=int, default=1 << 14, help="tokens of a shard (actors)")
    parser.add_argument("--many", type=numbers, default="1,2,4,8,16,32,64", help="how many stand-ins (actors)")
    parser.add_argument("--rows", type=numbers, default="10000,100000,1000000", help="how many rows (memory)")
    parser.add_argument("--memory-shard-tokens", type=int, default=1 << 16, help="tokens of a shard (memory)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few stand-ins and rows")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        Path(args.json).write_text(json.dumps(run_point(args.point)))
        return
    if args.quick:
        args.seconds, args.actors, args.many, args.rows = 1, [1, 2], [2], [1_000, 2_000]
        args.shard_tokens = args.slow_shard_tokens = args.memory_shard_tokens = 1 << 12
    figures: dict[str, Any] = {}
    parts = {"feed": part_feed, "actors": part_actors, "memory": part_memory}
    with tempfile.TemporaryDirectory() as folder:
        base = {
            "model": args.model,
            "data": str(write_corpus(Path(folder, "in"), max(CORPUS_ROWS, *args.rows), args.data)),
        }
        for name in args.part or parts:
            figures[name] = parts[name](base, args)
            save(args.json, "scale", figures)
        if "feed" in figures:
            figures["billion_sentences"] = on_paper(figures["feed"], args.gpu_rate)
    save(args.json, "scale", figures)


if __name__ == "__main__":
    main()
