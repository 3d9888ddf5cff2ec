"""What Ray runs at each stage of the graph: plain functions of one shard, and errors as rows that stages pass on."""

from __future__ import annotations

import functools
import json
import os
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import ray

from tokloss_ray.errors import JobFailed, TokLossError
from tokloss_ray.faults import fault_point
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.inputs.unit import FilePart, ReadUnit
from tokloss_ray.model.quick_imports import no_collection
from tokloss_ray.output.names import shard_name
from tokloss_ray.output.records import RowRange
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.on_ray.attempts import MAX_STARTS, attempt
from tokloss_ray.scoring.stages.commit import commit_shard
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.decode import decode_shard
from tokloss_ray.scoring.stages.journal import open_journal
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.scoring.stages.shard import Shard, from_row, to_row
from tokloss_ray.storage.failures import Effort, tries

FAILURE = "failure"
LOST = "lost"
"""In place of a result: the worker died each time this was tried."""


def read_and_encode(batch: pa.Table, job_ref: ray.ObjectRef, counter: Any = None) -> Iterator[pa.Table]:
    """The shards of some units, each a table of one row."""
    for row in batch.to_pylist():
        try:
            held = {known.pop("index"): RowRange(**known) for known in row["held"]}
            job, unit = _job(job_ref), ReadUnit(row["number"], tuple(FilePart(**part) for part in row["parts"]))
            with attempt(counter, f"unit {unit.number}") as allowed, tries(job.storage_tries) as effort:
                if not allowed:
                    yield _lost()
                    continue
                for shard in encode_unit(job, _tokenizer(job_ref), unit, read_unit(job, unit), held):
                    shard.about["storage_retries"] = effort.take()
                    yield to_row(shard)
        except Exception as error:
            yield _failure(error)


class ScoreActor:
    """Holds the model. If it cannot be loaded, every shard is answered with the reason.

    again: this is not the first pass. Each shard is noted while it is scored; one over which a worker has died is
    scored carefully (`journal.py`), all others as ever.
    """

    def __init__(
        self, job_ref: ray.ObjectRef, threads: int | None, gpus: float, again: bool = False, counter: Any = None
    ) -> None:
        self.again, self.counter = again, counter
        self.broken: pa.Table | None = None
        actor = ray.get_runtime_context().get_actor_id() if counter else None  # stays the same when it is restarted
        with attempt(counter, f"actor {actor}", MAX_STARTS) as allowed:
            if allowed:
                self._load(job_ref, threads, gpus)
            else:
                self.broken = _lost()

    def _load(self, job_ref: ray.ObjectRef, threads: int | None, gpus: float) -> None:
        fault_point("actor.begin")
        with no_collection(ours=True):
            from tokloss_ray.scoring.stages.scorer import Scorer

            try:
                job = _job(job_ref)
                self.effort = Effort(job.storage_tries)
                with self.effort.at_work():
                    self.scorer = Scorer(job, threads, gpus)
            except Exception as error:
                self.broken = _failure(error)
        fault_point("actor.ready")

    def __call__(self, batch: pa.Table) -> pa.Table:
        if FAILURE in batch.column_names:
            return batch
        if self.broken is not None:
            return self.broken
        try:
            shard = from_row(batch)
            with attempt(self.counter, f"score {_name(shard)}") as allowed, self.effort.at_work():
                if not allowed:
                    return _lost()
                sequences, figures = self._score(shard)
            shard.about["seconds"] |= figures.pop("seconds")
            shard.about["storage_retries"] += self.effort.take()
            return to_row(shard._replace(about=shard.about | figures, sequences=sequences))
        except Exception as error:
            return _failure(error)

    def _score(self, shard: Shard) -> tuple[pa.Table, dict[str, Any]]:
        if not self.again:
            return self.scorer.score(shard.sequences)
        journal = open_journal(self.scorer.job.output, _name(shard))
        if journal.deaths:
            return self.scorer.score(shard.sequences, journal)
        with journal.noted():
            return self.scorer.score(shard.sequences)


def decode_and_commit(batch: pa.Table, job_ref: ray.ObjectRef, counter: Any = None) -> pa.Table:
    """Decode and write one scored shard; the result is its commit record as JSON, or why there is none."""
    if FAILURE not in batch.column_names:
        try:
            start = time.perf_counter()
            job, shard = _job(job_ref), from_row(batch)
            with attempt(counter, f"commit {_name(shard)}") as allowed, tries(job.storage_tries):
                if not allowed:
                    return _lost().rename_columns(["result"])
                decoded = decode_shard(job, shard.about["sources"], shard.sequences, shard.errors)
                shard.about["seconds"]["decode"] = round(time.perf_counter() - start, 4)
                record = commit_shard(job, shard.about, decoded)
            return pa.table({"result": [json.dumps({"record": record.to_json()})]})
        except Exception as error:
            batch = _failure(error)
    return batch.select([FAILURE]).rename_columns(["result"])


def _name(shard: Shard) -> str:
    return shard_name(shard.about["unit"], shard.about["index"])


def _lost() -> pa.Table:
    """What later stages pass on in place of a shard, or of a unit, over which workers die."""
    return pa.table({FAILURE: [json.dumps({"record": None, LOST: True})]})


def _failure(error: Exception) -> pa.Table:
    """A failure as a row that later stages pass on, so that it reaches the driver without six frameworks' stacks."""
    if isinstance(error, TokLossError):
        sentence = str(error)
    else:
        sentence = f"{type(error).__name__}: {str(error).strip() or 'no message'}".split("\n")[0]
    detail = "".join(traceback.format_exception(error))
    return pa.table({FAILURE: [json.dumps({"record": None, "failure": sentence, "detail": detail})]})


@functools.lru_cache(maxsize=2)
def _job(ref: ray.ObjectRef) -> Job:
    """The job, fetched once per process."""
    return ray.get(ref)


@functools.lru_cache(maxsize=2)
def _tokenizer(ref: ray.ObjectRef) -> RowTokenizer:
    # One thread: there are as many encode tasks as there are cores to spare.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    job, here = _job(ref), version("tokenizers")
    if here != job.tokenizers_version:
        raise JobFailed(
            f"a node has tokenizers {here}, but the driver {job.tokenizers_version}, which may make different tokens: "
            f"install the same version everywhere"
        )
    return RowTokenizer(job.tokenizer_json)
