"""How many actors there are on which machines."""

from __future__ import annotations

import pytest

from tokloss_ray import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.scoring.on_ray.hardware import RESERVED_CPUS, Hardware, plan_actors


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
