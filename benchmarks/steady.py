"""The job's steady rate against a plain length-sorted loop of the same dtype and threads, in turn, several times.

    python benchmarks/steady.py --input corpus.parquet --model MODEL --runs 3

The loop pads, runs the model and computes losses over batches of the same token budget, and nothing else. The job's
rate is measured between its first and its last commit; the corpus should make ten shards or more. Prints one JSON
object: the medians, their ratio, time to the first commit, and the peak memory of all the job's processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Memory
from tokenizers import Tokenizer

from tokloss_ray.config import ScoreConfig
from tokloss_ray.schema import INPUT_IDS, LABEL_IDS
from tokloss_ray.scoring.driver import score
from tokloss_ray.scoring.encode import encode_unit
from tokloss_ray.scoring.plan import make_plan, preflight
from tokloss_ray.scoring.read import read_unit
from tokloss_ray.scoring.scorer import load_model


def plain_loop(config: ScoreConfig) -> float:
    """Tokens per second of the loop, sorting and padding included."""
    plan = make_plan(preflight(config), False, False)
    tokenizer = Tokenizer.from_str(plan.job.tokenizer_json)
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for unit in plan.units:
        for shard in encode_unit(plan.job, tokenizer, unit.number, unit.source, read_unit(plan.job, unit)):
            ids += shard.sequences[INPUT_IDS].to_pylist()
            labels += shard.sequences[LABEL_IDS].to_pylist()
    model = load_model(plan.job).eval()
    budget, total = plan.job.batch_tokens, sum(map(len, ids))
    start = time.perf_counter()
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    with torch.inference_mode():
        while order:
            longest = len(ids[order[0]])
            size = max(1, budget // longest)
            batch, order = order[:size], order[size:]
            input_ids = np.full((len(batch), longest), plan.job.pad_token_id)
            targets = np.full((len(batch), longest), -100)
            mask = np.zeros((len(batch), longest), dtype=np.int64)
            for row, i in enumerate(batch):
                input_ids[row, : len(ids[i])] = ids[i]
                targets[row, : len(ids[i])] = labels[i]
                mask[row, : len(ids[i])] = 1
            logits = model(input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(mask)).logits.float()
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.from_numpy(targets).flatten(), reduction="none"
            )
            logits.argmax(-1)
    return total / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"loop": [], "job": []}
    first, peak = [], []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(args.runs):
            output = str(Path(folder) / str(run))
            config = ScoreConfig(model=args.model, input=args.input, output=output, dtype=args.dtype, limit=args.limit)
            rates["loop"].append(plain_loop(config))
            memory = Memory()
            summary = score(config)
            assert summary.tokens_per_second
            assert summary.first_commit
            rates["job"].append(summary.tokens_per_second)
            first.append(summary.first_commit)
            peak.append(memory.stop())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        json.dumps(
            {
                "tokens_per_second": {name: round(value) for name, value in medians.items()},
                "job_over_loop": round(medians["job"] / medians["loop"], 3),
                "runs": {name: [round(v) for v in values] for name, values in rates.items()},
                "first_commit_s": round(statistics.median(first), 1),
                "peak_memory_mb": round(max(peak) / 1e6),
                "shards": summary.totals.shards,
                "threads": torch.get_num_threads(),
                "padding_efficiency": round(summary.totals.padding_efficiency or 0, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
