"""Faults of processes and memory, in the whole job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from tests.support import models
from tokloss_ray import ScoreConfig, faults
from tokloss_ray.demo import DATA
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.output.verify import verify
from tokloss_ray.scoring.on_ray import workers as stages
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages import journal
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.journal import Journal, count_deaths, open_journal
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.scoring.stages.shard import from_row, to_row
from tokloss_ray.storage.files import remove

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    table = pq.read_table(DATA)
    pq.write_table(table.slice(300, 200), folder / "in.parquet")
    models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS)
    return folder


def tokloss(corpus: Path, output: Path, fault: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokloss_ray", "score", "--model", str(corpus / "model"), "--id-column", "id"]
    command += ["--input", str(corpus / "in.parquet"), "--output", str(output), "--shard-tokens", "800", *options]
    env = os.environ | {"TOKLOSS_FAULTS": fault}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("poison", [{5}, {0, 63}, {30, 31}, set()])
def test_journal_finds_the_rows_that_kill(tmp_path: Path, poison: set[int]) -> None:
    """The search by itself: a worker that dies over any batch with a poison row, until none is left."""
    lengths = np.arange(64) % 9 + 3
    scored: set[int] = set()
    for _ in range(60):
        journal = open_journal(str(tmp_path), "000000-000")
        scored, died = set(), False
        for batch in journal.batches(lengths, 40):
            rows = batch.tolist()
            assert len(rows) == 1 or len(rows) * max(lengths[batch]) <= 40
            journal.write(rows)
            if poison & set(rows):
                died = True
                break
            scored |= set(rows)
        if not died:
            journal.write([])
            break
    else:
        pytest.fail("the search does not end")
    assert set(journal.poison) == poison
    assert scored == set(range(64)) - poison
    assert journal.deaths == count_deaths(str(tmp_path)) <= 12 * len(poison)


def test_one_death_is_no_proof(tmp_path: Path) -> None:
    """A node may be lost just while an innocent row is being scored alone."""
    Journal(f"{tmp_path}/_attempts/000000-000.json").write([7])
    journal = open_journal(str(tmp_path), "000000-000")
    assert journal.deaths == 1
    assert journal.poison == []
    assert 7 in np.concatenate(journal.batches(np.full(10, 5), 20)).tolist()


def test_only_shards_that_a_worker_died_over_are_scored_carefully(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pass, in which a worker has died over one shard: full speed for all others, tried before or not."""
    config = ScoreConfig(
        model=str(corpus / "model"), input=str(corpus / "in.parquet"), output=str(tmp_path), shard_tokens=800,
        batch_tokens=256,
    )  # fmt: skip
    plan = make_plan(preflight(config), False, False)
    unit, tokenizer = plan.units[0], RowTokenizer(plan.job.tokenizer_json)
    shards = list(encode_unit(plan.job, tokenizer, unit, read_unit(plan.job, unit)))
    assert len(shards) > 4
    for shard in shards:
        shard.about.update(storage_retries=0, jobs=[0])
    monkeypatch.setattr(stages, "_jobs", lambda ref: (plan.job,))
    actor = stages.ScoreActor(None, 2, False, again=True)
    notes: list[str] = []
    attempts = tmp_path / "_attempts"
    scorer = actor.scorers[0]
    real = scorer.score

    def score(*args: Any) -> Any:
        notes.append(" ".join(sorted(file.stem for file in attempts.iterdir())))
        if dies and len(notes) == 3:
            raise SystemExit  # in place of SIGKILL: nothing after this runs but what the test runs
        return real(*args)

    monkeypatch.setattr(scorer, "score", score)
    dies = True
    with monkeypatch.context() as killed:
        killed.setattr(journal, "remove", lambda fs, path: None if "000000-002" in path else remove(fs, path))
        for shard in shards[:3]:
            try:
                list(actor(to_row(shard)))
            except SystemExit:
                break
    assert notes == ["000000-000", "000000-001", "000000-002"]
    assert [file.stem for file in attempts.iterdir()] == ["000000-002"]
    assert count_deaths(str(tmp_path)) == 1
    dies = False
    budgets = {}
    for shard in shards[2:]:
        about = from_row(*actor(to_row(shard))).about
        budgets[about["index"]] = about["batch_tokens"]
    assert budgets == {index: 128 if index == 2 else 256 for index in range(2, len(shards))}
    assert [file.stem for file in attempts.iterdir()] == ["000000-002"]


def test_faults_are_off_and_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faults.fault_point("commit.before", "000000-000")
    monkeypatch.setattr(faults, "_faults", "commit.before@000000-001=raise")
    faults.fault_point("commit.before", "000000-000")
    with pytest.raises(faults.InjectedFault):
        faults.fault_point("commit.before", "000000-001")
    monkeypatch.setenv("TOKLOSS_FAULTS_ONCE", str(tmp_path))
    with pytest.raises(faults.InjectedFault):
        faults.fault_point("commit.before", "000000-001")
    faults.fault_point("commit.before", "000000-001")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_row_that_kills_is_quarantined(corpus: Path, tmp_path: Path) -> None:
    """The out-of-memory killer: whatever batch the row is in, its process is gone. All other rows are scored."""
    output = tmp_path / "out"
    poison = pq.read_table(corpus / "in.parquet", columns=["id"])["id"][77].as_py()
    done = tokloss(corpus, output, f"score.batch@{poison}.=kill", "--batch-tokens", "256", "--max-error-rate", "0.01")
    assert done.returncode == 0, done.stderr
    assert "out_of_memory" in done.stdout
    (error,) = pads.dataset(output / "errors").to_table().to_pylist()
    assert (error["example_id"], error["reason"], error["stage"]) == (poison, "out_of_memory", "score")
    assert "kills the process" in error["detail"]
    assert not (output / "_attempts").exists()
    found = verify(str(output))
    assert found.problems == []
    assert (found.totals.rows, found.totals.error_rows) == (200, 1)


@pytest.mark.slow
def test_standstill_ends_with_a_sentence(corpus: Path, tmp_path: Path) -> None:
    done = tokloss(corpus, tmp_path / "out", "score.batch=stall:600", "--stall-timeout", "15")
    assert done.returncode == 1, done.stderr
    assert "nothing was committed for 15 s (--stall-timeout)" in done.stderr
    assert "score: 1 running" in done.stderr or "score: 3 running" in done.stderr or "score: 2 running" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_late_writer_of_another_run(corpus: Path, tmp_path: Path) -> None:
    """A worker of a run that was overwritten commits late, over a shard of the new run: that shard is scored again."""
    done = tokloss(corpus, tmp_path / "old", "", "--max-length", "32")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out"
    done = tokloss(corpus, output, "", "--partition-by", "lang")
    assert done.returncode == 0, done.stderr
    (output / "_SUCCESS").unlink()
    shutil.copy(tmp_path / "old" / "_commits" / "000000-001.json", output / "_commits" / "000000-001.json")
    (late,) = (tmp_path / "old" / "scores").glob("000000-001-*.parquet")
    shutil.copy(late, output / "scores" / late.name)
    done = tokloss(corpus, output, "", "--partition-by", "lang")
    assert done.returncode == 0, done.stderr
    assert verify(str(output)).problems == []
    assert not (output / "scores" / late.name).exists()


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_two_runs_at_once(corpus: Path, tmp_path: Path, same: bool) -> None:
    """One finishes, the other is refused, whether its settings are the same or not."""
    command = [sys.executable, "-m", "tokloss_ray", "score", "--model", str(corpus / "model"), "--id-column", "id"]
    command += ["--input", str(corpus / "in.parquet"), "--output", str(tmp_path / "out"), "--shard-tokens"]
    both = [
        subprocess.Popen([*command, tokens], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for tokens in ("800", "800" if same else "700")
    ]
    said = [process.communicate(timeout=250)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert any("another run is at work in" in text or "another run was at work in" in text for text in said), said
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.slow
def test_nothing_is_alive_after_the_driver_was_killed(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tokloss_ray", "score", "--model", str(corpus / "model")]
    command += ["--input", str(corpus / "in.parquet"), "--output", str(tmp_path / "out"), "--shard-tokens", "300"]
    env = os.environ | {"TOKLOSS_FAULTS": "score.batch=stall:2"}
    process = subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("out/_commits/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    time.sleep(10)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    workers = [p for p in psutil.process_iter() if _session(p) == process.pid and "ray::" in " ".join(_command(p)[:1])]
    busy = [p.cpu_times() for p in workers]
    time.sleep(3)
    assert not [p for p in workers if p.is_running() and "MapWorker" in " ".join(_command(p))]
    assert sum(p.cpu_times().user for p in workers if p.is_running()) - sum(b.user for b in busy) < 1.0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
