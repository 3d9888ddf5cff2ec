"""A cluster of three nodes with eight GPUs, as far as the cores of one machine carry it, and where the limit is.

    python benchmarks/nodes.py
    python benchmarks/nodes.py --gpus 1,2,4,8 --seconds 60 --json results.json

The nodes are Ray's own (`ray.cluster_utils.Cluster`): each has its scheduler, object store and workers, and a share of
the GPUs, which are stand-ins: the actor takes a shard, waits as long as a GPU of `--gpu-rate` tokens per second would,
and answers random numbers (`scale.py`). The job joins the cluster by its address, as on a real one: it asks the nodes
what they see, gives each GPU an actor, and shards travel from the node that encodes them to the one that scores them.

All nodes share this machine's cores, so that eight GPUs starve. The table says how much processor time a million tokens
take, and who takes it, from which follows how many cores a cluster needs. Other work on the machine doubles it easily.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import machine, save, say, settings, show, write_corpus
from scale import Barrier, Clock, late_reader, numbers, rows_for, run_apart, stand_in_actor

from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL

NODES = 3
GPUS_EACH = (3, 3, 2)
HERE = Path(__file__).parent
ROLES = ("driver", "tasks", "actors", "ray")


def run_point(point: dict[str, Any]) -> dict[str, Any]:
    """One job on the cluster, driven by this process."""
    from tokloss_ray.scoring import begin, driver, pipeline
    from tokloss_ray.scoring.on_ray.hardware import plan_actors

    gpus, barrier = point["gpus"], Barrier(point["barrier"], point["gpus"])
    pipeline.ScoreActor = stand_in_actor(barrier, point["gpu_rate"], point["shard_tokens"])
    pipeline.read_and_encode = late_reader(barrier)
    # As planned, but that a stand-in takes one shard after the other.
    begin.plan_actors = driver.plan_actors = lambda *known: replace(plan_actors(*known), at_once=1)
    clock, data = Clock(barrier), Path(point["data"])
    config = ScoreConfig(
        model=point["model"],
        input=data,
        output=point["output"],
        address=point["address"],
        actors=(gpus, gpus),
        dtype="float32",  # else a GPU is asked what it can
        shard_tokens=point["shard_tokens"],
        limit=point["rows"],
        **settings(data),
    )
    driver.score(config, clock)
    return clock.figures(gpus)


def measure(point: dict[str, Any]) -> dict[str, Any]:
    """`run_point` in a process of its own; all processes of the cluster are watched.

    Raises:
        SystemExit: it failed.
    """
    found, used, _ = run_apart(__file__, point, f"the run of {point['gpus']} GPUs", above=os.getpid())
    start, end = found.pop("start"), found.pop("end")
    millions = found["tokens"] / 1e6
    rate = found["tokens_per_second"] or found["overall"]
    return found | {
        "gpus": point["gpus"],
        "seconds": round(end - start, 1),
        "of_linear": round(rate / (point["gpus"] * point["gpu_rate"]), 3),
        "cores_busy": round(sum(used.values()) / (end - start), 2),
        "cpu_s_per_million_tokens": {role: round(used.get(role, 0.0) / millions, 2) for role in ROLES},
        "driver_cpu_ms_per_shard": round(found["driver_cpu_s"] * 1e3 / found["shards"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=numbers, default="1,2,4,8", help="how many of the eight work")
    parser.add_argument("--gpu-rate", type=int, default=200_000, help="tokens per second of a GPU")
    parser.add_argument("--shard-tokens", type=int, default=1 << 17, help="tokens of a shard")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs that Ray counts on each node")
    parser.add_argument("--seconds", type=float, default=20, help="about how long each point lasts")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        Path(args.json).write_text(json.dumps(run_point(args.point)))
        return
    if args.quick:
        args.gpus, args.seconds, args.shard_tokens = [2], 1, 1 << 12
    # The nodes' workers import the stand-ins from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    from ray.cluster_utils import Cluster

    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = 100_000 if args.quick else 1_000_000
        data = str(write_corpus(Path(folder, "in"), rows, DATA))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200_000_000})
        try:
            for gpus in GPUS_EACH:
                # A stand-in takes next to no CPU; Ray is to count one for each all the same.
                cluster.add_node(num_cpus=args.cpus + gpus, num_gpus=gpus, object_store_memory=600_000_000)
            fed = float("inf")
            for gpus in args.gpus:
                rows_of_point = rows_for(gpus, args.gpu_rate, args.shard_tokens, args.seconds, fed)
                point = {
                    "gpus": gpus, "gpu_rate": args.gpu_rate, "shard_tokens": args.shard_tokens, "data": data,
                    "rows": min(rows, rows_of_point), "model": str(MODEL), "address": cluster.address,
                }  # fmt: skip
                found.append(measure(point))
                fed = max(found[-1]["overall"], found[-1]["tokens_per_second"] or 0)
                say(f"  {gpus} GPUs: {fed:,.0f} tokens/s, {found[-1]['cores_busy']} cores busy")
                save(args.json, "nodes", {"nodes": NODES, "points": found})
        finally:
            cluster.shutdown()
    columns = ["GPUs", "shards", "tokens/s", "of linear", "cores busy", *(f"{role}, CPU s/M tokens" for role in ROLES)]
    table = [
        [
            f"{f['gpus']}", f["shards"], f"{f['tokens_per_second'] or f['overall']:,.0f}", f"{f['of_linear']:.2f}",
            f["cores_busy"], *(f["cpu_s_per_million_tokens"][role] for role in ROLES),
        ]
        for f in found
    ]  # fmt: skip
    show(f"{NODES} nodes, GPUs of {args.gpu_rate:,} tokens/s", columns, table)
    each = sum(found[-1]["cpu_s_per_million_tokens"].values()) * args.gpu_rate / 1e6
    cores = machine()["cores"]
    say(f"{each:.2f} cores for each GPU: {cores} cores feed {cores / each:.1f} of the {max(args.gpus)} GPUs")
    save(args.json, "nodes", {"nodes": NODES, "points": found, "cores_per_gpu": round(each, 2)})


if __name__ == "__main__":
    main()
