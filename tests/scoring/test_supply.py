"""How many cores a GPU needs, and what is said where there are fewer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.scoring import begin
from tokloss_ray.scoring.on_ray.hardware import Hardware
from tokloss_ray.scoring.plan import Plan, make_plan
from tokloss_ray.scoring.preflight import Preflight, preflight
from tokloss_ray.scoring.sample import sample_rows
from tokloss_ray.scoring.supply import MOST_RATE, core_rate, cores_for, gpu_rate, too_few_cores


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Preflight:
    folder = tmp_path_factory.mktemp("supply")
    return preflight(ScoreConfig(model=str(MODEL), input=(str(DATA),), output=str(folder / "out"), keep_probs=True))


@pytest.fixture(scope="module")
def plan(found: Preflight) -> Plan:
    return make_plan(found, gpu=True, bfloat16=True)


def test_cores_of_a_gpu() -> None:
    assert cores_for(1_000_000, 400_000) == 4  # 2.5, and one for the process that feeds it
    assert cores_for(400_000, 400_000) == 2


def test_cores_that_are_too_few() -> None:
    assert too_few_cores(1_000_000, 400_000, cores=8, gpus=2) is None
    said = too_few_cores(1_000_000, 400_000, cores=4, gpus=2)
    assert said is not None
    assert "needs 4 cores" in said
    assert "there are 4 for 2 GPUs, enough for about 400,000 tokens/s on each" in said
    assert "1 for 1 GPU, enough for about 0 tokens/s" in (too_few_cores(1_000_000, 400_000, cores=1, gpus=1) or "")


def test_what_a_gpu_does_at_best(found: Preflight) -> None:
    def rate(parameters: int, dtype: str, gpu: str | None) -> int | None:
        return gpu_rate(dataclasses.replace(found.model, layer_parameters=parameters), dtype, gpu)

    large = 24 * 12 * 1024**2
    assert rate(large, "bfloat16", "NVIDIA H100 80GB HBM3") == int(0.25 * 989e12 / large)
    assert rate(large, "bfloat16", "A100") == int(0.25 * 312e12 / large)  # not an A10
    assert rate(large, "bfloat16", "NVIDIA L40S") == int(0.25 * 362e12 / large)  # not an L4
    assert rate(large, "float32", "NVIDIA L4") == int(0.25 * 30e12 / large)
    assert rate(large // 100, "bfloat16", "H100") == MOST_RATE
    assert rate(large, "bfloat16", "another") is rate(large, "bfloat16", None) is rate(0, "bfloat16", "H100") is None
    assert found.model.layer_parameters > 100_000  # the demo's settings tell


def test_what_a_core_does_is_measured_where_there_are_enough_rows(plan: Plan) -> None:
    sample = sample_rows(plan.job, plan.units)
    assert sample.cpu_seconds > 0
    rate = core_rate(plan.job, sample)
    assert rate is not None
    assert rate > 10_000
    assert sample.sequences is not None
    few = dataclasses.replace(sample, sequences=sample.sequences.slice(0, 100))
    assert core_rate(plan.job, few) is None
    assert core_rate(plan.job, dataclasses.replace(sample, sequences=None)) is None


@pytest.mark.parametrize(
    ("cpus", "gpus", "gpu", "options", "warns"),
    [
        ((4.0, 4.0), (4.0, 4.0), "H100", {}, True),
        ((1e9, 4.0), (4.0, 4.0), "H100", {}, False),
        ((1e9, 4.0), (0.0, 4.0), "H100", {}, False),  # cores of any node count
        ((4.0,), (4.0,), None, {}, False),  # nothing is known of it
        ((4.0,), (0.0,), "H100", {}, False),
        ((4.0,), (4.0,), "H100", {"gpus_per_actor": 0}, False),
    ],
)
def test_a_run_with_too_few_cores_is_warned(
    found: Preflight,
    plan: Plan,
    cpus: tuple[float, ...],
    gpus: tuple[float, ...],
    gpu: str | None,
    options: dict[str, Any],
    warns: bool,
) -> None:
    plan.warnings.clear()
    config = found.config.model_copy(update=options)
    begin._warn_of_few_cores(config, found, plan, Hardware(cpus, gpus, gpu=gpu))
    assert ["cores for reading, encoding and writing" in warning for warning in plan.warnings] == [True] * warns
