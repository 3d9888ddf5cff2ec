"""What a job would take, from scoring a small sample on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray.errors import before_work
from tokloss_ray.schema import ERRORS_SCHEMA
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.scoring.sample import sample_rows
from tokloss_ray.scoring.stages.decode import decode_shard

SECONDS = 3.0
_ROWS = 64


@dataclass(frozen=True)
class Estimate:
    """Rates seen on the sample, None and 0 where the input has no rows; and how micro-batches are formed."""

    tokens_per_second: float | None
    bytes_per_token: float
    batching: str


def estimate(plan: Plan, gpu: bool) -> Estimate:
    """Load the model and score some rows of the sample for a few seconds.

    Raises:
        Refused: the model does not load, or its answers cannot be repeated.
    """
    from tokloss_ray.scoring.stages.scorer import Scorer

    with before_work():
        scorer = Scorer(plan.job, gpus=float(gpu))
    sample = sample_rows(plan.job, plan.units)
    sequences = sample.sequences
    if sequences is None or not sequences.num_rows:
        return Estimate(None, 0.0, scorer.batching)
    scorer.score(sequences.slice(0, 8))  # the first pass sets up kernels
    tokens, seconds, parts = 0, 0.0, []
    start = 0
    while start < sequences.num_rows and seconds < SECONDS:
        begin = time.perf_counter()
        scored, _ = scorer.score(sequences.slice(start, _ROWS))
        seconds += time.perf_counter() - begin
        decoded = decode_shard(plan.job, sample.sources, scored, ERRORS_SCHEMA.empty_table())
        tokens += decoded.figures["tokens"]
        parts.append(decoded.scores)
        start += _ROWS
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(parts), sink, compression="zstd")
    return Estimate(tokens / seconds, len(sink.getvalue()) / max(1, tokens), scorer.batching)
