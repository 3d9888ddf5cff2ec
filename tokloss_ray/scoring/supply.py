"""Enough CPU for a GPU: how many cores read, encode, decode and write what it scores."""

from __future__ import annotations

import math
import time
from hashlib import sha256

import numpy as np
import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.model.files import ModelInfo
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array
from tokloss_ray.schema import ERRORS_SCHEMA
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.sample import Sample
from tokloss_ray.scoring.stages.commit import parquet_bytes
from tokloss_ray.scoring.stages.decode import decode_shard

USUAL_RATE = 1_000_000
"""Tokens per second of a GPU of which nothing is known."""
MOST_RATE = 2_000_000
"""What one process hands to a GPU, whatever the GPU could do."""
HOST_CORES = 1
"""For the process that feeds a GPU, and what Ray does for it."""
_PEAKS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40": 362, "A10": 125, "L4": 121, "V100": 125, "T4": 65}
_FLOAT32_PEAKS = {"B200": 75, "H200": 67, "H100": 67, "A100": 19, "L40": 91, "A10": 31, "L4": 30, "V100": 16, "T4": 8}
"""TFLOP/s of matrix products by the makers' data sheets, without sparsity: in 16 bits, and in float32 without TF32."""
_SHARE_OF_PEAK = 0.5
_LEAST_TOKENS = 10_000
"""In fewer, setting up is most of what is measured."""


def core_rate(job: Job, sample: Sample) -> float | None:
    """Tokens per second that a core reads, encodes, decodes and writes, from the sample; None if that is too small.

    The sample's words are all new. Later ones have mostly been seen, so that this is the least to be expected.
    """
    sequences = sample.sequences
    tokens = 0 if sequences is None else int(list_lengths(one_array(sequences.column(schema.INPUT_IDS))).sum())
    if sequences is None or tokens < _LEAST_TOKENS:
        return None
    scored = _answered(job, sequences, tokens)
    start = time.process_time()
    decoded = decode_shard(job, sample.sources, scored, ERRORS_SCHEMA.empty_table())
    sha256(parquet_bytes(decoded.scores))
    return tokens / (sample.cpu_seconds + time.process_time() - start)


def _answered(job: Job, sequences: pa.Table, tokens: int) -> pa.Table:
    """The sequences with random answers, which compress as badly as those of a model."""
    rng, classes = np.random.default_rng(0), len(job.tags)
    offsets = offsets_of(list_lengths(one_array(sequences.column(schema.INPUT_IDS))))
    floats = (schema.LOSS, schema.PREDICTED_PROB, schema.SECOND_PROB)
    made = {name: pa.array(rng.random(tokens, dtype=np.float32)) for name in floats}
    for name in (schema.PREDICTED_IDS, schema.SECOND_IDS):
        made[name] = pa.array(rng.integers(0, classes, tokens, dtype=np.int32))
    if job.keep_probs:
        each = np.arange(tokens + 1, dtype=np.int64) * classes
        made[schema.PROBS] = list_array(rng.random(tokens * classes, dtype=np.float32), each)
    for name, values in made.items():
        sequences = sequences.append_column(name, list_array(values, offsets))
    return sequences.append_column(schema.PROBLEM, pa.nulls(sequences.num_rows, pa.string()))


def gpu_rate(model: ModelInfo, dtype: str, gpu: str | None) -> int | None:
    """Tokens per second that a GPU of that name does of a model, at best; None if it or the model's size is unknown.

    A token takes two operations for each parameter of the layers, and half of the peak is what well-written kernels
    reach. Small models do not come near it: launches and the process that feeds the GPU bound them.
    """
    peaks = _FLOAT32_PEAKS if dtype == "float32" else _PEAKS
    name = next((name for name in peaks if gpu and name in gpu.upper()), None)
    if name is None or not model.layer_parameters:
        return None
    return min(MOST_RATE, int(_SHARE_OF_PEAK * peaks[name] * 1e12 / (2 * model.layer_parameters)))


def cores_for(rate: float, of_core: float) -> int:
    """Cores that a GPU of so many tokens per second needs, where a core does `of_core` of them."""
    return math.ceil(rate / of_core) + HOST_CORES


def too_few_cores(rate: int, of_core: float, cores: float, gpus: float) -> str | None:
    """What to say where the GPUs will wait for the cores."""
    needed = cores_for(rate, of_core)
    if cores >= needed * gpus:
        return None
    enough = max(0.0, cores / gpus - HOST_CORES) * of_core
    return (
        f"a GPU does up to {rate:,} tokens/s of this model and needs {needed} cores for reading, encoding and writing "
        f"them ({of_core:,.0f} tokens/s each), but there are {cores:g} for {gpus:g} GPU{'s' * (gpus != 1)}, enough for "
        f"about {enough:,.0f} tokens/s on each: add nodes with CPUs, or choose ones with more cores per GPU"
    )
