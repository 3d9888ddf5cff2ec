"""The same tables on a cluster and on object storage as on one machine, to the byte."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs

import tokloss_ray
from tests.support import inline, warm
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.errors import Interrupted, JobFailed, Refused
from tokloss_ray.mining import mine as mine_module
from tokloss_ray.mining.on_ray import on_ray

OPTIONS: dict[str, Any] = {"by": ["lang"], "min_count": 2, "limit": 100}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "out"
    inline.score_inline(
        ScoreConfig(
            model=str(MODEL), input=(str(DATA),), output=str(folder), id_column="id", partition_by=("lang",), limit=300,
            shard_tokens=1024,
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches of few files, as of a large corpus."""
    monkeypatch.setattr(mine_module, "file_batches", lambda files: [[file] for file in files])


def written(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "mining").iterdir())}


@pytest.mark.usefixtures("ray_session", "small_batches")
def test_ray_makes_the_same_bytes(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list((output / "scores").rglob("*.parquet"))) > 4
    tokloss_ray.mine(str(output), address="local", **OPTIONS)
    local = written(output)
    used = []
    monkeypatch.setattr("tokloss_ray.mining.on_ray.on_ray", lambda *args: (used.append(1), on_ray(*args))[1])
    tokloss_ray.mine(str(output), **OPTIONS)
    assert used
    assert written(output) == local


@pytest.mark.usefixtures("ray_session", "small_batches")
def test_a_damaged_file_is_one_sentence_on_ray(output: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(output, tmp_path / "out")
    next((tmp_path / "out/scores").rglob("*.parquet")).write_bytes(b"nothing")
    with pytest.raises(JobFailed, match="cannot read") as error:
        tokloss_ray.mine(str(tmp_path / "out"), write=False)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("ray_session", "small_batches")
def test_nothing_runs_after_an_interruption(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Ray is shut down, that is: what still runs then prints what it meets."""
    names = ("tokloss-results", "iter_threaded", "StreamingExecutor")

    def running() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]

    def interrupted(parts: Iterator[Any], *_: Any) -> None:
        next(parts)
        assert running()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(mine_module, "combine_in_order", interrupted)
    with pytest.raises(Interrupted) as error:
        tokloss_ray.mine(str(output), write=False)
    assert error.value.exit_code == 143
    assert not running()


@pytest.mark.usefixtures("ray_session")
def test_load_as_a_ray_dataset(output: Path) -> None:
    data = tokloss_ray.load(str(output), as_="ray", columns=["example_id", "total_loss", "lang"])
    frame = data.to_pandas().sort_values("example_id", ignore_index=True)
    expected = tokloss_ray.load(str(output), as_="pandas", columns=["example_id", "total_loss", "lang"])
    assert frame.to_dict() == expected.sort_values("example_id", ignore_index=True).to_dict()


def test_no_cluster_there(output: Path) -> None:
    done = warm.tokloss("mine", output, "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Ray cluster at 127.0.0.1:1")
    assert not done.stdout


@pytest.mark.slow
def test_a_submitted_job(output: Path) -> None:
    from tests.support.cluster import cluster

    tokloss_ray.mine(str(output), address="local", **OPTIONS)
    local = written(output)
    with cluster(["--num-cpus=2"]) as here:
        arguments = [str(output), "--by", "lang", "--min-count", "2", "--limit", "100", "--show", "1"]
        code, said = here.submit(arguments, script="jobs/mine.py")
        assert code == 0, said
        assert "tables are in" in said
        assert written(output) == local
        code, said = here.submit([str(output / "nothing")], script="jobs/mine.py")
        assert code == 1
        assert "is not an output of tokloss score" in said


def test_object_storage(output: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = s3fs.S3FileSystem()
    for name in ("_run.json", "_SUCCESS", "_commits", "scores"):
        fs.put(str(output / name), f"{bucket}/out/{name}", recursive=True)
    tokloss_ray.mine(str(output), address="local")
    tokloss_ray.mine(f"{bucket}/out", address="local")
    for file in (output / "mining").iterdir():
        with fs.open(f"{bucket}/out/mining/{file.name}") as there:
            here, there = (str(pq.read_table(table).to_pylist()) for table in (file, there))
            assert there.replace(repr(f"{bucket}/out"), repr(str(output))) == here, file.name
    monkeypatch.setattr("tokloss_ray.output.score_files.WHOLE_FILE", 0)  # by ranges, as of large files
    again = tokloss_ray.mine(f"{bucket}/out", address="local", write=False)
    assert again["tokens"].equals(pq.read_table(output / "mining/tokens.parquet"))
    with pytest.raises(Refused, match="is not an output"):
        tokloss_ray.mine(f"{bucket}/nothing")
