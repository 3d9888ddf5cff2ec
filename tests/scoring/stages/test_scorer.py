"""Models that run out of memory, fail or answer no number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.inline import score_inline, write_jsonl
from tests.support.stand_in_device import StandInDevice
from tests.support.tiny import (
    GOOD_WORDS,
    TAGS,
    VOCABULARY,
    check_one_error,
    row,
    vocabulary,
)
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import TooManyBadRows
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages.budget import KEPT_FREE, SMALL
from tokloss_ray.scoring.stages.cuda import keep_to_share
from tokloss_ray.scoring.stages.probe import Probe
from tokloss_ray.scoring.stages.scorer import MAX_STREAMS, Scorer


def allocate_too_much() -> None:
    """What torch's allocator says itself: more than any address space has."""
    torch.empty(1 << 50, dtype=torch.uint8)


def run_out_of_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


class Failing(torch.nn.Module):
    """A model that runs out of memory above `room` padded tokens and answers NaN for the token `poison`."""

    def __init__(
        self,
        inner: torch.nn.Module,
        room: int = 10**9,
        poison: int = -1,
        run_out: Callable[[], None] = run_out_of_device_memory,
    ) -> None:
        super().__init__()
        self.inner, self.room, self.poison, self.run_out = inner, room, poison, run_out
        self.sizes: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.sizes.append(input_ids.numel())
        if input_ids.numel() > self.room:
            self.run_out()
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return SimpleNamespace(logits=logits.masked_fill((input_ids == self.poison)[..., None], float("nan")))


@pytest.mark.parametrize("run_out", [allocate_too_much, run_out_of_device_memory])
def test_out_of_memory(model: Path, tmp_path: Path, run_out: Callable[[], None]) -> None:
    """Batches are halved until they fit; a row that does not fit alone is an error, and the rest is as without."""
    rows = [row(*VOCABULARY[: 1 + i % 6], tags=[i % 4] * (1 + i % 6)) for i in range(60)]
    source = write_jsonl(tmp_path / "in.jsonl", [*rows, row(*VOCABULARY * 2)])  # 26 tokens with the special ones
    settings = {"model": str(model), "input": str(source), "tags": TAGS, "max_error_rate": 0.1}
    config = ScoreConfig(**settings, output=str(tmp_path / "out"))
    result = score_inline(config, lambda inner: Failing(inner, room=24, run_out=run_out))
    error = check_one_error(result, rows, "out_of_memory", "score", "memory")
    assert VOCABULARY * 2 in json.loads(error["payload"]).values()
    assert result.totals.batch_tokens <= 24 * 2, "a smaller budget is kept"
    whole = score_inline(ScoreConfig(**settings, output=str(tmp_path / "whole")))
    for found, wanted in zip(result.rows, whole.rows, strict=False):
        assert found["example_id"] == wanted["example_id"]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4, abs=1e-4)


def test_no_batch_is_larger_than_one_that_did_not_fit(model: Path, tmp_path: Path) -> None:
    """What did not fit once will not fit later, in batches that were planned before, too: each try costs a wait.

    24 batches of 200 tokens are planned; those that the streams have begun when the first fails may fail, too.
    """
    source = write_jsonl(tmp_path / "in.jsonl", [row(*VOCABULARY[:6])] * 600)
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), batch_tokens=200)
    made: list[Failing] = []

    def wrap(inner: Any) -> Failing:
        made.append(Failing(inner, room=100))
        return made[-1]

    totals = score_inline(config, wrap).totals
    assert totals.scored_rows == 600
    too_large = [size for size in made[0].sizes if size > 100]
    assert totals.memory_splits == len(too_large)
    assert 0 < len(too_large) <= MAX_STREAMS


def test_other_failures_do_not_pass_for_memory(model: Path, good: Path, tmp_path: Path) -> None:
    """torch has a plain RuntimeError for memory on a CPU; any other RuntimeError ends the job."""

    class Broken(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            raise RuntimeError("could not execute a primitive")

    config = ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out"), max_error_rate=1)
    with pytest.raises(RuntimeError, match="primitive"):
        score_inline(config, lambda _: Broken())


def test_non_finite(model: Path, tmp_path: Path) -> None:
    """NaN for one row's token touches that row alone, though others share its batch."""
    source = write_jsonl(tmp_path / "in.jsonl", [*GOOD_WORDS, row("wohnt", "Berlin", "in")])
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), max_error_rate=0.25)
    poison = vocabulary(model)["Berlin"]
    result = score_inline(config, lambda inner: Failing(inner, poison=poison))
    error = check_one_error(result, GOOD_WORDS, "non_finite", "score", "NaN")
    assert ["wohnt", "Berlin", "in"] in json.loads(error["payload"]).values()
    assert all(value == value for found in result.rows for value in found["loss"])


@pytest.mark.parametrize("at", [0, 30, 69], ids=["first", "middle", "last"])
@pytest.mark.parametrize("shard_tokens", [None, 32], ids=["one-shard", "a-shard-a-window"])
def test_long_row_with_one_bad_window(model: Path, tmp_path: Path, at: int, shard_tokens: int | None) -> None:
    """A row of which a window cannot be scored is a bad row: it is counted, and --max-error-rate holds for it.

    Rows in = rows scored + rows in errors: no row may be in both, wherever its windows end up.
    """
    words = ["Berlin"] * 70
    words[at] = "Otto"
    source = write_jsonl(tmp_path / "in.jsonl", [row(*words), row("Anna")])
    settings = {"model": str(model), "input": str(source), "shard_tokens": shard_tokens}

    def wrap(inner: Any) -> Failing:
        return Failing(inner, poison=vocabulary(model)["Otto"])

    result = score_inline(ScoreConfig(**settings, output=str(tmp_path / "out"), max_error_rate=1), wrap)
    bad = {error["example_id"] for error in result.errors}
    assert bad == {"in.jsonl:0"}
    assert (result.totals.rows, result.totals.scored_rows, result.totals.error_rows) == (2, 1, 1)
    assert bad.isdisjoint(found["example_id"] for found in result.rows)
    with pytest.raises(TooManyBadRows):
        score_inline(ScoreConfig(**settings, output=str(tmp_path / "strict")), wrap)


@pytest.mark.parametrize(
    ("gpus", "fraction"),
    [(0, None), (1.0, None), (2.0, None), (0.25, 0.25 - 600 / 24_000), (0.01, 0.005)],  # half, where CUDA takes it all
)
def test_a_part_of_a_gpu_is_a_part_of_its_memory(
    gpus: float, fraction: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of 24,000 MiB that does not exist."""
    asked: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 24_000 << 20))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    assert keep_to_share(gpus) == pytest.approx(fraction or 1)
    assert asked == ([] if fraction is None else [pytest.approx(fraction)])


def test_the_budget_of_a_gpu_is_measured(model: Path, good: Path, tmp_path: Path) -> None:
    """Of a stand-in with 30 MB, on which a micro-batch takes 2 kB for each padded token and 1 MB always."""
    config = ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out"))
    job = replace(make_plan(preflight(config), gpu=True, bfloat16=False).job, shard_tokens=1 << 20)
    scorer = Scorer(job, 1)
    sizes: list[int] = []

    class Measured(StandInDevice):
        def peak(self, call: Callable[[], Any]) -> int:
            call()
            sizes.append(self.tried[-1].input_ids.numel())
            return 2000 * sizes[-1] + 1_000_000

        def room(self) -> int:
            return 30_000_000

    found = scorer._budget_of(Measured(), Probe(job, scorer.device))
    assert found == pytest.approx((30_000_000 * (1 - KEPT_FREE) - 1_000_000) / 2000, rel=0.05)
    assert len(sizes) == 3, "once to warm up, and two measurements"
    assert sizes[2] / sizes[1] == pytest.approx(4, rel=0.1)
    assert scorer._budget_of(Measured(room=3 * SMALL), Probe(job, scorer.device)) == SMALL, (
        "the larger one does not fit"
    )
