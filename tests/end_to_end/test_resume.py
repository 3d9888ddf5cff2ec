"""Interrupted and run again: the rest is scored, the result is the same, and two runs never mix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from tests.support import models
from tests.support.inline import score_inline
from tests.support.watchers import StopAfter
from tokloss_ray import ScoreConfig, score
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.errors import Interrupted, Refused
from tokloss_ray.output.run import read_run
from tokloss_ray.scoring import begin
from tokloss_ray.scoring.plan import Plan

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SHARD_TOKENS = 3000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 real sentences in row groups of 100."""
    path = tmp_path_factory.mktemp("corpus") / "part.parquet"
    pq.write_table(pq.read_table(DATA).slice(0, 1200), path, row_group_size=100)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentences = pq.read_table(DATA, columns=["tokens"]).slice(0, 300)["tokens"].to_pylist()
    return models.build("bert", tmp_path_factory.mktemp("tiny"), sentences, TAGS)


@pytest.fixture
def config(tiny: Path, corpus: Path, tmp_path: Path) -> Callable[..., ScoreConfig]:
    def make(**changes: Any) -> ScoreConfig:
        settings: dict[str, Any] = {
            "model": tiny,
            "input": str(corpus),
            "output": str(tmp_path / "out"),
            "id_column": "id",
            "partition_by": ["lang"],
            "shard_tokens": SHARD_TOKENS,
        }
        return ScoreConfig(**(settings | changes))

    return make


def data_files(output: str) -> dict[str, bytes]:
    """Every file that holds data, by its path in the output."""
    root = Path(output)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")}


def rows(output: str) -> list[dict[str, Any]]:
    table = pads.dataset(f"{output}/scores", partitioning="hive").to_table()
    return table.sort_by([("source", "ascending"), ("source_row", "ascending"), ("window", "ascending")]).to_pylist()


@pytest.mark.usefixtures("ray_session")
def test_interrupted_then_run_again(config: Callable[..., ScoreConfig], tmp_path: Path) -> None:
    undisturbed = score(config(output=str(tmp_path / "undisturbed")))
    assert undisturbed.totals.rows == 1200
    assert undisturbed.new_shards > 5
    with pytest.raises(Interrupted):
        score(config(), StopAfter(2))
    # Ray is shut down next, if it is the run's own: what still runs then prints what it meets.
    names = ("tokloss-results", "iter_threaded", "StreamingExecutor")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    time.sleep(1)  # Ray cancels what is in flight; a task that is just committing may still do so, or leave a .tmp file
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "_commits").glob("[0-9]*.json")}
    assert 2 <= len(kept) < undisturbed.new_shards

    again = score(config(actors="2", batch_tokens=512))
    assert again.new_shards == undisturbed.new_shards - len(kept)
    assert again.totals.rows == 1200
    commits = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "_commits").glob("[0-9]*.json")}
    assert {name: commits[name] for name in kept} == kept, "a committed shard was scored again"

    ours, theirs = data_files(str(tmp_path / "out")), data_files(str(tmp_path / "undisturbed"))
    assert ours.keys() == theirs.keys()
    for one, other in zip(rows(str(tmp_path / "out")), rows(str(tmp_path / "undisturbed")), strict=True):
        assert one.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-4, abs=1e-4)
        for name in ("input_ids", "labels", "predicted_label", "example_id", "lang"):
            assert one[name] == other[name]

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    finished = score(config())
    assert finished.finished_before
    assert finished.new_shards == 0
    assert finished.totals.tokens == undisturbed.totals.tokens
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


@pytest.mark.usefixtures("ray_session")
def test_refusal_by_a_node_leaves_the_folder_free(
    config: Callable[..., ScoreConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(plan: Plan, run_file: str) -> None:
        assert Path(run_file).is_absolute()
        assert json.loads(Path(run_file).read_text())["fingerprint"].startswith(plan.job.fingerprint)
        raise Refused("node 10.0.0.7 does not see it")

    monkeypatch.setattr(begin, "check_nodes", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"node 10\.0\.0\.7"):
        score(config(output="out"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("ray_session")
def test_same_settings_give_the_same_files(config: Callable[..., ScoreConfig], tmp_path: Path) -> None:
    """Names, order, ids and strings are the same to the bit; floats may differ in the last one, as kernels choose."""
    runs = [str(tmp_path / name) for name in "ab"]
    for output in runs:
        score(config(output=output))
    first, second = map(data_files, runs)
    assert first.keys() == second.keys()
    for path in first:
        one, other = (pq.read_table(pa.BufferReader(files[path])) for files in (first, second))
        assert one.schema == other.schema
        for name in one.column_names:
            same = one[name].equals(other[name])
            floats = name in ("loss", "predicted_prob", "second_prob", "total_loss", "mean_loss", "max_loss")
            assert same or floats, (path, name)
    assert len({(Path(run) / "_plan.parquet").read_bytes() for run in runs}) == 1
    one, other = (read_run(run) for run in runs)
    assert one is not None
    assert other is not None
    assert [run.settings.pop("output") for run in (one, other)] == runs
    assert one == other


@pytest.mark.usefixtures("ray_session")
def test_another_run_in_the_same_output(
    config: Callable[..., ScoreConfig], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    score_inline(config(limit=100))
    before = data_files(str(tmp_path / "out"))
    sentences = pq.read_table(DATA, columns=["tokens"]).slice(0, 300)["tokens"].to_pylist()
    other = models.build("bert", tmp_path_factory.mktemp("other"), sentences, TAGS, seed=5)
    differing = {
        "model": {"model": other},
        "limit": {"limit": 101},
        "max-length": {"max_length": 64},
        "dtype": {"dtype": "bfloat16"},
        "shard-tokens": {"shard_tokens": 999},
        "label-all-subtokens": {"label_all_subtokens": True},
        "keep": {"keep": ["id"]},
        "input": {"input": [str(DATA)]},
    }
    for named, change in differing.items():
        with pytest.raises(Refused, match=named) as caught:
            score(config(**({"limit": 100} | change)))
        assert caught.value.exit_code == 2
        assert "--overwrite" in str(caught.value)
    assert data_files(str(tmp_path / "out")) == before
    assert score(config(limit=100, actors=2, max_error_rate=0.5, batch_tokens=100)).finished_before

    fresh = score(config(limit=101, overwrite=True))
    assert fresh.totals.rows == 101
    assert not set(before) & set(data_files(str(tmp_path / "out"))) - {"_plan.parquet", "_inputs.parquet"}


def test_changed_input_is_another_run(config: Callable[..., ScoreConfig], tmp_path: Path) -> None:
    mine = tmp_path / "mine.parquet"
    table = pq.read_table(DATA).slice(0, 50)
    pq.write_table(table, mine)
    score_inline(config(input=str(mine)))
    pq.write_table(pa.concat_tables([table, table]), mine)
    with pytest.raises(Refused, match=r"input \(mine\.parquet\)"):
        score(config(input=str(mine)))


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("part") / "part.parquet"
    pq.write_table(pq.read_table(DATA).slice(0, 4000), path)
    return path


def start(output: Path, model: Path, corpus: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tokloss_ray", "score", "--model", str(model), "--input", str(corpus)]
    command += ["--output", str(output), "--id-column", "id", "--shard-tokens", "4000", "--batch-tokens", "256"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_commits(output: Path, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(output.glob("_commits/*.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ray_processes(session: int) -> list[int]:
    """Processes in the session of a driver that are alive and compute: its workers are its descendants."""
    alive = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            name = (entry / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z" and name.startswith(b"ray::"):
            alive.append(int(entry.name))
    return alive


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_job_in_good_order(number: int, code: int, part: Path, tmp_path: Path) -> None:
    """The demo model makes shards slow enough to be interrupted between two of them."""
    output = tmp_path / "out"
    process = start(output, MODEL, part)
    wait_for_commits(output, process, 2)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert not ray_processes(process.pid)
    kept = {p.name for p in (output / "_commits").glob("*.json")}
    assert not (output / "_SUCCESS").exists()
    assert not list(output.rglob("*.tmp"))

    process = start(output, MODEL, part)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert f"resuming: {len(kept)} shard" in said
    assert json.loads((output / "_SUCCESS").read_text())["rows"] == 4000


@pytest.mark.slow
def test_killed_driver_then_run_again(part: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(output, MODEL, part)
    wait_for_commits(output, process, 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process = start(output, MODEL, part)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert json.loads((output / "_SUCCESS").read_text())["rows"] == 4000
    table = pads.dataset(f"{output}/scores").to_table(columns=["example_id"])
    assert sorted(table["example_id"].to_pylist()) == sorted(pq.read_table(part, columns=["id"])["id"].to_pylist())
