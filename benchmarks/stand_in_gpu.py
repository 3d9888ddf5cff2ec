"""A GPU that is played by a clock, served by the whole job: how much of its time has it nothing to do?

    python benchmarks/stand_in_gpu.py --rate 400000 --seconds 60

The job is the real one, with its planning, its Ray, its readers and commits, and the actor has all of the host's part:
Arrow to arrays, padding, copies, the queue of micro-batches, results put in order, Arrow again, and for every
micro-batch as long a hold on Python as a model in eager mode takes to be launched (`--launch-ms`). Only the device is a
stand-in: it takes as long as a GPU of `--rate` tokens per second would, one micro-batch after another, and its answers
are random numbers that were drawn before.

`served` is the rate of commits between the first and the last full shard, divided by `--rate`. `device wait` is the
share of the device's time with nothing to do after its first shard. `cores` is the processor time of all processes in
the steady phase, per second.

`--rate` is to be what the machine's cores can feed: 1,000,000 tokens/s need as many cores as the plan of a job on a
GPU says; on a machine with fewer, scale it down as much.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import machine, save, say, settings, show, write_corpus

from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.schema import PADDED
from tokloss_ray.scoring import begin, driver, pipeline
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.on_ray import workers
from tokloss_ray.scoring.on_ray.hardware import AT_ONCE, Actors
from tokloss_ray.scoring.stages.budget import Budget
from tokloss_ray.scoring.stages.device_queue import DeviceQueue, Result
from tokloss_ray.scoring.stages.scorer import Scorer
from tokloss_ray.scoring.watcher import Watcher
from tokloss_ray.storage.failures import Effort

TOKENS_PER_ROW = 18.7  # of the bundled corpus with the bundled tokenizer
SERVED = 0.95
LEAST_SHARDS = 6


class PacedDevice:
    """A device that is done with a micro-batch when a GPU of so many tokens per second would be."""

    def __init__(self, rate: float, launch_seconds: float, classes: int) -> None:
        self.rate, self.launch_seconds = rate, launch_seconds
        self.free_at = time.perf_counter()
        rng, size = np.random.default_rng(0), 1 << 20
        tags = rng.integers(0, classes, (2, size), np.int32)
        floats = [rng.exponential(1, size), rng.random(size), rng.random(size)]
        loss, best, second = (values.astype(np.float32).view(np.int32) for values in floats)
        self.fields = [loss, tags[0], best, tags[1], second, np.ones(size, np.int32)]  # as loss.to_words has them

    def launch(self, forward: Callable[[Any], Any], inputs: Any) -> Paced:
        """Copies as a GPU's driver has them copied, holds Python as a launch does, and computes nothing."""
        torch.cat([value.reshape(-1).view(torch.uint8) for value in inputs if isinstance(value, torch.Tensor)])
        over = time.perf_counter() + self.launch_seconds
        while time.perf_counter() < over:
            pass
        tokens, start = len(inputs.labels), time.perf_counter()
        waited = max(0.0, start - self.free_at)
        busy = tokens / self.rate
        self.free_at = max(start, self.free_at) + busy
        words = np.concatenate([field[:tokens] for field in self.fields])
        return Paced(self.free_at, Result(words, waited, busy))

    def release(self) -> None:
        """It has no memory."""


class Paced:
    """A micro-batch on it."""

    def __init__(self, done_at: float, answer: Result) -> None:
        self.done_at, self.answer = done_at, answer

    def result(self) -> Result:
        """Waits as long as a GPU would take."""
        time.sleep(max(0.0, self.done_at - time.perf_counter()))
        return self.answer


class PacedScorer(Scorer):
    """The scorer of a GPU without a model."""

    def __init__(self, job: Job, rate: float, launch_seconds: float) -> None:
        self.job, self.shortest, self.batching, self.packing, self.compiled = job, 1, PADDED, None, None
        self.budget = Budget(job.batch_tokens)
        torch.set_num_threads(1)  # as the real one does
        device = PacedDevice(rate, launch_seconds, len(job.tags))
        self.queue = DeviceQueue(device, lambda inputs: inputs, self.budget)


def paced_actor(rate: float, launch_seconds: float) -> type:
    """A class in place of the actor that holds the models."""

    class ScoreActor(workers.ScoreActor):
        def _load(self, jobs_ref: Any, threads: int | None, gpus: float) -> None:
            jobs = workers._jobs(jobs_ref)
            self.effort = Effort(jobs[0].storage_tries)
            self.scorers = {number: PacedScorer(job, rate, launch_seconds) for number, job in enumerate(jobs)}

    return ScoreActor


class Clock(Watcher):
    """Notes each commit, and the processor time of all processes."""

    def __init__(self) -> None:
        self.commits: list[tuple[float, CommitRecord]] = []
        self.cpu: list[tuple[float, float]] = []
        self.over = threading.Event()
        self.used: dict[int, float] = {}
        threading.Thread(target=self._sample, daemon=True).start()

    def committed(self, record: CommitRecord) -> None:
        self.commits.append((time.perf_counter(), record))

    def _sample(self) -> None:
        while not self.over.wait(1.0):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                self.used[process.pid] = times.user + times.system  # of one that has ended, what it had used
            self.cpu.append((time.perf_counter(), sum(self.used.values())))

    def figures(self, rate: float, shard_tokens: int) -> dict[str, Any]:
        """What it came to between the first full shard and the last.

        Raises:
            SystemExit: the run was too short for that.
        """
        full = [(at, record) for at, record in self.commits if record.tokens > 0.9 * shard_tokens]
        if len(full) < LEAST_SHARDS:
            raise SystemExit(f"only {len(full)} full shards were committed: use more --seconds or smaller shards")
        start, end = full[0][0], full[-1][0]
        steady = sum(record.tokens for at, record in self.commits if start < at <= end) / (end - start)
        seconds = [record.seconds for _, record in self.commits[1:]]
        waited, busy = (sum(each[stage] for each in seconds) for stage in ("wait", "score"))
        inside = [(at, used) for at, used in self.cpu if start <= at <= end]
        cores = (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) if len(inside) > 1 else None
        return {
            "shards": len(self.commits),
            "seconds": round(end - start, 1),
            "tokens_per_second": round(steady),
            "served": round(steady / rate, 3),
            "device_wait": round(waited / (waited + busy), 4),
            "cores": cores and round(cores, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=400_000, help="tokens per second of the stand-in")
    parser.add_argument("--seconds", type=float, default=60, help="about how long the stand-in computes")
    parser.add_argument("--shard-tokens", type=int, default=1 << 20, help="tokens of a shard")
    parser.add_argument("--batch-tokens", type=int, default=1 << 15, help="padded tokens of a micro-batch")
    parser.add_argument("--launch-ms", type=float, default=4.0, help="for which a launch holds Python")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="shards in the actor at the same time")
    parser.add_argument("--cpus", type=float, default=0.5, help="that the actor asks Ray for")
    parser.add_argument("--data", type=Path, default=DATA, help="a Parquet file (default: the bundled corpus)")
    parser.add_argument("--model", default=str(MODEL), help="its tokenizer and tags are used, never its weights")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few and small shards")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    if args.quick:
        args.rate, args.seconds, args.shard_tokens, args.batch_tokens, args.launch_ms = 20_000, 4, 1 << 13, 1 << 9, 0.1
    pipeline.ScoreActor = paced_actor(args.rate, args.launch_ms / 1000)
    begin.plan_actors = driver.plan_actors = lambda *_: Actors(1, 1, args.cpus - 0.001, 0, None, args.at_once)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        rows = int(args.rate * args.seconds / TOKENS_PER_ROW)
        data = write_corpus(Path(folder, "in"), rows, args.data)
        config = ScoreConfig(
            model=args.model,
            input=str(data),
            output=f"{folder}/out",
            shard_tokens=args.shard_tokens,
            batch_tokens=args.batch_tokens,
            **settings(data),
        )
        driver.score(config, clock)
    clock.over.set()
    found = clock.figures(args.rate, args.shard_tokens)
    columns = ["GPU's tokens/s", "shards", "s", "tokens/s", "served", "device wait", "cores"]
    cells = (found[name] for name in ("shards", "seconds", "tokens_per_second", "served", "device_wait", "cores"))
    show("A GPU served by the whole job", columns, [[f"{args.rate:,}", *cells]])
    say(f"served {found['served']:.3f} of it; target {SERVED}: {'met' if found['served'] >= SERVED else 'not met'}")
    say(f"{machine()['cores']} cores")
    save(args.json, "stand_in_gpu", {"rate": args.rate, "shard_tokens": args.shard_tokens, **found})


if __name__ == "__main__":
    main()
