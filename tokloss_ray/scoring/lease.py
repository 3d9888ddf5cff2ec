"""Who is at work in an output folder: a small file that its driver keeps up to date, and that every commit asks.

Object stores offer no lock that works everywhere, and a process that was killed gives none back. So the file says which
process has the folder, and counts up every few seconds. Whoever finds one looks whether that process is alive: on its
own machine in the process table, at once; elsewhere by waiting for the count to move. Of two that begin at the same
moment the second writer wins, which the first sees when it reads the file again before it begins its work.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from tokloss_ray.errors import JobFailed, Refused, StorageFailed
from tokloss_ray.output.names import LEASE
from tokloss_ray.storage.failures import tries
from tokloss_ray.storage.files import is_local, open_location, read_whole, remove, write_whole
from tokloss_ray.threads import in_context

BEAT_SECONDS = 5.0
PATIENCE = 20.0
"""Seconds after which a driver on another machine is taken for dead: four beats."""
_SETTLE_LOCAL, _SETTLE_REMOTE = 0.2, 1.0
"""Seconds between writing the file and trusting it: longer than anybody takes between reading and writing it."""

_calls = itertools.count()
_active: set[int] = set()
"""The calls of this process that hold a lease: one that could not give its own back does not hold it for ever."""


def check_owner(output: str, fingerprint: str) -> None:
    """A worker that was thought dead must not write into the output of the run that has taken its place.

    Raises:
        JobFailed: the folder belongs to another run by now, or its driver has ended.
    """
    lease = _read(output)
    if lease is None or lease.get("fingerprint") != fingerprint:
        raise JobFailed(f"another run took over {output} while this one was running: choose another folder")


class Lease:
    """The right of one call of `score` to write into a folder; a context, which claims the folder and releases it.

    Args:
        output: the folder.
        fingerprint: of the run, as in file names.

    Raises:
        Refused: (`claim`, `confirm`) another run is at work there.
        JobFailed: (`check`) another run has taken the folder.
    """

    def __init__(self, output: str, fingerprint: str) -> None:
        self.output = output
        self.content: dict[str, Any] = {
            "fingerprint": fingerprint,
            "holder": {**_process(), "call": next(_calls)},
            "beat": 0,
        }
        self.claimed = 0.0
        self.lost = False
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        try:
            self.claim()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def claim(self) -> None:
        """Take the folder, unless a living driver has it; waits for a sign of life from one on another machine."""
        theirs = _read(self.output)
        if theirs is not None and self._is_alive(theirs):
            raise Refused(self._taken(theirs))
        _active.add(self.content["holder"]["call"])
        self._write()
        self.claimed = time.monotonic()

    def confirm(self) -> None:
        """See that nobody claimed the folder at the same moment, then keep the lease alive until `release`."""
        settle = _SETTLE_LOCAL if is_local(open_location(self.output)[0]) else _SETTLE_REMOTE
        time.sleep(max(0.0, self.claimed + settle - time.monotonic()))
        theirs = _read(self.output)
        if theirs is None or not self._is_ours(theirs):
            raise Refused(self._taken(theirs))
        self.thread = threading.Thread(target=in_context(self._beat), name="tokloss-lease", daemon=True)
        self.thread.start()

    def check(self) -> None:
        """See that the folder is still ours, as far as the last beat knows."""
        if self.lost:
            raise JobFailed(f"another run took over {self.output} while this one was running: choose another folder")

    def release(self) -> None:
        """Give the folder back, if it is ours."""
        self.over.set()
        _active.discard(self.content["holder"]["call"])
        if self.thread is not None:
            self.thread.join(2 * BEAT_SECONDS)  # or a beat on its way would bring the file back
        # Whoever ends because storage does not answer need not wait for it again.
        with suppress(StorageFailed), tries(1):
            theirs = _read(self.output)
            if theirs is not None and self._is_ours(theirs):
                fs, root = open_location(self.output)
                remove(fs, f"{root}/{LEASE}")

    def _beat(self) -> None:
        while not self.over.wait(BEAT_SECONDS):
            try:
                theirs = _read(self.output)
                if theirs is None or not self._is_ours(theirs):
                    self.lost = not self.over.is_set()
                    return
                self.content["beat"] += 1
                if not self.over.is_set():
                    self._write()
            except Exception:  # of storage, whatever it is: the commits have the same, and say so
                continue

    def _write(self) -> None:
        fs, root = open_location(self.output)
        write_whole(fs, f"{root}/{LEASE}", json.dumps(self.content).encode())

    def _is_ours(self, lease: dict[str, Any]) -> bool:
        return lease.get("holder") == self.content["holder"]

    def _is_alive(self, lease: dict[str, Any]) -> bool:
        holder = lease.get("holder") or {}
        here = self.content["holder"]
        if holder.get("machine") == here["machine"] and here["started"]:
            started = _started(holder.get("pid", 0))
            if started is not None:
                ours = holder.get("pid") == here["pid"]
                return started == holder.get("started") and (not ours or holder.get("call") in _active)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(1.0)
            now = _read(self.output)
            if now is None:
                return False
            if now != lease:
                return True
        return False

    def _taken(self, lease: dict[str, Any] | None) -> str:
        holder = (lease or {}).get("holder") or {}
        who = f" (process {holder['pid']} on {holder['host']})" if "pid" in holder and "host" in holder else ""
        return f"another run is at work in {self.output}{who}: choose another folder, or wait until it ends"


def _read(output: str) -> dict[str, Any] | None:
    """What the file says, None if it is not there; a file that cannot be understood has no living holder."""
    fs, root = open_location(output)
    try:
        content = json.loads(read_whole(fs, f"{root}/{LEASE}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("holder"), dict) else {}


def _process() -> dict[str, Any]:
    """This process, so that others can find out whether it still runs: machine, process id, and when it was started."""
    return {
        "host": socket.gethostname(),
        "machine": [_text("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid"), socket.gethostname()],
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks since boot; empty if it is not running, None if we may not
    know."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) >= 20:
        return "" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's, in a /proc that hides those
        return None
    except (OSError, OverflowError, TypeError):
        pass
    return ""


def _text(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""
