"""Results do not depend on how the work is cut, batched, spread or ordered."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import inline, models
from tests.support.stand_in_device import BUSY, IDLE, StandInDevice
from tokloss_ray import ScoreConfig, score
from tokloss_ray.demo import DATA
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.output.record import RowRange
from tokloss_ray.output.records import read_records
from tokloss_ray.scoring import begin, pipeline
from tokloss_ray.scoring.on_ray.hardware import AT_ONCE, Actors, Hardware, plan_actors
from tokloss_ray.scoring.on_ray.workers import ScoreActor
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.decode import decode_shard
from tokloss_ray.scoring.stages.device_queue import DeviceQueue
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.scoring.work import Work

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
MAX_LENGTH = 24
"""Short enough that many of the sentences become windows."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 real sentences, three of them bad, in row groups of 40."""
    rows = pq.read_table(DATA, columns=["id", "tokens", "ner_tags"]).slice(2000, 150).to_pylist()
    rows[10]["tokens"] = []
    rows[11]["ner_tags"] = rows[11]["ner_tags"][:-1]
    rows[149]["ner_tags"][0] = 99
    path = tmp_path_factory.mktemp("corpus") / "rows.parquet"
    types = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.string())), ("ner_tags", pa.list_(pa.int64()))])
    pq.write_table(pa.Table.from_pylist(rows, types), path, row_group_size=40)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentences = pq.read_table(DATA, columns=["tokens"]).slice(0, 300)["tokens"].to_pylist()
    return models.build("xlm-roberta", tmp_path_factory.mktemp("tiny"), sentences, TAGS)


def config(tiny: Path, corpus: Path, **changes: Any) -> ScoreConfig:
    base: dict[str, Any] = {
        "model": tiny,
        "input": str(corpus),
        "id_column": "id",
        "max_length": MAX_LENGTH,
        "overlap": 8,
    }
    return ScoreConfig(**({"output": "unused", "tags": TAGS, "max_error_rate": 0.1} | base | changes))


def by_key(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    keyed = {(row["example_id"], row["window"]): row for row in rows}
    assert len(keyed) == len(rows), "a sequence came out twice"
    return keyed


def row_range(about: dict[str, Any]) -> RowRange:
    """Which rows a shard holds, as its commit record would say."""
    return RowRange(
        about["start"], about["stop"], -1 if about["last_row"] is None else about["last_row"], about["last"]
    )


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    left, right = by_key(rows), by_key(others)
    assert left.keys() == right.keys()
    for key, row in left.items():
        other = right[key]
        assert row.keys() == other.keys()
        for name, value in row.items():
            if name in ("loss", "predicted_prob", "second_prob", "total_loss", "mean_loss", "max_loss"):
                assert (value is None) == (other[name] is None), (key, name)
                assert value is None or value == pytest.approx(other[name], rel=1e-4, abs=1e-4), (key, name)
            elif name in ("predicted_label", "second_label"):
                close = [abs(a - b) < 1e-4 for a, b in zip(row["predicted_prob"], row["second_prob"], strict=True)]
                assert all(a == b or tie for a, b, tie in zip(value, other[name], close, strict=True)), (key, name)
            else:
                assert value == other[name], (key, name)


class Expected:
    """What every run must come to; hypothesis prints its arguments, so this one is short in print."""

    def __init__(self, run: inline.Inline) -> None:
        self.rows, self.errors, self.totals = run.rows, run.errors, run.totals


@pytest.fixture(scope="module")
def expected(tiny: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """One shard, and batches of one sequence."""
    output = str(tmp_path_factory.mktemp("expected") / "out")
    run = inline.score_inline(config(tiny, corpus, output=output, shard_tokens=10**6, batch_tokens=1))
    assert len(run.errors) == 3
    assert any(row["window"] > 0 for row in run.rows)
    return Expected(run)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard_tokens=st.integers(20, 4000), batch_tokens=st.integers(20, 4000), seed=st.integers(0, 2**16))
def test_any_cut_any_batches_any_order(
    shard_tokens: int, batch_tokens: int, seed: int, tiny: Path, corpus: Path, expected: Expected
) -> None:
    plan = make_plan(
        preflight(config(tiny, corpus, shard_tokens=shard_tokens, batch_tokens=batch_tokens)), False, False
    )
    job = plan.job
    scorer = inline._scorer(job, None)
    tokenizer = RowTokenizer(job.tokenizer_json)
    shards = [shard for unit in plan.units for shard in encode_unit(job, tokenizer, unit, read_unit(job, unit))]
    for unit in plan.units:
        own = [shard.about for shard in shards if shard.about["unit"] == unit.number]
        assert [about["index"] for about in own] == list(range(len(own)))
        assert [about["last"] for about in own] == [False] * (len(own) - 1) + [True]
    for shard in shards:
        lengths = [len(ids) for ids in shard.sequences["input_ids"].to_pylist()]
        assert sum(lengths) <= shard_tokens or len(set(shard.sequences["source_row"].to_pylist())) == 1
    random.Random(seed).shuffle(shards)
    decoded = [decode_shard(job, s.about["sources"], scorer.score(s.sequences)[0], s.errors) for s in shards]
    assert_same([row for d in decoded for row in d.scores.to_pylist()], expected.rows)
    errors = sorted((row for d in decoded for row in d.errors.to_pylist()), key=lambda row: row["source_row"])
    assert errors == sorted(expected.errors, key=lambda row: row["source_row"])
    assert sum(d.figures["rows"] for d in decoded) == 150
    assert sum(d.figures["dropped_words"] for d in decoded) == expected.totals.dropped_words


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_committed_shards_are_skipped_and_the_others_are_the_same(
    data: st.DataObject, tiny: Path, corpus: Path
) -> None:
    plan = make_plan(preflight(config(tiny, corpus, shard_tokens=data.draw(st.integers(50, 1500)))), False, False)
    job, tokenizer = plan.job, RowTokenizer(plan.job.tokenizer_json)
    unit = plan.units[0]

    def encode(skip: dict[int, RowRange]) -> dict[int, Any]:
        shards = encode_unit(job, tokenizer, unit, read_unit(job, unit), skip)
        return {shard.about["index"]: shard for shard in shards}

    whole = encode({})
    skip = data.draw(st.frozensets(st.sampled_from(sorted(whole))))
    rest = encode({index: row_range(whole[index].about) for index in skip})
    assert rest.keys() == whole.keys() - skip
    for index, shard in rest.items():
        assert shard.sequences.equals(whole[index].sequences)
        assert shard.errors.equals(whole[index].errors)
        assert shard.about["last"] == whole[index].about["last"]


@pytest.mark.usefixtures("ray_session")
def test_through_ray_with_two_actors(tiny: Path, corpus: Path, expected: Expected, tmp_path: Path) -> None:
    """The whole job, two actors, many small shards: the same rows as one process makes."""
    output = str(tmp_path / "out")
    summary = score(config(tiny, corpus, output=output, actors=2, shard_tokens=300, batch_tokens=128))
    assert summary.new_shards > 10
    assert summary.totals.errors == {"empty": 1, "length_mismatch": 1, "label_out_of_range": 1}
    assert_same(pads.dataset(f"{output}/scores").to_table().to_pylist(), expected.rows)


class SuppliedActor(ScoreActor):
    """The model on a device that computes by itself, fed from a queue, as it is on a GPU."""

    def _load(self, *args: Any) -> None:
        super()._load(*args)
        scorer = self.scorers[0]
        scorer.queue = DeviceQueue(StandInDevice(seconds=0.05), scorer.forward, scorer.budget)


@pytest.mark.usefixtures("ray_session")
def test_through_ray_with_several_shards_in_an_actor(
    tiny: Path, corpus: Path, expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: shards overlap in the actor, and each gets its own results."""
    monkeypatch.setattr(pipeline, "ScoreActor", SuppliedActor)
    monkeypatch.setattr(begin, "plan_actors", lambda *_: Actors(1, 1, 1.0, 0, 1, AT_ONCE))
    output = str(tmp_path / "out")
    summary = score(config(tiny, corpus, output=output, shard_tokens=300, batch_tokens=128))
    assert_same(pads.dataset(f"{output}/scores").to_table().to_pylist(), expected.rows)
    records = [record for record in read_records(output).values() if record.sequences]
    assert len(records) > 10
    assert all(record.seconds["score"] % BUSY == 0 < record.seconds["score"] for record in records)
    # On the device's clock: with one shard at a time it would wait before each of them.
    assert 0 < sum(record.seconds["wait"] for record in records) < len(records) * IDLE
    assert summary.totals.device_wait is not None


@pytest.mark.usefixtures("ray_session")
def test_the_stages_stay_apart(tiny: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read and encode in one task, the model alone in its actor, decode and commit in one task."""
    import ray

    plan = make_plan(preflight(config(tiny, corpus)), False, False)
    for cpus in (1.0, 2.0, 4.0, 64.0):
        for count in (1, 2, 4, 8):
            actors = plan_actors(config(tiny, corpus, actors=count), Hardware((cpus,), (0.0,)))
            capsys.readouterr()
            pipeline.build(ray.put((plan.job,)), [Work(unit, {0: {}}) for unit in plan.units], actors).explain()
            physical = capsys.readouterr().out.split("Physical Plan (Optimized)")[1]
            operators = [line.strip(" +-") for line in physical.splitlines() if "[" in line]
            assert operators == [
                "TaskPoolMapOperator[MapBatches(decode_and_commit)]",
                "ActorPoolMapOperator[MapBatches(ScoreActor)]",
                "TaskPoolMapOperator[MapBatches(read_and_encode)]",
                "InputDataBuffer[Input]",
            ]
            wanted = count * actors.num_cpus + pipeline.ENCODE_CPUS + pipeline.COMMIT_CPUS
            assert wanted <= cpus or cpus == 1, "actors must leave room for encode and commit"
            assert (actors.threads or 0) * count <= max(cpus, count)
