"""What a job would take, from scoring a small sample on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa

from tokloss_ray.errors import before_work
from tokloss_ray.model.files import ModelInfo
from tokloss_ray.schema import ERRORS_SCHEMA
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.scoring.sample import sample_rows
from tokloss_ray.scoring.stages.commit import parquet_bytes
from tokloss_ray.scoring.stages.decode import decode_shard
from tokloss_ray.scoring.supply import USUAL_RATE, core_rate, cores_for, gpu_rate

SECONDS = 3.0
_ROWS = 64


@dataclass(frozen=True)
class Estimate:
    """Rates seen on the sample, None and 0 where the input has no rows; and how micro-batches are formed.

    Attributes:
        core_rate: tokens per second that a core reads, encodes, decodes and writes; None where the sample is too small.
        gpu_rate: tokens per second of a GPU, this machine's or else a usual one, that `cores_per_gpu` cores serve.
    """

    tokens_per_second: float | None
    bytes_per_token: float
    batching: str
    core_rate: float | None = None
    gpu_rate: int = USUAL_RATE

    @property
    def cores_per_gpu(self) -> int | None:
        """Cores that a GPU of `gpu_rate` needs."""
        return cores_for(self.gpu_rate, self.core_rate) if self.core_rate else None


def estimate(plan: Plan, model: ModelInfo, gpu: str | None) -> Estimate:
    """Load the model and score some rows of the sample for a few seconds, on this machine's GPU if it has one (`gpu`,
    its name).

    Raises:
        Refused: the model does not load, or its answers cannot be repeated.
    """
    from tokloss_ray.scoring.stages.scorer import Scorer

    with before_work():
        scorer = Scorer(plan.job, gpus=float(gpu is not None))
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
    size = len(parquet_bytes(pa.concat_tables(parts))) / max(1, tokens)
    of_gpu = gpu_rate(model, plan.job.dtype, gpu) or USUAL_RATE
    return Estimate(tokens / seconds, size, scorer.batching, core_rate(plan.job, sample), of_gpu)
