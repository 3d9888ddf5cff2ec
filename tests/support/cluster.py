"""A real Ray cluster of several nodes on this machine; each node has its own address, ports, folder and processes.

It needs `ray[default]`, which brings the job server. Other Ray instances on the machine are left alone: processes of a
node carry a mark in their environment, and only processes with it are ended (`ray stop` would end all there are).
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired, run
from typing import Any
from urllib.request import Request, urlopen

REPOSITORY, SCRIPT = Path(__file__).resolve().parents[2], "jobs/score.py"
MARK = "TOKLOSS_TEST_NODE"  # all processes of a node inherit it; its value names the cluster and the node
START_TIMEOUT, STOP_TIMEOUT, COMMAND_TIMEOUT = 90, 10, 600
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # Processes come when there is work: a few cores cannot start one for each CPU that the nodes pretend to have.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about its coming default
}

Env = Mapping[str, str] | None


@dataclass
class Node:
    """One node; when its process (`ray start --block`) ends, so does the node."""

    name: str
    ip: str
    folder: Path
    mark: str
    process: Popen[bytes]

    def is_up(self) -> bool:
        return "Ray runtime started" in (self.folder / "start.log").read_text()


@dataclass
class Cluster:
    """A running cluster. `dashboard` is where jobs are submitted, `env` what a user's shell needs for that."""

    folder: Path
    python: Path
    env: dict[str, str]
    mark: str
    address: str
    dashboard: str
    object_store: int
    nodes: list[Node] = field(default_factory=list)

    def add_worker(self, *options: str, env: Env = None, wait: bool = True) -> Node:
        """One more node, with options of `ray start` such as `--num-gpus=1`. GPUs and CPUs need not exist."""
        node = self.start(f"worker{len(self.nodes)}", [f"--address={self.address}", *options], env)
        if wait:
            _until(node.is_up, node)
        return node

    def stop_worker(self, node: Node) -> None:
        """End a node in good order, as the autoscaler does with an idle one."""
        node.process.terminate()
        with suppress(TimeoutExpired):
            node.process.wait(STOP_TIMEOUT)
        self.kill_worker(node)

    def kill_worker(self, node: Node) -> None:
        """SIGKILL for all processes of a node at once, as when the machine is gone."""
        _kill(node.mark)
        node.process.wait()

    def submit(
        self, args: Sequence[str], env: Env = None, *options: str, script: str = SCRIPT, folder: Path = REPOSITORY
    ) -> tuple[int, str]:
        """`ray job submit`, to the end of the job: exit code of that command (1 for all that fails) and output.

        `env` becomes part of the job's record, which the dashboard shows: it is no place for secrets.
        """
        flags = ["--log-color=false", f"--working-dir={folder}", *options]
        flags += [f"--runtime-env-json={json.dumps({'env_vars': dict(env)})}"] if env else []
        return self.ray("job", "submit", *flags, "--", "python", script, *args)

    def ray(self, *args: str, timeout: float = COMMAND_TIMEOUT) -> tuple[int, str]:
        """A command of the `ray` program, as a user of this cluster runs it: exit code and output."""
        env = self.env | {"RAY_API_SERVER_ADDRESS": self.dashboard, "RAY_ADDRESS": self.address}
        command = [self.python.with_name("ray"), *args]
        done = run(command, env=env, stdout=PIPE, stderr=STDOUT, text=True, timeout=timeout)
        return done.returncode, done.stdout

    def get(self, path: str) -> Any:
        """An answer of the dashboard's server. `/api/jobs/ID` has the job's true exit code, `driver_exit_code`."""
        header = {"Authorization": f"Bearer {Path(self.env['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        with urlopen(Request(self.dashboard + path, headers=header), timeout=30) as answer:
            return json.load(answer)

    def state(self, kind: str) -> list[dict[str, Any]]:
        """The `nodes`, `actors`, `tasks` or `workers` that the cluster remembers, as in `ray list`."""
        return self.get(f"/api/v0/{kind}?limit=10000&detail=1")["data"]["result"]["result"]

    def start(self, name: str, options: Sequence[str], env: Env = None) -> Node:
        """`ray start` with an address (all of 127/8 is this machine), folder and port of the node's own."""
        ip, mark = f"127.0.0.{11 + len(self.nodes)}", f"{self.mark}-{name}."
        (folder := self.folder / name).mkdir()
        args = [f"--node-ip-address={ip}", f"--temp-dir={folder}", f"--object-store-memory={self.object_store}"]
        args += [f"--dashboard-agent-listen-port={_free_ports(1)[0]}"]  # Ray takes the others where they are free
        command = [self.python.with_name("ray"), "start", "--block", *args, *options]
        env = {**self.env, "TOKLOSS_CACHE": str(folder / "cache"), **(env or {}), MARK: mark}
        with (folder / "start.log").open("wb") as log:  # its own session: Ctrl-C at the tests is not for the nodes
            process = Popen(command, env=env, cwd=folder, stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(Node(name, ip, folder, mark, process))
        return self.nodes[-1]


@contextmanager
def cluster(
    *workers: Sequence[str], env: Env = None, python: str | Path = sys.executable, object_store: int = 200_000_000
) -> Iterator[Cluster]:
    """A head without CPUs for work, and workers, each given by the options of `add_worker`.

    `env` reaches all nodes; `python` is the interpreter of the environment whose `ray` runs them.
    """
    with ExitStack() as stack:
        # Not pytest's folder: paths of sockets have 107 characters at most, and Ray needs over 60 of them.
        folder = Path(tempfile.mkdtemp(prefix="tl-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        mark = f"{folder.name}-{secrets.token_hex(8)}"
        stack.callback(_kill, mark)
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(secrets.token_hex(32))
        own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != MARK}
        own["PATH"] = f"{Path(python).parent}:{own.get('PATH', '')}"  # the job's entry point is `python ...`
        own |= {**SETTINGS, "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **(env or {})}
        port, web, client = _free_ports(3)
        here = Cluster(folder, Path(python), own, mark, f"127.0.0.11:{port}", f"http://127.0.0.1:{web}", object_store)
        options = ["--head", "--num-cpus=0", f"--port={port}", f"--ray-client-server-port={client}"]
        options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={web}"]
        head = here.start("head", options)
        _until(head.is_up, head)
        for node in [here.add_worker(*worker, wait=False) for worker in workers]:
            _until(node.is_up, node)
        _until(lambda: here.get("/api/jobs/") is not None, head)
        yield here
        for node in reversed(here.nodes):
            here.stop_worker(node)


def _until(ready: Callable[[], bool], node: Node) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        with suppress(OSError):  # nobody answers yet
            if ready():
                return
        if node.process.poll() is not None or time.monotonic() > deadline:
            log = (node.folder / "start.log").read_text()[-3000:]
            raise RuntimeError(f"Ray's {node.name} did not start; it needs ray[default]:\n{log}")
        time.sleep(0.1)


def _kill(mark: str) -> None:
    """SIGKILL for the processes whose mark begins so, again until there are none: some fork while others die."""
    wanted = f"{MARK}={mark}".encode()
    while pids := [int(name) for name in os.listdir("/proc") if name.isdigit() and _marked(name, wanted)]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _marked(pid: str, wanted: bytes) -> bool:
    with suppress(OSError):
        return any(entry.startswith(wanted) for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return False


def _free_ports(count: int) -> list[int]:
    """Ports below the range from which the system, and with it the rest of Ray, takes its own."""
    ports: set[int] = set()
    while len(ports) < count:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port := random.randrange(20_000, 30_000)))
            ports.add(port)
    return list(ports)
