"""What the stages beside the model cost: tokens per second per core, and Ray's own share of each shard.

    python benchmarks/stages.py                               the bundled corpus and model
    python benchmarks/stages.py corpus.parquet --model MODEL  words in `tokens`, tags in `ner_tags`

The first table: one thread runs read, encode, decode and commit one after another over the same rows, without Ray; in
place of the model there are random numbers. The rows are those of the data, once: each distinct word is tokenised
once, so that copies of rows (`--rows`) would flatter the encoding. `rows` is making a shard a row and back, as often as
it happens on its way.
A rate of 400,000 tokens/s means that one core keeps up with a model of 400,000 tokens/s in that stage; the stages
`together` tell how many tokens/s one core can feed. `wall` is elapsed time (medians, with least and most), which
includes waiting for the disk and for other programs; `CPU` counts processor time alone.

The second table: shards that are ready-made go through Ray Data's three stages, where nothing is done with them. `ms a
shard` is the time from one to the next, on all cores; `driver CPU` is the processor time of the one process that
there is once in a cluster, and so bounds its shards per second; `all CPU` that of all processes, copies through the
object store included.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from common import StandIn, count_tokens, machine, processes, save, say, settings, show, spread, write_corpus

from tokloss_ray.cluster.session import ray_session
from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.inputs.unit import FilePart, ReadUnit
from tokloss_ray.output.names import LEASE
from tokloss_ray.ragged import list_lengths, one_array
from tokloss_ray.schema import INPUT_IDS, PADDED
from tokloss_ray.scoring import pipeline
from tokloss_ray.scoring.folder import clear, start_run
from tokloss_ray.scoring.lease import Lease
from tokloss_ray.scoring.on_ray.hardware import Actors
from tokloss_ray.scoring.plan import Plan, make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages.commit import commit_shard
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.decode import decode_shard
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.scoring.stages.shard import Shard, from_row, to_row
from tokloss_ray.scoring.work import Work

TARGET = 400_000
STAGES = ("read", "encode", "rows", "decode", "commit")
WARM_UP = 10
"""Shards until Ray's workers have started and imported what they need."""


def begin(config: ScoreConfig) -> Plan:
    """The plan, with the output folder as a run would leave it to the stages."""
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    Path(config.output, LEASE).unlink(missing_ok=True)
    Lease(config.output, plan.job.fingerprint).claim()  # commits ask for it
    clear(config.output)
    start_run(plan, {})
    return plan


def run_stages(plan: Plan) -> tuple[int, dict[str, tuple[float, float]]]:
    """All units through all stages; tokens, and seconds of elapsed and of processor time by stage."""
    job, tokenizer, stand_in = plan.job, RowTokenizer(plan.job.tokenizer_json), StandIn(len(plan.job.tags))
    wall: dict[str, float] = defaultdict(float)
    cpu: dict[str, float] = defaultdict(float)
    tokens = 0

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start, start_cpu = time.perf_counter(), time.process_time()
        done = work()
        wall[stage] += time.perf_counter() - start
        cpu[stage] += time.process_time() - start_cpu
        return done

    for unit in plan.units:
        chunks = timed("read", lambda unit=unit: list(read_unit(job, unit)))
        cut = timed(
            "encode",
            lambda unit=unit, chunks=chunks: list(encode_unit(job, tokenizer, unit, chunks)),
        )
        for encoded in cut:
            there = timed("rows", lambda encoded=encoded: from_row(to_row(encoded)))
            scored, count = answered(there, stand_in)
            tokens += count
            back = timed("rows", lambda scored=scored: from_row(to_row(scored)))
            decoded = timed(
                "decode", lambda back=back: decode_shard(job, back.about["sources"], back.sequences, back.errors)
            )
            timed("commit", lambda back=back, decoded=decoded: commit_shard(job, back.about, decoded))
    return tokens, {stage: (wall[stage], cpu[stage]) for stage in STAGES}


def answered(shard: Shard, stand_in: StandIn) -> tuple[Shard, int]:
    """The shard as the model actor would give it on, and its tokens."""
    sequences, tokens = stand_in.answer(shard.sequences)
    figures = {"padded_tokens": tokens, "batch_tokens": 1024, "batching": PADDED}
    return shard._replace(about={**shard.about, "storage_retries": 0, **figures}, sequences=sequences), tokens


def measure_stages(config: ScoreConfig, runs: int) -> dict[str, Any]:
    """Tokens per second by stage, and of all one after another; one run before them warms the caches."""
    plan = begin(config)
    tokens, _ = run_stages(plan)
    rates: dict[str, list[float]] = defaultdict(list)
    cpu_rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        _, seconds = run_stages(plan)
        seconds["together"] = (sum(wall for wall, _ in seconds.values()), sum(cpu for _, cpu in seconds.values()))
        for stage, (wall, cpu) in seconds.items():
            rates[stage].append(tokens / wall)
            cpu_rates[stage].append(tokens / max(cpu, 1e-9))
    return {
        "tokens": tokens,
        "rows": plan.rows,
        "shard_tokens": plan.job.shard_tokens,
        "wall": {stage: spread(values, 0) for stage, values in rates.items()},
        "cpu": {stage: spread(values, 0) for stage, values in cpu_rates.items()},
    }


def some_shard(plan: Plan, tokens: int) -> Shard:
    """An encoded shard of about so many tokens, made of those of the corpus."""
    tokenizer = RowTokenizer(plan.job.tokenizer_json)
    parts = [
        shard for unit in plan.units for shard in encode_unit(plan.job, tokenizer, unit, read_unit(plan.job, unit))
    ]
    there = sum(count_tokens(shard.sequences) for shard in parts)
    sequences = pa.concat_tables([shard.sequences for shard in parts] * -(-tokens // there))
    lengths = list_lengths(one_array(sequences.column(INPUT_IDS)))
    rows = int(np.searchsorted(np.cumsum(lengths), tokens)) + 1
    return parts[0]._replace(sequences=sequences.slice(0, rows).combine_chunks())


def measure_ray(plan: Plan, tokens: int, shards: int) -> dict[str, Any]:
    """Ready-made shards of so many tokens through the graph of the job, in which each stage only passes on."""
    encoded = some_shard(plan, tokens)
    scored, real = answered(encoded, StandIn(len(plan.job.tags)))
    first, second = ray.put(to_row(encoded)), ray.put(to_row(scored))

    def read_and_encode(batch: pa.Table, *_: Any) -> Iterator[pa.Table]:
        for _ in range(batch.num_rows):
            yield ray.get(first)

    class ScoreActor:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, batch: pa.Table) -> pa.Table:
            from_row(batch)
            return ray.get(second)

    def decode_and_commit(batch: pa.Table, *_: Any) -> pa.Table:
        from_row(batch)
        return pa.table({"result": ['{"jobs": [0], "record": {}}']})

    ours = {"read_and_encode": read_and_encode, "ScoreActor": ScoreActor, "decode_and_commit": decode_and_commit}
    theirs = {name: getattr(pipeline, name) for name in ours}
    part = FilePart("", "", "", "parquet", 0, 0, 0, 0)
    work = [Work(ReadUnit(number, (part,)), {0: {}}) for number in range(shards + WARM_UP)]
    for name, stage in ours.items():
        setattr(pipeline, name, stage)
    try:
        job = replace(plan.job, shard_tokens=tokens)
        for number, _ in enumerate(pipeline.run([job], work, Actors(1, 1, 0.01, 0, 1), 300), 1):
            if number == WARM_UP:
                start, driver, everything = time.perf_counter(), time.process_time(), _cpu_seconds()
    finally:
        for name, stage in theirs.items():
            setattr(pipeline, name, stage)
    ended = {
        "ms_per_shard": time.perf_counter() - start,
        "driver_cpu_ms": time.process_time() - driver,
        "all_cpu_ms": _cpu_seconds() - everything,
    }
    return {"tokens": real, "shards": shards, **{name: value * 1e3 / shards for name, value in ended.items()}}


def _cpu_seconds() -> float:
    total = 0.0
    for process in processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=DATA, help="Parquet file (default: the bundled corpus)")
    parser.add_argument("--model", default=str(MODEL), help="its tokenizer and tags are used, never its weights")
    parser.add_argument(
        "--rows", type=int, help="rows, the data repeated with other ids if need be (default: the data once)"
    )
    parser.add_argument("--runs", type=int, default=5, help="of which the median counts")
    parser.add_argument("--only", choices=["stages", "ray"], help="one of the two tables alone")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 2,000 rows, one run")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.runs = 2_000, 1
    rows = args.rows or pq.read_table(args.data, columns=[]).num_rows
    pa.set_cpu_count(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder, "in"), rows, args.data)
        config = ScoreConfig(model=args.model, input=corpus, output=f"{folder}/out", **settings(corpus))
        if args.only != "ray":
            figures["stages"] = found = measure_stages(config, args.runs)
            show(
                f"tokens/s per core, {found['rows']:,} rows, {found['tokens']:,} tokens, median of {args.runs}",
                ["stage", "wall", "least", "most", "CPU"],
                [
                    [
                        stage,
                        *(int(wall[which]) for which in ("median", "min", "max")),
                        int(found["cpu"][stage]["median"]),
                    ]
                    for stage, wall in found["wall"].items()
                ],
            )
            rate = found["cpu"]["together"]["median"]
            figures["target"], figures["met"] = TARGET, rate >= TARGET
            verdict = "met" if figures["met"] else "not met"
            say(f"together {rate:,.0f} tokens/s per core; the target of {TARGET:,} is {verdict}")
        if args.only != "stages":
            plan = begin(config)
            sizes = [(1 << 14, 5)] if args.quick else [(1 << 16, 100), (1 << 20, 30)]
            with ray_session():
                figures["ray"] = [
                    {name: spread([run[name] for run in runs], 1) for name in runs[0]}
                    for tokens, shards in sizes
                    if (runs := [measure_ray(plan, tokens, shards) for _ in range(min(args.runs, 3))])
                ]
            show(
                f"Ray's own cost, {machine()['cores']} cores",
                ["tokens a shard", "ms a shard", "driver CPU, ms", "all CPU, ms", "shards/s of one driver"],
                [
                    [
                        f"{row['tokens']['median']:,.0f}",
                        *(f"{row[name]['median']:.1f}" for name in ("ms_per_shard", "driver_cpu_ms", "all_cpu_ms")),
                        f"{1e3 / row['driver_cpu_ms']['median']:.0f}",
                    ]
                    for row in figures["ray"]
                ],
            )
    save(args.json, "stages", figures)


if __name__ == "__main__":
    main()
