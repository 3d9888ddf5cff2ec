"""What the plan of a job on a GPU says, which none is needed for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokloss_ray import ScoreConfig
from tokloss_ray.scoring.plan import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, Plan, make_plan
from tokloss_ray.scoring.preflight import preflight


@pytest.fixture
def plan(model: Path, good: Path, tmp_path: Path) -> Any:
    def made(gpu: bool = True, bfloat16: bool = False, **settings: Any) -> Plan:
        config = ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out"), **settings)
        return make_plan(preflight(config), gpu, bfloat16)

    return made


def test_a_gpu_finds_its_budget(plan: Any) -> None:
    """Up to a 32nd of a shard; what is asked for is taken as it is, and a CPU has the budget it always had."""
    unset, large = plan().job, plan(shard_tokens=1 << 22).job
    assert (unset.find_budget, unset.batch_tokens) == (True, GPU_BATCH_TOKENS)
    assert (large.find_budget, large.batch_tokens) == (True, 1 << 17)
    asked, cpu = plan(batch_tokens=5000).job, plan(gpu=False).job
    assert (asked.find_budget, asked.batch_tokens) == (False, 5000)
    assert (cpu.find_budget, cpu.batch_tokens) == (False, CPU_BATCH_TOKENS)
    assert unset.fingerprint == asked.fingerprint


def test_tf32_is_another_run(plan: Any) -> None:
    """It changes results in float32, so it must not be mixed with what was computed without."""
    off, on = plan().job, plan(tf32=True).job
    assert (off.tf32, on.tf32) == (False, True)
    assert "tf32" not in off.identity, "runs of earlier versions can go on"
    assert off.fingerprint != on.fingerprint
    low = [plan(bfloat16=True, tf32=tf32).job for tf32 in (False, True)]
    assert low[0].dtype == "bfloat16"
    assert low[0].fingerprint == low[1].fingerprint
