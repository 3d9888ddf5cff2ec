"""How many actors there are on which machines."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokloss_ray import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.model.store import ModelFolder
from tokloss_ray.scoring.on_ray.hardware import AT_ONCE, RESERVED_CPUS, Actors, Hardware, plan_actors, weights_of


def test_actors_by_hardware() -> None:
    config = ScoreConfig(model="m", input="i", output="o")

    def actors(cpus: tuple[float, ...], gpus: tuple[float, ...], grows: bool = False, **changes: object) -> tuple:
        made = plan_actors(config.model_copy(update=changes), Hardware(cpus, gpus, grows))
        return made.low, made.high, made.num_gpus, made.threads

    assert actors((8.0,), (0.0,)) == (1, 1, 0, 8)
    assert actors((8.0, 8.0), (0.0, 0.0)) == (2, 2, 0, 8)
    assert actors((8.0,), (0.0,), actors=(2, 4)) == (2, 4, 0, 2)
    assert actors((0.0, 8.0, 8.0), (0.0, 0.0, 0.0)) == (2, 2, 0, 8)
    assert actors((16.0, 16.0, 4.0), (4.0, 2.0, 0.0)) == (6, 6, 1.0, None)
    assert actors((16.0,), (2.0,), gpus_per_actor=0.5) == (4, 4, 0.5, None)
    assert actors((16.0,), (2.0,), gpus_per_actor=0) == (1, 1, 0, 16)
    for count in (1, 16, 64, 300):  # however many there are, encode and commit have what they need
        made = plan_actors(config.model_copy(update={"actors": (count, count)}), Hardware((2.0,), (0.0,)))
        assert 0 < made.num_cpus * count <= 2 - RESERVED_CPUS
    with pytest.raises(Refused, match="too few CPUs"):
        actors((0.5,), (0.0,))
    with pytest.raises(Refused, match="no node has enough GPUs"):
        actors((16.0,), (2.0,), gpus_per_actor=4)
    with pytest.raises(Refused, match="no node has enough GPUs"):
        actors((16.0,), (0.0,), gpus_per_actor=1, actors=(1, 2))
    with pytest.raises(Refused, match="--actors 3 does not fit"):
        actors((16.0,), (2.0,), actors=(3, 3))
    # Nodes that join later: actors beyond the first ones wait for them, and threads are those of one node.
    assert actors((4.0, 4.0), (0.0, 0.0), grows=True, actors=(2, 8)) == (2, 8, 0, 4)
    assert actors((4.0,), (0.0,), grows=True, actors=(1, 8), gpus_per_actor=1) == (1, 8, 1, None)
    with pytest.raises(Refused, match="also pass --actors"):
        actors((4.0,), (0.0,), grows=True, gpus_per_actor=1)
    with pytest.raises(Refused, match="no node with CPUs"):
        actors((0.0,), (0.0,))


def planned(cpus: tuple[float, ...], gpus: tuple[float, ...], grows: bool = False, **changes: object) -> Actors:
    config = ScoreConfig(model="m", input="i", output="o").model_copy(update=changes)
    return plan_actors(config, Hardware(cpus, gpus, grows))


@pytest.mark.parametrize(
    ("gpus", "each", "expected"),
    [
        ((1.0,), 0.25, 4),
        ((1.0, 4.0), 0.25, 20),
        ((2.0,), 0.4, 4),  # two on each GPU: Ray puts no actor on two halves
        ((3.0,), 0.3, 9),
        ((8.0,), 0.1, 80),
        ((1.0,), 0.3333, 3),
        ((4.0,), 0.6, 4),
        ((8.0, 8.0), 1, 16),
        ((8.0, 3.0), 2, 5),
    ],
)
def test_actors_on_a_part_of_a_gpu(gpus: tuple[float, ...], each: float, expected: int) -> None:
    made = planned((64.0,) * len(gpus), gpus, gpus_per_actor=each)
    assert (made.low, made.high, made.num_gpus) == (expected, expected, each)


def test_actors_on_gpus_leave_cpus_for_encode_and_commit() -> None:
    """However many share a node, and whichever node is the busiest."""
    for cpus, gpus, each in (((4.0,), (1.0,), 0.25), ((16.0, 4.0), (4.0, 2.0), 0.5), ((8.0, 2.0), (8.0, 0.0), 0.125)):
        made = planned(cpus, gpus, gpus_per_actor=each)
        for of_node, on_node in zip(cpus, gpus, strict=True):
            assert made.num_cpus * (on_node / each) <= of_node - RESERVED_CPUS


def test_parts_of_gpus_that_are_yet_to_come() -> None:
    """Nothing is known of the node but that it has a CPU for each GPU: all its actors fit on that."""
    made = planned((8.0,), (0.0,), grows=True, gpus_per_actor=0.25, actors=(1, 16))
    assert (made.low, made.high, made.num_gpus) == (1, 16, 0.25)
    assert 0 < made.num_cpus * 4 <= 1


def test_one_gpu_and_a_half() -> None:
    with pytest.raises(Refused, match=r"--gpus-per-actor 1\.5: Ray gives an actor a part of one GPU, or whole ones"):
        planned((16.0,), (4.0,), gpus_per_actor=1.5)


PACKING = """
import ray, sys, time
each = float(sys.argv[1])
ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, logging_level="ERROR")

@ray.remote(num_gpus=each, num_cpus=0)
class Actor:
    def ready(self):
        return 1

actors = [Actor.remote() for _ in range(int(2 / each) + 1)]
ready, _ = ray.wait([actor.ready.remote() for actor in actors], num_returns=len(actors), timeout=25)
print("started", len(ready))
"""


@pytest.mark.slow
@pytest.mark.parametrize("each", [0.4, 0.25])
def test_ray_packs_as_is_counted(each: float) -> None:
    """On two GPUs that do not exist."""
    done = subprocess.run([sys.executable, "-c", PACKING, str(each)], capture_output=True, text=True, check=True)
    assert f"started {planned((8.0,), (2.0,), gpus_per_actor=each).high}" in done.stdout


@pytest.mark.parametrize(
    ("weights", "cpus", "gpus", "expected"),
    [
        (90 << 20, (16.0,), (1.0,), (4, 0.25)),  # a tiny model, a core and more for each
        (90 << 20, (16.0,), (4.0,), (12, 0.3333)),  # three cores for each GPU
        (90 << 20, (16.0, 6.0), (1.0, 2.0), (6, 0.5)),  # the node with the fewest decides
        (90 << 20, (2.0,), (1.0,), (1, 1.0)),
        (440 << 20, (16.0,), (2.0,), (2, 1.0)),  # a base model keeps a GPU busy
        (0, (16.0,), (2.0,), (2, 1.0)),  # not known
    ],
)
def test_several_actors_with_a_tiny_model_on_a_gpu(
    weights: int, cpus: tuple[float, ...], gpus: tuple[float, ...], expected: tuple[int, float]
) -> None:
    config = ScoreConfig(model="m", input="i", output="o", gpus_per_actor="auto")
    made = plan_actors(config, Hardware(cpus, gpus), weights)
    assert (made.high, made.num_gpus) == expected
    assert made.at_once == AT_ONCE
    assert made.num_cpus * made.high <= sum(cpus) - RESERVED_CPUS
    unset = plan_actors(config.model_copy(update={"gpus_per_actor": None}), Hardware(cpus, gpus), weights)
    assert unset.num_gpus == 1.0, "only who asks gets it"


def test_auto_without_gpus_is_the_cpu() -> None:
    made = planned((8.0,), (0.0,), gpus_per_actor="auto")
    assert (made.num_gpus, made.threads, made.at_once) == (0, 8, 1)


def test_weights_of_models() -> None:
    both = (("model.safetensors", 100, ""), ("pytorch_model.bin", 130, ""), ("config.json", 5, ""))
    parts = (("model-1.safetensors", 10, ""), ("model-2.safetensors", 20, ""))
    base = ModelFolder("base", "local", None, parts)
    adapter = ModelFolder("adapter", "local", None, (("adapter_model.safetensors", 1, ""),), base=base)
    assert weights_of([ModelFolder("m", "local", None, both), adapter]) == 130
    assert weights_of([ModelFolder("m", "local", None, both[1:])]) == 130


def test_what_may_be_asked_of_gpus() -> None:
    for text, value in (("auto", "auto"), ("0.5", 0.5), ("0", 0.0), (2, 2.0)):
        assert ScoreConfig(model="m", input="i", output="o", gpus_per_actor=text).gpus_per_actor == value
    for text in ("-1", "many"):
        with pytest.raises(ValueError, match="gpus_per_actor"):
            ScoreConfig(model="m", input="i", output="o", gpus_per_actor=text)
