"""Memory while the model is slower than the readers: does what waits stay bounded?

    python benchmarks/backpressure.py --shards 500 --seconds 0.4

The model is replaced by one that sleeps. Prints a line every ten seconds, then one JSON object: bytes in the object
store and memory of all processes (unique set size), each as the median of every tenth of the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array
from tokloss_ray.schema import PADDED
from tokloss_ray.scoring import pipeline
from tokloss_ray.scoring.driver import score
from tokloss_ray.scoring.stages.shard import from_row, to_row
from tokloss_ray.scoring.watcher import Watcher

TOKENS_PER_ROW = 18.7  # of the bundled corpus with the bundled tokenizer


class SleepingActor:
    """What the model would answer, after as long as it would take."""

    seconds = 0.5

    def __init__(self, *_: Any) -> None:
        self.pause = self.seconds

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = from_row(batch)
        time.sleep(self.pause)
        offsets = offsets_of(list_lengths(one_array(shard.sequences.column("input_ids"))))
        ids, floats = (np.zeros(offsets[-1], dtype=dtype) for dtype in (np.int32, np.float32))
        table = shard.sequences
        for name, values in {
            "predicted_ids": ids, "loss": floats, "predicted_prob": floats, "second_ids": ids, "second_prob": floats,
        }.items():  # fmt: skip
            table = table.append_column(name, list_array(values, offsets))
        table = table.append_column("problem", pa.nulls(table.num_rows, pa.string()))
        about = shard.about | {"padded_tokens": int(offsets[-1]), "batch_tokens": 1024, "batching": PADDED}
        about["seconds"]["score"] = self.pause
        return to_row(shard._replace(about=about, sequences=table))


class Sampler(Watcher):
    """Notes memory while shards are being committed."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, int, int]] = []
        self.shards = 0
        self.over = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def committed(self, record: CommitRecord) -> None:
        self.shards += 1

    def _sample(self) -> None:
        from ray._private.internal_api import node_stats

        start = time.monotonic()
        while not self.over.wait(1.0):
            if not self.shards or not ray.is_initialized():
                continue
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            memory = 0
            for process in processes:
                try:
                    memory += process.memory_full_info().uss
                except psutil.Error:
                    continue
            store = sum(
                node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats.object_store_bytes_used
                for node in ray.nodes()
            )
            self.samples.append((time.monotonic() - start, self.shards, store, memory))
            if len(self.samples) % 10 == 0:
                print(
                    f"{self.shards} shards, object store {store / 1e6:.0f} MB, memory {memory / 1e6:.0f} MB", flush=True
                )

    def tenths(self, column: int) -> list[int]:
        """Median of each tenth of the run, in MB."""
        parts = np.array_split(np.array([sample[column] for sample in self.samples]), 10)
        return [round(statistics.median(part.tolist()) / 1e6) for part in parts if len(part)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--shard-tokens", type=int, default=1 << 16)
    parser.add_argument("--seconds", type=float, default=0.4, help="that the stand-in takes for a shard")
    args = parser.parse_args()
    SleepingActor.seconds = args.seconds
    pipeline.ScoreActor = SleepingActor
    with tempfile.TemporaryDirectory() as folder:
        table = pq.read_table(DATA)
        rows = int(args.shards * args.shard_tokens / TOKENS_PER_ROW)
        source = Path(folder) / "in"
        source.mkdir()
        for number in range(-(-rows // (10 * table.num_rows))):
            part = pa.concat_tables([table] * 10).slice(0, rows - number * 10 * table.num_rows)
            pq.write_table(part, source / f"{number:04d}.parquet", row_group_size=10_000)
        sampler = Sampler()
        config = ScoreConfig(
            model=str(MODEL), input=(str(source),), output=f"{folder}/out", shard_tokens=args.shard_tokens
        )
        summary = score(config, sampler)
        sampler.over.set()
    store, memory = sampler.tenths(2), sampler.tenths(3)
    figures = {"shards": summary.totals.shards, "tokens": summary.totals.tokens, "seconds": round(summary.seconds)}
    print(
        json.dumps(
            figures
            | {
                "object_store_mb": store,
                "memory_mb": memory,
                "peak_memory_mb": round(max(s[3] for s in sampler.samples) / 1e6),
            }
        )
    )


if __name__ == "__main__":
    main()
