"""S3 servers of our own on loopback: moto (everywhere) and a one-node Ceph RADOS gateway (where it is installed).

By hand: `python tests/support/s3_servers.py ceph` (or `moto`) serves until Ctrl-C and prints the variables that
lead clients, and tests through `server_from_environment`, to it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CEPH_PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "monmaptool", "ceph")
# No manager daemon: placing and serving data works without one.
CEPH_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
keyring = {folder}/keyring
log file = {folder}/$name.log
# Socket paths are limited to 107 characters, which pytest's folders can exceed; nobody needs these.
admin socket =
run dir = {folder}
# One copy, in memory, few placement groups: a start takes seconds.
osd pool default size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
# A disk that is nearly full would stop the monitor.
mon data avail crit = 0
paxos propose interval = 0.05
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw]
# The gateway alone asks for encryption by default, which needs keys.
ms mon client mode = crc
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {folder}/rgw
rgw thread pool size = 32
rgw enable gc threads = false
rgw enable lc threads = false
"""


class CephMissing(RuntimeError):
    """Ceph's programs are not installed."""


@dataclass(frozen=True)
class S3Server:
    """Where a server listens, and the keys it accepts."""

    endpoint: str
    key: str
    secret: str
    region: str = "us-east-1"

    @property
    def env(self) -> dict[str, str]:
        """Environment of a client; the metadata service is off, because asking for it without keys takes seconds."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def server_from_environment() -> S3Server | None:
    """The server that somebody else runs, if TOKLOSS_TEST_S3_ENDPOINT names one."""
    endpoint = os.environ.get("TOKLOSS_TEST_S3_ENDPOINT")
    if not endpoint:
        return None
    missing = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not os.environ.get(name)]
    if missing:
        raise RuntimeError(f"TOKLOSS_TEST_S3_ENDPOINT is set, but not {' and '.join(missing)}")
    region = os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return S3Server(endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], region)


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto in a process of its own, so that a busy test does not block it; it accepts any keys."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with _daemon(command, Path(folder) / "moto.out", port):
            yield S3Server(f"http://127.0.0.1:{port}", "testing", "testing")


@contextmanager
def ceph_server(folder: Path) -> Iterator[S3Server]:
    """A monitor, an OSD that keeps everything in memory and a gateway, with their logs in `folder`."""
    absent = [name for name in CEPH_PROGRAMS if not shutil.which(name)]
    if absent:
        raise CephMissing(f"not installed: {', '.join(absent)} (Debian packages radosgw, ceph-mon and ceph-osd)")
    folder = Path(folder).resolve()
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    port, mon_port = _free_port(), _free_port()
    server = S3Server(f"http://127.0.0.1:{port}", "cephtestkey", "cephtestsecret")
    fsid, osd_id = str(uuid.uuid4()), str(uuid.uuid4())
    conf, monmap = folder / "ceph.conf", str(folder / "monmap")
    conf.write_text(CEPH_CONF.format(fsid=fsid, folder=folder, port=port, mon_port=mon_port))
    (folder / "keyring").touch()

    def run(*command: str) -> None:
        done = subprocess.run([*command, "-c", str(conf)], capture_output=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout).decode(errors='replace')[-1000:]}")

    with ExitStack() as stack:

        def start(program: str, *arguments: str, port: int) -> None:
            command = [program, "-f", *arguments, "-c", str(conf)]
            stack.enter_context(_daemon(command, folder / f"{program}.out", port))

        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monmap)
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        start("ceph-mon", "-i", "a", port=mon_port)
        run("ceph", "osd", "new", osd_id)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        start("ceph-osd", "-i", "0", port=0)
        # Also makes the gateway's pools, while nothing else does.
        keys = ["--access-key", server.key, "--secret", server.secret]
        run("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test", *keys)
        start("radosgw", "-n", "client.rgw", port=port)
        yield server


@contextmanager
def _daemon(command: list[str], log: Path, port: int) -> Iterator[None]:
    """A process that ends with the block; in a session of its own, so that Ctrl-C reaches only us, who stop it."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + 60
        while port and not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} did not come up: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    if sys.argv[1:] not in (["ceph"], ["moto"]):
        sys.exit("usage: python tests/support/s3_servers.py ceph|moto")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(moto_server() if sys.argv[1] == "moto" else ceph_server(folder))
        for name, value in {**server.env, "TOKLOSS_TEST_S3_ENDPOINT": server.endpoint}.items():
            print(f"export {name}={value}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
