"""Several models in one pass, on Ray: what each writes, and workers and drivers that die in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import models
from tests.support.inline import Inline, read_rows, score_inline
from tokloss_ray import ScoreConfig, score
from tokloss_ray.demo import DATA
from tokloss_ray.output.verify import verify

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
NAMES = ("a", "b")
OPTIONS: dict[str, Any] = {"id_column": "id", "shard_tokens": 500, "max_error_rate": 0.1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    table = pq.read_table(DATA)
    rows = table.slice(300, 120).to_pylist()
    rows[11]["tokens"] = []
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    for seed, name in enumerate(NAMES):
        models.build("bert", folder / name, table["tokens"].slice(0, 200).to_pylist(), TAGS, seed=seed)
    return folder


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Inline]:
    """A run of each model by itself."""
    return {
        name: score_inline(
            ScoreConfig(model=place / name, input=place / "in.parquet", output=place / f"out-{name}", **OPTIONS)
        )
        for name in NAMES
    }


def check(output: Path, wanted: Inline, without: str = "") -> None:
    """The same rows, whatever has happened; one of them may be in errors/."""
    assert verify(str(output)).problems == []
    found = read_rows(output)
    rows = [row for row in wanted.rows if row["example_id"] != without]
    assert [row["example_id"] for row in found] == [row["example_id"] for row in rows]
    for row, other in zip(found, rows, strict=True):
        assert (row["input_ids"], row["predicted_label"]) == (other["input_ids"], other["predicted_label"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-4)


def command(place: Path, output: Path) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "tokloss_ray",
        "score",
        "--input",
        str(place / "in.parquet"),
        "--output",
        str(output),
    ]
    words += [word for name in NAMES for word in ("--model", str(place / name))]
    return [
        *words,
        "--batch-tokens",
        "128",
        *(w for k, v in OPTIONS.items() for w in (f"--{k.replace('_', '-')}", str(v))),
    ]


@pytest.mark.usefixtures("ray_session")
def test_two_models(place: Path, alone: dict[str, Inline], tmp_path: Path) -> None:
    configs = ScoreConfig.several(
        model=[place / name for name in NAMES], input=place / "in.parquet", output=tmp_path, **OPTIONS
    )
    for name, summary in zip(NAMES, score(configs), strict=True):
        check(tmp_path / name, alone[name])
        assert summary.totals.loss_by_tag.keys() == alone[name].totals.loss_by_tag.keys()
        assert (summary.totals.rows, summary.totals.errors) == (120, {"empty": 1})


@pytest.mark.slow
def test_workers_die_between_the_models(place: Path, alone: dict[str, Inline], tmp_path: Path) -> None:
    """While a shard is scored by one, and between two commits of a shard."""
    faults = "score.batch=kill,commit.record@000000-001=kill,commit.before@000000-003=kill"
    env = os.environ | {"TOKLOSS_FAULTS": faults, "TOKLOSS_FAULTS_ONCE": str(tmp_path)}
    done = subprocess.run(command(place, tmp_path / "out"), env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        check(tmp_path / "out" / name, alone[name])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_row_that_kills_is_found_for_each(place: Path, alone: dict[str, Inline], tmp_path: Path) -> None:
    poison = alone["a"].rows[50]["example_id"]
    env = os.environ | {"TOKLOSS_FAULTS": f"score.batch@{poison}.=kill"}
    done = subprocess.run(command(place, tmp_path / "out"), env=env, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        check(tmp_path / "out" / name, alone[name], without=poison)
        errors = {row["example_id"]: row["reason"] for row in read_rows(tmp_path / "out" / name, "errors")}
        assert errors[poison] == "out_of_memory"
        assert len(errors) == 2


@pytest.mark.slow
def test_a_driver_dies(place: Path, alone: dict[str, Inline], tmp_path: Path) -> None:
    """One has committed a shard that the other has not; the same command scores what each lacks."""
    output = tmp_path / "out"
    env = os.environ | {"TOKLOSS_FAULTS": "commit.before@000000-002=stall:600", "TOKLOSS_FAULTS_ONCE": str(tmp_path)}
    with subprocess.Popen(command(place, output), env=env, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        deadline = time.monotonic() + 120
        shard = [output / name / "_commits" / "000000-002.json" for name in NAMES]
        while not any(path.exists() for path in shard) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGKILL)
    there = [path.exists() for path in shard]
    assert sorted(there) == [False, True]
    before = {p: p.stat().st_mtime_ns for p in output.rglob("_commits/*.json")}
    done = subprocess.run(
        [*command(place, output), "--log-format", "json"], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["event"] == "commit" for line in lines) == sum(len(alone[n].records) for n in NAMES) - len(before)
    for name in NAMES:
        check(output / name, alone[name])
    assert {p: p.stat().st_mtime_ns for p in before} == before
