"""Retries have an end where Ray Data is given none: the job counts them itself, and loses nothing but what kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support import models
from tokloss_ray.demo import DATA
from tokloss_ray.output.verify import verify
from tokloss_ray.scoring.on_ray.attempts import MAX_ATTEMPTS, Attempts, attempt, count_attempts

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


def test_an_end_takes_a_begin_back() -> None:
    counter = Attempts()
    assert [counter.begin("a"), counter.begin("b"), counter.begin("a")] == [1, 1, 2]
    counter.end("a")
    assert counter.begin("a") == 1
    assert counter.begin("b") == 2


@pytest.mark.usefixtures("ray_session")
def test_work_that_never_ends_is_not_begun_again() -> None:
    import ray

    counter = count_attempts()
    for _ in range(MAX_ATTEMPTS):
        ray.get(counter.begin.remote("dies"))
    with attempt(counter, "dies") as allowed, attempt(counter, "fine") as other:
        assert (allowed, other) == (False, True)
    with attempt(counter, "fine") as allowed:
        assert allowed
    ray.kill(counter)
    with attempt(counter, "dies") as allowed:
        assert allowed, "a counter that has died with its node counts as none"


WITHOUT_ARGUMENTS = """
import sys
from tokloss_ray.__main__ import main
from tokloss_ray.scoring import pipeline

pipeline.RAY_COUNTS = False
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_row_that_kills_is_quarantined_without_the_arguments_of_ray(tmp_path: Path) -> None:
    """The whole job, with Ray retrying without limit, as it will from 2.64 on."""
    rows = pq.read_table(DATA).slice(0, 60)
    pq.write_table(rows, tmp_path / "in.parquet")
    models.build("bert", tmp_path / "model", rows["tokens"].to_pylist(), TAGS)
    poison, output = rows["id"][37].as_py(), tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        WITHOUT_ARGUMENTS,
        "score",
        "--model",
        str(tmp_path / "model"),
        "--id-column",
        "id",
    ]
    command += ["--input", str(tmp_path / "in.parquet"), "--output", str(output), "--shard-tokens", "400"]
    command += ["--batch-tokens", "128", "--max-error-rate", "0.1"]
    environment = {**os.environ, "TOKLOSS_FAULTS": f"score.batch@{poison}.=kill"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (error,) = [row for path in (output / "errors").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert (error["example_id"], error["reason"]) == (poison, "out_of_memory")
    found = verify(str(output))
    assert not found.problems
    assert (found.totals.rows, found.totals.error_rows) == (60, 1)
