"""Whole jobs, on Ray, of rows and a model that cannot be scored, and of no rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch

from tests.support.inline import read_rows, write_jsonl
from tests.support.tiny import (
    EMPTY,
    GOOD_WORDS,
    row,
)
from tokloss_ray import ScoreConfig, score
from tokloss_ray.errors import JobFailed, TooManyBadRows


@pytest.mark.usefixtures("ray_session")
def test_more_bad_rows_than_allowed(model: Path, tmp_path: Path) -> None:
    """Exit 3 and no _SUCCESS, the good rows there; a higher rate then only writes _SUCCESS."""
    source = write_jsonl(tmp_path / "in.jsonl", [*GOOD_WORDS, row("a", tags=[0, 0])])
    settings = {"model": str(model), "input": str(source), "output": str(tmp_path / "out")}
    with pytest.raises(TooManyBadRows) as caught:
        score(ScoreConfig(**settings, max_error_rate=0.2))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "1 of 4 rows cannot be scored (length_mismatch 1), more than --max-error-rate 0.2" in message
    assert str(tmp_path / "out" / "errors") in message
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert len(read_rows(tmp_path / "out")) == 3
    assert len(read_rows(tmp_path / "out", "errors")) == 1
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*") if file.is_file()}

    rate = float(message.split("run again with --max-error-rate ")[1].split()[0])
    assert 0.25 <= rate < 0.5, "the rate that the sentence suggests is enough, and no free pass"
    summary = score(ScoreConfig(**settings, max_error_rate=rate))
    assert (summary.new_shards, summary.totals.error_rows, summary.finished_before) == (0, 1, False)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    now = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*") if file.is_file()}
    assert now.pop(tmp_path / "out" / "README.md")
    assert now == files, "nothing but _SUCCESS and its card is written"


@pytest.mark.usefixtures("ray_session")
def test_mostly_bad_rows_stop_the_job_early(model: Path, tmp_path: Path) -> None:
    """More than half of the first thousand rows: a wrong column, which need not be read to the end."""
    count = 12_000
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", tags=[0] * (1 + (i % 10 > 0))) for i in range(count)])
    settings = {"model": str(model), "input": str(source), "output": str(tmp_path / "out"), "shard_tokens": 250}
    with pytest.raises(TooManyBadRows) as caught:
        score(ScoreConfig(**settings, max_error_rate=0.4))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith("stopped: ")
    assert "wrong column" in message
    rows = int(message.split("of the first ")[1].split(" rows")[0].replace(",", ""))
    assert 1000 <= rows < 2000
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.usefixtures("ray_session")
def test_weights_without_the_head(model_copy: Path, good: Path, tmp_path: Path) -> None:
    """Only loading shows it, in the actor: exit 1, with its one sentence and no stack of frameworks."""
    file = model_copy / "model.safetensors"
    weights = {k: v for k, v in safetensors.torch.load_file(file).items() if not k.startswith("classifier")}
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(JobFailed) as caught:
        score(ScoreConfig(model=str(model_copy), input=str(good), output=str(tmp_path / "out")))
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert "\n" not in message
    assert "lack classifier" in message
    assert "fine-tuned for token classification" in message
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert read_rows(tmp_path / "out") == []


@pytest.mark.usefixtures("ray_session")
def test_job_without_rows_succeeds(model: Path, tmp_path: Path) -> None:
    """The whole job, Ray and actors included; and again, when it is finished."""
    files = [make(tmp_path) for make in EMPTY.values()]
    config = ScoreConfig(model=str(model), input=[str(file) for file in files], output=str(tmp_path / "out"))
    summary = score(config)
    assert (summary.totals.rows, summary.totals.error_rows, summary.finished_before) == (0, 0, False)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert read_rows(tmp_path / "out") == []
    assert score(config).finished_before
