"""Which processors there are, and what share of them a model actor takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import ray

from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.model.store import ModelFolder

AT_ONCE = 3
"""Shards in an actor on a GPU: one that is computed, one on its way from or to Arrow, and one behind it."""
TINY_BYTES, MOST_ON_A_GPU = 1 << 27, 4
"""Weights of a model up to which `--gpus-per-actor auto` puts several actors on a GPU, and how many at most."""
RESERVED_CPUS = 0.75
"""What encode and commit need on a node; actors that take every CPU would hang the job silently."""


@dataclass(frozen=True)
class Actors:
    """The pool of model actors: how many, what each asks Ray for, and how many threads it computes with.

    at_once: shards that each works on at the same time.
    """

    low: int
    high: int
    num_cpus: float
    num_gpus: float
    threads: int | None
    at_once: int = 1


@dataclass(frozen=True)
class Hardware:
    """CPUs and GPUs of each node that is alive; `may_grow` if it is a cluster that other nodes may join; the name of a
    GPU, None if Ray does not know it."""

    cpus: tuple[float, ...]
    gpus: tuple[float, ...]
    may_grow: bool = False
    gpu: str | None = None


def cluster_hardware(may_grow: bool = False) -> Hardware:
    """The nodes of the Ray cluster this process is connected to."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = [key.partition(":")[2] for node in nodes for key in node if key.startswith("accelerator_type:")]
    cpus, gpus = (tuple(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    return Hardware(cpus, gpus, may_grow, names[0] if names else None)


def uses_gpus(config: ScoreConfig, hardware: Hardware) -> bool:
    """Whether the model runs on GPUs: where there are any, or where the user counts on some to come."""
    if config.gpus_per_actor in (None, "auto"):
        return any(hardware.gpus)
    return config.gpus_per_actor != 0


def plan_actors(config: ScoreConfig, hardware: Hardware, weights: int = 0) -> Actors:
    """One actor per GPU where there are GPUs, one per CPU node otherwise, unless the user says so.

    On a cluster that may grow, `--actors MIN,MAX` with MAX beyond what fits now is for nodes that join later, and
    `--gpus-per-actor` with `--actors` for GPU nodes that the cluster starts on demand.

    weights: bytes of the weights of all models, by which `--gpus-per-actor auto` decides; 0 if they are not known.

    Raises:
        Refused: what is asked for does not fit the cluster.
    """
    nodes = [cpus for cpus in hardware.cpus if cpus > 0]
    if not nodes:
        raise Refused("the cluster has no node with CPUs for work: encode and commit need them")
    if uses_gpus(config, hardware):
        return _gpu_actors(config, hardware, nodes, _gpus_each(config, hardware, weights))
    low, high = config.actors or (len(nodes), len(nodes))
    per_node = math.ceil((low if hardware.may_grow else high) / len(nodes))
    return Actors(low, high, _share((min(nodes) - RESERVED_CPUS) / per_node), 0, max(1, int(min(nodes) // per_node)))


def weights_of(models: Iterable[ModelFolder]) -> int:
    """Bytes of the files with weights of some models."""
    return sum(_weights(model.base or model) for model in models)


def _weights(model: ModelFolder) -> int:
    by_ending = {
        ending: [s for name, s, _ in model.files if name.endswith(ending)] for ending in (".safetensors", ".bin")
    }
    return sum(by_ending[".safetensors"] or by_ending[".bin"])


def _gpus_each(config: ScoreConfig, hardware: Hardware, weights: int) -> float:
    """GPUs of an actor.

    A process launches a micro-batch in about the same time whatever the model, and the GPU has computed that of a tiny
    model sooner: other processes fill the gap, if each has a core.
    """
    if config.gpus_per_actor != "auto":
        return 1.0 if config.gpus_per_actor is None else config.gpus_per_actor
    if not 0 < weights <= TINY_BYTES:
        return 1.0
    cores = min((cpus - RESERVED_CPUS) / gpus for cpus, gpus in zip(hardware.cpus, hardware.gpus, strict=True) if gpus)
    return math.floor(10_000 / max(1, min(MOST_ON_A_GPU, math.floor(cores)))) / 10_000  # Ray counts to four digits


def _gpu_actors(config: ScoreConfig, hardware: Hardware, nodes: list[float], each: float) -> Actors:
    if each > 1 and each != math.floor(each):
        raise Refused(f"--gpus-per-actor {each:g}: Ray gives an actor a part of one GPU, or whole ones")
    fit = [_fit(gpus, each) for gpus in hardware.gpus]
    fitting = sum(fit)
    waits = hardware.may_grow and config.actors is not None and config.gpus_per_actor is not None
    if not fitting and not waits:
        raise Refused(
            f"no node has enough GPUs for an actor (--gpus-per-actor {each:g}); 0 runs the model on CPUs"
            + ("; to wait for nodes that the cluster starts on demand, also pass --actors MIN,MAX" * hardware.may_grow)
        )
    low, high = config.actors or (fitting, fitting)
    if low > fitting and not waits:
        raise Refused(f"--actors {low} does not fit: there are GPUs for {fitting} (--gpus-per-actor {each:g})")
    shares = [(cpus - RESERVED_CPUS) / count for cpus, count in zip(hardware.cpus, fit, strict=True) if count]
    # Of a GPU node that is yet to come nothing is known but that it has a CPU for each GPU.
    cpus = min(1.0, *shares) if shares else min(1.0, min(nodes) - RESERVED_CPUS) / max(1, _fit(1, each))
    return Actors(low, high, _share(cpus), each, None, AT_ONCE)


def _fit(gpus: float, each: float) -> int:
    """How many actors fit on the GPUs of a node. Ray takes a part of a GPU from one GPU, never from two: three actors
    of 0.4 do not fit on one GPU, and four, not five, on two."""
    if each >= 1:
        return math.floor(gpus / each)
    return math.floor(gpus) * math.floor(round(1 / each, 6))


def _share(cpus: float) -> float:
    """CPUs an actor asks for: what is left, rounded down, and never what another stage asks for (see pipeline)."""
    share = math.floor(cpus * 1000) / 1000
    if share <= 0:
        raise Refused("a node has too few CPUs for that many actors: encode and commit need 0.75; use fewer --actors")
    return share - 0.001 if share in (0.5, 0.25) else share


def gpu_has_bfloat16(local: bool, patience: float) -> bool:
    """Whether the GPUs compute in bfloat16: asked of this machine, or of a GPU node of the cluster.

    Raises:
        Refused: no GPU node answers within `patience` seconds.
    """

    def ask() -> bool:
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)

    if local:
        return ask()
    try:
        return ray.get(ray.remote(num_gpus=0.01)(ask).remote(), timeout=patience)
    except ray.exceptions.GetTimeoutError:
        raise Refused(f"no GPU node responded within {patience:g} s; set --dtype to go without asking one") from None


def local_gpu() -> str | None:
    """The name of this machine's GPU, if it has one that torch can use."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
