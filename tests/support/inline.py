"""The job without Ray: the same stage functions in the same order, in this process, and the same files on disk.

`score` spends seconds on starting actors; a test that looks at rows and not at the engine uses `score_inline`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tokloss_ray import ScoreConfig
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.output.done import read_committed
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.records import read_records
from tokloss_ray.output.run import is_finished, read_run
from tokloss_ray.output.segments import RollUp
from tokloss_ray.output.totals import Totals
from tokloss_ray.scoring import finish, resume
from tokloss_ray.scoring.additions import find_base
from tokloss_ray.scoring.folder import add_generation, check_folder, check_same_run, clear, read_plan, start_run
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.lease import Lease
from tokloss_ray.scoring.plan import Plan, make_plan
from tokloss_ray.scoring.preflight import locate, preflight
from tokloss_ray.scoring.stages.budget import Budget
from tokloss_ray.scoring.stages.commit import commit_shard
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.decode import decode_shard
from tokloss_ray.scoring.stages.forward import Forward
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.scoring.stages.scorer import Scorer
from tokloss_ray.scoring.stages.shard import Shard, from_row, to_row
from tokloss_ray.storage.sealed import sealed

Row = dict[str, Any]


class Inline(NamedTuple):
    """What a run left: the totals, the plan, the commit records, and the rows of scores/ and errors/."""

    totals: Totals
    plan: Plan
    records: list[CommitRecord]
    rows: list[Row]
    errors: list[Row]


def score_inline(
    config: ScoreConfig,
    wrap_model: Callable[[Any], Any] | None = None,
    tokenizer: RowTokenizer | None = None,
    committed: Callable[[CommitRecord], None] = lambda record: None,
    batching: str | None = None,
) -> Inline:
    """Score a corpus, going on where an earlier attempt stopped; raises what `score` raises.

    wrap_model: makes of the loaded model the one that is called, to let it fail on purpose. tokenizer: stands in for
    the job's own. committed: called after each commit; what it raises ends the attempt. batching: form micro-batches
    this way, whatever the model was found to need.
    """
    run = None if config.overwrite else read_run(config.output)
    check_folder(config.output)
    found = resume.EarlierAttempts() if run is None else resume.find_committed(config.output, run, owned=True)
    finished = found.complete and not found.damaged and is_finished(config.output)
    located = locate(config)
    base = find_base(config, run, located.files)
    finished = finished and not (base and base.new)
    plan = make_plan(preflight(config, located), False, False, None if run is None else run.identity, base)
    if run is not None:
        check_same_run(run, plan, config.output, finished)
    job, units = plan.job, plan.units
    if not finished:
        with Lease(config.output, job.fingerprint):
            if run is not None and base is not None and base.new:
                run = add_generation(plan, run)
                found = resume.find_committed(config.output, run, owned=True)
            units = plan.units if run is None else read_plan(plan, run)
            resume.take_back(config.output, found)
            if run is None:
                clear(config.output)
                start_run(plan, {})
            scorer = _scorer(job, wrap_model)
            if batching is not None:
                scorer.batching, scorer.packing = batching, None
            tokenizer = tokenizer or RowTokenizer(job.tokenizer_json)
            done = found.committed.done.held()
            roll_up = RollUp(config.output, job.fingerprint, found.committed.next_segment)
            for unit in resume.unfinished(units, found.committed.done):
                for cut in encode_unit(job, tokenizer, unit, read_unit(job, unit), done.get(unit.number)):
                    record = _score_one(job, scorer, cut)
                    roll_up.add(record.shard, sealed(record.to_json()))
                    committed(record)
            totals = finish.complete(config, plan, units, read_committed(config.output, job.fingerprint, roll_up=True))
    else:
        totals = found.committed.tally.totals()
    records = read_records(config.output)
    return Inline(totals, plan, list(records.values()), read_rows(config.output), read_rows(config.output, "errors"))


def _score_one(job: Job, scorer: Scorer, cut: Shard) -> CommitRecord:
    shard = from_row(to_row(cut))
    sequences, figures = scorer.score(shard.sequences)
    shard.about["seconds"] |= figures.pop("seconds")
    shard = from_row(to_row(shard._replace(about=shard.about | figures, sequences=sequences)))
    decoded = decode_shard(job, shard.about["sources"], shard.sequences, shard.errors)
    return commit_shard(job, shard.about, decoded)


def _scorer(job: Job, wrap_model: Callable[[Any], Any] | None) -> Scorer:
    scorer = copy.copy(_loaded(job))
    scorer.job, scorer.budget = job, Budget(job.batch_tokens)
    kept = job.keep_probs, job.keep_entropy
    if wrap_model is not None or kept != (scorer.forward.keep_probs, scorer.forward.keep_entropy):
        scorer.forward = Forward(wrap_model(scorer.model) if wrap_model else scorer.model, *kept)
    return scorer


_models: dict[tuple[str, ...], Scorer] = {}


def _loaded(job: Job) -> Scorer:
    """One Scorer per model and way of calling it."""
    key = job.model.name, job.identity["model"], job.packing, job.compile
    if key not in _models:
        _models[key] = Scorer(job)
    return _models[key]


def read_rows(output_folder: str | Path, folder: str = "scores") -> list[Row]:
    """All rows of scores/ or errors/, by shard, without partition columns."""
    files = sorted(Path(output_folder, folder).rglob("*.parquet"), key=lambda file: file.name)
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
