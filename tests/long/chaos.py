"""Kill at random, restart, compare: a cluster of two worker nodes, object storage, and a job that must lose nothing.

    python -m tests.long.chaos --kills 50 --seed 1 [--server ceph]

Victims are model actors, CPU workers, raylets with all that is on their node, and the driver. A driver that died is
started again with the same command, a node that died is replaced. When the job is done, its output is verified and
compared with that of an undisturbed local run; rounds go on until there were enough kills.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import s3fs

from tests.support.cluster import MARK, REPOSITORY, Cluster, Node, cluster
from tests.support.inline import score_inline
from tests.support.s3_servers import S3Server, ceph_server, moto_server
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.output.verify import verify

WORKER = ("--num-cpus=2",)
KINDS = {"actor": 5, "worker": 3, "driver": 2, "raylet": 1}
PAUSE = (1.0, 7.0)
MOST_ATTEMPTS = 40


def processes(nodes: list[Node], kind: str) -> list[psutil.Process]:
    """The processes of some nodes that a kind of kill chooses from."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = (process.info["cmdline"] or [""])[0]
        is_kind = {
            "actor": title.startswith("ray::MapWorker"),
            "worker": title.startswith(("ray::MapBatches", "ray::IDLE")) or "read_and_encode" in title,
        }[kind]
        if is_kind and any(_of_node(process, node) for node in nodes):
            found.append(process)
    return found


def _of_node(process: psutil.Process, node: Node) -> bool:
    with suppress(psutil.Error):
        return process.environ().get(MARK) == node.mark
    return False


class Round:
    """One job from start to end, however often it is killed."""

    def __init__(self, here: Cluster, rng: random.Random, command: list[str], env: dict[str, str]) -> None:
        self.here, self.rng, self.command, self.env = here, rng, command, env
        self.kills: Counter[str] = Counter()
        self.attempts = 0

    def workers(self) -> list[Node]:
        return [node for node in self.here.nodes[1:] if node.process.poll() is None]

    def run(self, kills: int) -> None:
        """Run the job to its end with up to so many kills."""
        while True:
            self.attempts += 1
            if self.attempts > MOST_ATTEMPTS:
                raise RuntimeError("the job does not end")
            with tempfile.TemporaryFile("w+") as said:
                driver = subprocess.Popen(self.command, env=self.env, stdout=said, stderr=said, start_new_session=True)
                while driver.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        driver.wait(self.rng.uniform(*PAUSE))
                    if driver.poll() is None and self.kills.total() < kills:
                        self.kill(driver)
                said.seek(0)
                text = said.read()
            if driver.returncode == 0:
                return
            # Killed by us, or ended by what we did to the cluster: with one sentence, and the next attempt goes on.
            if driver.returncode not in (-signal.SIGKILL, 1, 2) or "Traceback" in text:
                raise RuntimeError(f"the driver ended with {driver.returncode}:\n{text[-3000:]}")
            print(
                f"  attempt {self.attempts} ended with {driver.returncode}: {text.strip().splitlines()[-1:]}",
                flush=True,
            )

    def kill(self, driver: subprocess.Popen[bytes]) -> None:
        """One victim, of a kind that is there."""
        kind = self.rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        if kind == "driver":
            driver.kill()
        elif kind == "raylet":
            node = self.rng.choice(self.workers())
            self.here.kill_worker(node)
            self.here.add_worker(*WORKER)
        else:
            victims = processes(self.workers(), kind)
            if not victims:
                return
            with suppress(psutil.Error):
                self.rng.choice(victims).kill()
        self.kills[kind] += 1


def rows_of(path: str, fs: s3fs.S3FileSystem | None = None) -> pd.DataFrame:
    """All scored rows by id, losses and strings."""
    columns = ["example_id", "window", "input_ids", "labels", "predicted_label", "loss"]
    table = pads.dataset(path, filesystem=fs, format="parquet").to_table(columns=columns)
    return table.to_pandas().sort_values(["example_id", "window"], ignore_index=True)


@contextmanager
def s3_server(name: str, folder: str) -> Iterator[S3Server]:
    """moto, which is a process of Python's, or a Ceph gateway."""
    with moto_server() if name == "moto" else ceph_server(Path(folder)) as server:
        yield server


def chaos(kills: int, seed: int, rows: int, server_name: str = "moto") -> str:
    """Rounds until there were enough kills; returns the figures as a sentence."""
    rng = random.Random(seed)
    total: Counter[str] = Counter()
    attempts = rounds = compared = 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, s3_server(server_name, f"{folder}/server") as server:
        fs = _client(server)
        fs.mkdir("chaos")
        table = pq.read_table(DATA)
        for number in range(4):
            local = f"{folder}/in/{number}.parquet"
            os.makedirs(f"{folder}/in", exist_ok=True)
            pq.write_table(pa.Table.from_batches(table.slice(number * rows // 4, rows // 4).to_batches()), local)
        fs.put(f"{folder}/in/", "chaos/in/", recursive=True)
        settings = {"shard_tokens": 3000, "id_column": "id"}
        score_inline(ScoreConfig(model=str(MODEL), input=(f"{folder}/in",), output=f"{folder}/out", **settings))
        undisturbed = rows_of(f"{folder}/out/scores")
        with cluster(WORKER, WORKER, env=server.env) as here:
            while total.total() < kills:
                rounds += 1
                output = f"s3://chaos/out-{rounds}"
                command = [sys.executable, str(REPOSITORY / "jobs" / "score.py"), "--model", str(MODEL)]
                command += ["--input", "s3://chaos/in", "--output", output, "--id-column", "id"]
                command += ["--shard-tokens", "3000", "--stall-timeout", "120", "--actors", "2"]
                env = here.env | server.env | {"RAY_ADDRESS": here.address, "PYTHONPATH": str(REPOSITORY)}
                one = Round(here, rng, command, env)
                one.run(kills - total.total())
                total += one.kills
                attempts += one.attempts
                os.environ.update(server.env)
                problems = verify(output).problems
                assert not problems, problems
                pd.testing.assert_frame_equal(
                    rows_of(f"chaos/out-{rounds}/scores", fs), undisturbed, rtol=1e-4, atol=1e-4
                )
                compared += len(undisturbed)
                print(
                    f"round {rounds}: {dict(one.kills)}, {one.attempts} attempts, {len(undisturbed):,} rows equal",
                    flush=True,
                )
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(total.items()))
    return (
        f"{total.total()} kills ({by_kind}) in {rounds} rounds and {attempts} attempts, {compared:,} rows compared: "
        f"none lost, none doubled; {server_name}, seed {seed}, {time.monotonic() - start:.0f} s"
    )


def _client(server: S3Server) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=server.key, secret=server.secret, endpoint_url=server.endpoint, use_listings_cache=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8000, help="of the corpus, 10,000 at most")
    parser.add_argument("--server", choices=("moto", "ceph"), default="moto", help="S3 server that is written to")
    args = parser.parse_args()
    print(chaos(args.kills, args.seed, args.rows, args.server))


if __name__ == "__main__":
    main()
