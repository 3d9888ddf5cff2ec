"""The graph: read units in, commit records out. Ray Data does the streaming; each shard travels as one row."""

from __future__ import annotations

import json
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from tokloss_ray.cluster.stream import Running, stream, watch
from tokloss_ray.errors import JobFailed, PassFailed
from tokloss_ray.inputs.unit import parts_table
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.ragged import list_array, offsets_of
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.on_ray.attempts import MAX_ATTEMPTS, MAX_STARTS, count_attempts
from tokloss_ray.scoring.on_ray.hardware import Actors
from tokloss_ray.scoring.on_ray.workers import LOST, ScoreActor, decode_and_commit, read_and_encode
from tokloss_ray.scoring.work import Work

ENCODE_CPUS, COMMIT_CPUS = 0.5, 0.25
"""Different on purpose, and different from the actors': Ray Data fuses neighbours that ask for the same resources,
and an encode stage fused into the model actor starves it."""
MAX_BLOCKS = 2_000
SHARDS_AHEAD, BYTES_PER_TOKEN = 12, 64
"""Shards for each actor in all queues together (up to five are given to it), and a token's bytes once it is scored."""
MIN_WAITING_BYTES = 1 << 28
RAY_COUNTS = tuple(int(part) for part in ray.__version__.split(".")[:2]) < (2, 64)
"""Whether `map_batches` takes bounds for retries; else an actor of the job's own counts (`attempts.py`)."""
_BUILDING = threading.Lock()
"""Warnings filters are the process's: two runs at once must not give each other's back."""


class Result(NamedTuple):
    """What the graph yields: a commit record, or the sentence and the traceback of a stage that failed.

    Attributes:
        jobs: the run of the record, by its number; of a failure those that lack a shard because of it, all if empty.
    """

    jobs: tuple[int, ...]
    record: CommitRecord | None
    failure: str | None = None
    detail: str = ""


def build(
    jobs: ray.ObjectRef,
    work: list[Work],
    actors: Actors,
    again: bool = False,
    waiting_bytes: int = MIN_WAITING_BYTES,
    counter: Any = None,
) -> ray.data.Dataset:
    """plan -> read + encode (CPU task) -> score (actor) -> decode + commit (CPU task).

    The actor holds the models of all runs, and makes of an encoded shard a scored one for each run that lacks it.

    counter: of `attempts.count_attempts`, where Ray is not to be told how often to retry.
    """
    of_task = {} if counter else {"max_retries": MAX_ATTEMPTS}
    of_actor = {} if counter else {"max_restarts": MAX_STARTS - 1, "max_task_retries": MAX_ATTEMPTS - 1}
    # In a pass that looks for what kills workers, a death must be of one shard.
    at_once = 1 if again else actors.at_once
    source = ray.data.from_blocks(_source(work))  # from_arrow starts a task to count rows
    _settings(source.context, waiting_bytes)
    return (
        source.map_batches(
            read_and_encode,
            fn_args=(jobs, counter),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=ENCODE_CPUS,
            **of_task,
        )
        .map_batches(
            ScoreActor,
            fn_constructor_args=(jobs, actors.threads, actors.num_gpus, again, counter),
            compute=ray.data.ActorPoolStrategy(
                min_size=actors.low,
                max_size=actors.high,
                max_tasks_in_flight_per_actor=at_once + 2,
                max_concurrent_calls_per_actor=at_once if at_once > 1 else None,
                enable_true_multi_threading=at_once > 1,
            ),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=actors.num_cpus,
            num_gpus=actors.num_gpus or None,
            **of_actor,
        )
        .map_batches(
            decode_and_commit,
            fn_args=(jobs, counter),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=COMMIT_CPUS,
            **of_task,
        )
    )


def run(
    jobs: Sequence[Job],
    work: list[Work],
    actors: Actors,
    stall_timeout: float,
    again: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Run the graph over the work, without the shards that are committed; results come as shards finish.

    `again`: after a pass that lost shards, look for rows that end the processes that score them (see `journal.py`).

    `check` is called twice a second and may raise to stop the run.

    Raises:
        PassFailed: Ray gave the pass up.
        JobFailed: nothing was committed for `stall_timeout` seconds.
    """
    with _BUILDING, warnings.catch_warnings():
        # The retry arguments go away in Ray 2.64, which the dependencies exclude.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        counter = None if RAY_COUNTS else count_attempts()
        dataset = build(ray.put(tuple(jobs)), work, actors, again, _waiting_bytes(jobs, actors), counter)
    moved, running = time.monotonic(), Running()
    with closing(stream(dataset, running)) as batches:
        for batch in batches:
            check()
            if batch is None:
                if time.monotonic() - moved > stall_timeout:
                    raise JobFailed(_standstill(stall_timeout, running))
                continue
            moved = time.monotonic()
            if isinstance(batch, Exception):
                raise _given_up(batch)
            for text in batch.column("result").to_pylist():
                answer = json.loads(text)
                if not answer.pop(LOST, False):  # without a record it is left to the next pass
                    yield _result(answer)


def _standstill(seconds: float, running: Running) -> str:
    """That nothing was committed for so long, and what each stage was doing."""
    names = {"read_and_encode": "read and encode", "ScoreActor": "score", "decode_and_commit": "decode and commit"}
    doing = [
        f"{name}: {active} running, {waiting} waiting"
        for stage, active, waiting in running.stages()
        for key, name in names.items()
        if key in stage
    ]
    return f"nothing was committed for {seconds:g} s (--stall-timeout); {'; '.join(doing) or 'Ray had not started'}"


def _waiting_bytes(jobs: Sequence[Job], actors: Actors) -> int:
    """Memory for shards between the stages: enough that no actor waits, whatever the corpus."""
    tokens = sum(job.shard_tokens for job in jobs)
    return max(MIN_WAITING_BYTES, actors.high * SHARDS_AHEAD * tokens * BYTES_PER_TOKEN)


def _given_up(error: Exception) -> PassFailed:
    """What Ray raised, as one sentence."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    detail = "".join(traceback.format_exception(error))
    sentence = (str(cause).strip() or type(cause).__name__).split("\n")[0]
    return PassFailed(f"Ray stopped the job: {sentence}", detail)


def _result(answer: dict[str, Any]) -> Result:
    jobs, record = tuple(answer.pop("jobs")), answer.pop("record")
    return Result(jobs, None if record is None else CommitRecord.from_json(record), **answer)


def _source(work: list[Work]) -> list[pa.Table]:
    """The units as a table in blocks: one unit a block, more only where the plan is very long."""

    def runs(one: Work) -> list[dict[str, Any]]:
        return [
            {"job": job, "held": [{"index": index, **rows._asdict()} for index, rows in held.items()]}
            for job, held in one.held.items()
        ]

    units = [one.unit for one in work]
    parts = parts_table(units).drop_columns("number").to_struct_array().combine_chunks()
    columns = {
        "number": pa.array([unit.number for unit in units], pa.int64()),
        "parts": list_array(parts, offsets_of(np.array([len(unit.parts) for unit in units]))),
        "runs": pa.array([runs(one) for one in work], pa.list_(_RUN)),
    }
    table = pa.table(columns)
    size = max(1, min(16, len(units) // MAX_BLOCKS))
    return [table.slice(start, size) for start in range(0, len(units), size)]


_HELD = pa.struct(
    [
        ("index", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("last_row", pa.int64()),
        ("last", pa.bool_()),
    ]
)
_RUN = pa.struct([("job", pa.int64()), ("held", pa.list_(_HELD))])


def _settings(context: ray.data.DataContext, waiting_bytes: int) -> None:
    """Ray Data's settings for this job, in the dataset's own: those of the process stay as they are."""
    context.target_max_block_size = 1  # one shard a block: rows that share a block are held and retried together
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 16  # a shard that kills its worker is left to the next pass
    watch(context)
    # Readers that are faster than the model stop here, and not when half of the object store is full.
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=waiting_bytes
    )
