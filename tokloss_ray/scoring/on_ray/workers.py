"""What Ray runs at each stage of the graph: plain functions of one shard, and errors as rows that stages pass on."""

from __future__ import annotations

import functools
import json
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
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
from tokloss_ray.output.record import RowRange
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.on_ray.attempts import MAX_STARTS, attempt
from tokloss_ray.scoring.stages.commit import commit_shard
from tokloss_ray.scoring.stages.cutting import encode_unit, held_by_all
from tokloss_ray.scoring.stages.decode import decode_shard
from tokloss_ray.scoring.stages.journal import open_journal
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.scoring.stages.shard import Shard, from_row, to_row
from tokloss_ray.storage.failures import Effort, tries

FAILURE = "failure"
LOST = "lost"
"""In place of a result: the worker died each time this was tried."""
_NOT_TOGETHER = "score with each model by itself, one command after the other"


def read_and_encode(batch: pa.Table, jobs_ref: ray.ObjectRef, counter: Any = None) -> Iterator[pa.Table]:
    """The shards of some units, each a table of one row that says which runs lack it."""
    for row in batch.to_pylist():
        runs = {run["job"]: {known.pop("index"): RowRange(**known) for known in run["held"]} for run in row["runs"]}
        try:
            first = min(runs)
            job, unit = _jobs(jobs_ref)[first], ReadUnit(row["number"], tuple(FilePart(**p) for p in row["parts"]))
            with attempt(counter, f"unit {first} {unit.number}") as allowed, tries(job.storage_tries) as effort:
                if not allowed:
                    yield _lost()
                    continue
                held, wanted = held_by_all(unit.number, runs.values())
                chunks = read_unit(job, unit)
                for shard in encode_unit(job, _tokenizer(jobs_ref, first), unit, chunks, held, wanted):
                    shard.about["jobs"] = [run for run in runs if shard.about["index"] not in runs[run]]
                    shard.about["storage_retries"] = effort.take()
                    yield to_row(shard)
        except Exception as error:
            yield _failure(error, runs)


class ScoreActor:
    """Holds the models of all runs, and scores each shard with those whose runs lack it.

    If a model cannot be loaded, every shard of its run is answered with the reason.

    again: this is not the first pass. Each shard is noted while it is scored; one over which a worker has died is
    scored carefully (`journal.py`), all others as ever.
    """

    def __init__(
        self, jobs_ref: ray.ObjectRef, threads: int | None, gpus: float, again: bool = False, counter: Any = None
    ) -> None:
        self.again, self.counter = again, counter
        self.scorers: dict[int, Any] = {}
        self.of_others: dict[int, float] = {}
        self.broken: dict[int, pa.Table] = {}
        self.useless: pa.Table | None = None
        actor = ray.get_runtime_context().get_actor_id() if counter else None  # stays the same when it is restarted
        with attempt(counter, f"actor {actor}", MAX_STARTS) as allowed:
            if allowed:
                self._load(jobs_ref, threads, gpus)
            else:
                self.useless = _lost()

    def _load(self, jobs_ref: ray.ObjectRef, threads: int | None, gpus: float) -> None:
        fault_point("actor.begin")
        with no_collection(ours=True):
            from tokloss_ray.scoring.stages.budget import is_out_of_memory
            from tokloss_ray.scoring.stages.scorer import Scorer

            try:
                jobs = _jobs(jobs_ref)
                self.effort = Effort(jobs[0].storage_tries)
                for number, job in enumerate(jobs):
                    try:
                        with self.effort.at_work():
                            self.scorers[number] = Scorer(job, threads, gpus)
                    except Exception as error:
                        if self.scorers and is_out_of_memory(error):
                            error = JobFailed(f"no memory for another model beside the first: {_NOT_TOGETHER}")
                        self.broken[number] = _failure(error, [number])
            except Exception as error:
                self.useless = _failure(error)
        fault_point("actor.ready")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        if FAILURE in batch.column_names or self.useless is not None:
            yield batch if self.useless is None else self.useless
            return
        shard = from_row(batch)
        for number in shard.about["jobs"]:
            yield self._answer(shard, number)

    def _answer(self, shard: Shard, number: int) -> pa.Table:
        """A shard as one run scores it, or why it does not."""
        if number in self.broken:
            return self.broken[number]
        try:
            with attempt(self.counter, f"score {number} {_name(shard)}") as allowed, self.effort.at_work():
                if not allowed:
                    return _lost()
                sequences, figures = self._score(self.scorers[number], shard)
            about = {**shard.about, "jobs": [number], "storage_retries": self.effort.take()}
            about["seconds"] = {**shard.about["seconds"], **self._own(number, figures.pop("seconds"))}
            if number == shard.about["jobs"][0]:
                about["storage_retries"] += shard.about["storage_retries"]
            else:  # the first one's record has the encoding that they share
                about["seconds"]["encode"] = 0.0
            return to_row(shard._replace(about=about | figures, sequences=sequences))
        except Exception as error:
            return _failure(error, [number])

    def _own(self, number: int, seconds: dict[str, float]) -> dict[str, float]:
        """The seconds of one model, which counts as waiting what others have computed since it did."""
        wait = max(0.0, seconds["wait"] - self.of_others.pop(number, 0.0))
        for other in self.scorers.keys() - {number}:
            self.of_others[other] = self.of_others.get(other, 0.0) + seconds["score"]
        return {"wait": round(wait, 6), "score": seconds["score"]}

    def _score(self, scorer: Any, shard: Shard) -> tuple[pa.Table, dict[str, Any]]:
        if not self.again:
            return scorer.score(shard.sequences)
        journal = open_journal(scorer.job.output, _name(shard))
        if journal.deaths:
            return scorer.score(shard.sequences, journal)
        with journal.noted():
            return scorer.score(shard.sequences)


def decode_and_commit(batch: pa.Table, jobs_ref: ray.ObjectRef, counter: Any = None) -> pa.Table:
    """Decode and write one scored shard; the result is its commit record as JSON, or why there is none."""
    if FAILURE not in batch.column_names:
        runs: list[int] = []
        try:
            start = time.perf_counter()
            shard = from_row(batch)
            runs = shard.about.pop("jobs")
            job = _jobs(jobs_ref)[runs[0]]
            with attempt(counter, f"commit {runs[0]} {_name(shard)}") as allowed, tries(job.storage_tries):
                if not allowed:
                    return _lost().rename_columns(["result"])
                decoded = decode_shard(job, shard.about["sources"], shard.sequences, shard.errors)
                shard.about["seconds"]["decode"] = round(time.perf_counter() - start, 4)
                record = commit_shard(job, shard.about, decoded)
            return pa.table({"result": [json.dumps({"jobs": runs, "record": record.to_json()})]})
        except Exception as error:
            batch = _failure(error, runs)
    return batch.select([FAILURE]).rename_columns(["result"])


def _name(shard: Shard) -> str:
    return shard_name(shard.about["unit"], shard.about["index"])


def _lost() -> pa.Table:
    """What later stages pass on in place of a shard, or of a unit, over which workers die."""
    return pa.table({FAILURE: [json.dumps({"record": None, LOST: True})]})


def _failure(error: Exception, runs: Iterable[int] = ()) -> pa.Table:
    """A failure as a row that later stages pass on, so that it reaches the driver without six frameworks' stacks.

    runs: those that lack a shard because of it; all if none is named.
    """
    if isinstance(error, TokLossError):
        sentence = str(error)
    else:
        sentence = f"{type(error).__name__}: {str(error).strip() or 'no message'}".split("\n")[0]
    detail = "".join(traceback.format_exception(error))
    answer = {"jobs": list(runs), "record": None, "failure": sentence, "detail": detail}
    return pa.table({FAILURE: [json.dumps(answer)]})


@functools.lru_cache(maxsize=2)
def _jobs(ref: ray.ObjectRef) -> Sequence[Job]:
    """The jobs of all runs, fetched once per process."""
    return ray.get(ref)


@functools.lru_cache(maxsize=8)
def _tokenizer(ref: ray.ObjectRef, number: int) -> RowTokenizer:
    # One thread: there are as many encode tasks as there are cores to spare.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    job, here = _jobs(ref)[number], version("tokenizers")
    if here != job.tokenizers_version:
        raise JobFailed(
            f"a node has tokenizers {here}, but the driver {job.tokenizers_version}, which may make different tokens: "
            f"install the same version everywhere"
        )
    return RowTokenizer(job.tokenizer_json)
