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
from tokenizers import Tokenizer

from tokloss_ray import ScoreConfig
from tokloss_ray.scoring import finish, output
from tokloss_ray.scoring.commit import commit_shard, read_records
from tokloss_ray.scoring.cutting import encode_unit
from tokloss_ray.scoring.decode import decode_shard
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.plan import Plan, make_plan, preflight
from tokloss_ray.scoring.read import read_unit
from tokloss_ray.scoring.scorer import Scorer
from tokloss_ray.scoring.shard import from_row, to_row
from tokloss_ray.scoring.summary import Totals

Row = dict[str, Any]


class Inline(NamedTuple):
    """What a run left: the totals, the plan, the commit records, and the rows of scores/ and errors/."""

    totals: Totals
    plan: Plan
    records: list[Row]
    rows: list[Row]
    errors: list[Row]


def score_inline(config: ScoreConfig, wrap_model: Callable[[Any], Any] | None = None) -> Inline:
    """Score a corpus into a new output folder; raises what `score` raises.

    wrap_model: makes of the loaded model the one that is called, to let it fail on purpose.
    """
    assert output.read_run(config.output) is None, "resuming is the business of `score`"
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    output.start_run(plan, {})
    job = plan.job
    scorer = _scorer(job, wrap_model)
    tokenizer = Tokenizer.from_str(job.tokenizer_json)
    for unit in plan.units:
        for cut in encode_unit(job, tokenizer, unit.number, unit.source, read_unit(job, unit)):
            shard = from_row(to_row(cut))
            sequences, figures = scorer.score(shard.sequences)
            shard.about["seconds"]["score"] = figures.pop("seconds")
            shard = from_row(to_row(shard._replace(about=shard.about | figures, sequences=sequences)))
            decoded = decode_shard(job, shard.about["source"], shard.sequences, shard.errors)
            commit_shard(job, shard.about, decoded)
    records = read_records(config.output)
    totals = finish.complete(config, plan, plan.units, records)
    return Inline(totals, plan, list(records.values()), read_rows(config.output), read_rows(config.output, "errors"))


def _scorer(job: Job, wrap_model: Callable[[Any], Any] | None) -> Scorer:
    scorer = copy.copy(_loaded(job.model.name, job.identity["model"], job))
    scorer.job, scorer.budget = job, job.batch_tokens
    if wrap_model is not None:
        scorer.model = wrap_model(scorer.model)
    return scorer


_models: dict[tuple[str, str], Scorer] = {}


def _loaded(path: str, content: str, job: Job) -> Scorer:
    """One Scorer per model."""
    if (path, content) not in _models:
        _models[path, content] = Scorer(job)
    return _models[path, content]


def read_rows(output_folder: str | Path, folder: str = "scores") -> list[Row]:
    """All rows of scores/ or errors/, by shard, without partition columns."""
    files = sorted(Path(output_folder, folder).rglob("*.parquet"), key=lambda file: file.name)
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
