"""Every crash point: the process dies there, the same command runs again, and nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import models, warm
from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.faults import POINTS
from tokloss_ray.output import segments
from tokloss_ray.output.verify import verify

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


def without_ray(model: str, source: str, output: str, overwrite: bool) -> None:
    """What the process does that dies."""
    torch.set_num_threads(1)
    segments.RECORDS = 2
    score_inline(
        ScoreConfig(
            model=model,
            input=source,
            output=output,
            shard_tokens=500,
            partition_by=["lang"],
            max_error_rate=0.1,
            overwrite=overwrite,
        )
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash")
    table = pq.read_table(DATA)
    rows = table.slice(300, 120).to_pylist()
    for number in (11, 70):
        rows[number]["tokens"] = []
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS)
    return folder


def rows_of(output: Path) -> list[dict]:
    table = pads.dataset(output / "scores", partitioning="hive").to_table().to_pandas()
    return table.sort_values(["source_row", "window"], ignore_index=True).drop(columns="lang").to_dict("records")


def run(corpus: Path, output: Path, fault: str = "", folder: Path | None = None, overwrite: bool = False) -> int:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TOKLOSS_")}
    env |= {"TOKLOSS_FAULTS": fault, "TOKLOSS_FAULTS_ONCE": str(folder)} if fault else {}
    paths = str(corpus / "model"), str(corpus / "in.parquet"), str(output)
    done = warm.run(without_ray, *paths, overwrite, env=env, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def undisturbed_output(corpus: Path) -> Path:
    return corpus / "undisturbed"


@pytest.fixture(scope="module")
def undisturbed(corpus: Path) -> list[dict]:
    assert run(corpus, undisturbed_output(corpus)) == 0
    return rows_of(undisturbed_output(corpus))


# Where a point is passed more than once, also at a later visit: the shard in the middle.
SUBJECTS = {"commit": "000000-002", "file": "000000-002"}


@pytest.mark.parametrize("point", POINTS)
def test_dies_and_runs_again(point: str, corpus: Path, undisturbed: list[dict], tmp_path: Path) -> None:
    output = tmp_path / "out"
    subject = SUBJECTS.get(point.partition(".")[0], "")
    if point == "commit.errors":
        subject = ""
    fault = f"{point}@{subject}=kill" if subject else f"{point}=kill"
    assert run(corpus, output, fault, tmp_path) == -signal.SIGKILL, f"nobody passed {point}"
    assert (output / "_SUCCESS").exists() == (point == "success.after")
    for file in output.rglob("*.parquet"):
        if not file.name.startswith("."):
            pq.read_table(file, partitioning=None)  # whole, or not there
    for record in output.glob("_commits/*.json"):
        json.loads(record.read_text())
    assert run(corpus, output) == 0
    found = verify(str(output))
    assert found.problems == []
    assert (found.totals.rows, found.totals.error_rows) == (120, 2)
    again = rows_of(output)
    assert len(again) == len(undisturbed)
    for one, other in zip(again, undisturbed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-4)
        for name in ("example_id", "source_row"):
            assert one[name] == other[name]
        for name in ("input_ids", "labels", "predicted_label"):
            assert list(one[name]) == list(other[name])


@pytest.mark.parametrize("removed", ["_commits", "_plan.parquet"])
def test_overwrite_dies_and_runs_again(removed: str, corpus: Path, undisturbed: list[dict], tmp_path: Path) -> None:
    """Half of the old output is gone: the same command without --overwrite goes on with what is there."""
    output = tmp_path / "out"
    shutil.copytree(undisturbed_output(corpus), output)
    assert run(corpus, output, f"clear@{removed}=kill", tmp_path, overwrite=True) == -signal.SIGKILL
    assert not (output / "_SUCCESS").exists()
    assert run(corpus, output) == 0
    assert verify(str(output)).problems == []
    assert [row["source_row"] for row in rows_of(output)] == [row["source_row"] for row in undisturbed]


def job(corpus: Path, output: Path, fault: str = "") -> tuple[int, str]:
    """`tokloss score` with a fault that happens once: exit code, and what it said."""
    command = [sys.executable, "-m", "tokloss_ray", "score", "--model", str(corpus / "model")]
    command += ["--input", str(corpus / "in.parquet"), "--output", str(output), "--shard-tokens", "500"]
    command += ["--partition-by", "lang", "--max-error-rate", "0.1"]
    env = os.environ | {"TOKLOSS_FAULTS": fault, "TOKLOSS_FAULTS_ONCE": str(output.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250)
    return done.returncode, done.stdout + done.stderr


IN_DRIVER = [point for point in POINTS if point.startswith(("plan", "run", "success"))]
# The driver writes files too: in a worker it is a file of scores/.
IN_WORKERS = [
    f"{point}@/scores/" if point.startswith("file") else point
    for point in POINTS
    if point not in IN_DRIVER and not point.startswith("roll")  # which takes a thousand records
]


@pytest.mark.slow
def test_workers_die_at_every_point(corpus: Path, undisturbed: list[dict], tmp_path: Path) -> None:
    """One job, in which a worker dies at each point in turn; Ray runs its shard again."""
    code, said = job(corpus, tmp_path / "out", ",".join(f"{point}=kill" for point in IN_WORKERS))
    assert code == 0, said
    assert len(list(tmp_path.glob("????????????????"))) == len(IN_WORKERS), "a point was not passed"
    assert verify(str(tmp_path / "out")).problems == []
    assert [row["source_row"] for row in rows_of(tmp_path / "out")] == [row["source_row"] for row in undisturbed]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_driver_dies_at_every_point(corpus: Path, undisturbed: list[dict], tmp_path: Path) -> None:
    """The same command again and again, each time ended a step later, until it is through."""
    output = tmp_path / "out"
    for point in IN_DRIVER:
        code, said = job(corpus, output, f"{point}=kill")
        assert code == -signal.SIGKILL, (point, said)
    code, said = job(corpus, output)
    assert code == 0, said
    assert "is already complete" in " ".join(said.split())
    assert verify(str(output)).problems == []
    assert [row["source_row"] for row in rows_of(output)] == [row["source_row"] for row in undisturbed]
