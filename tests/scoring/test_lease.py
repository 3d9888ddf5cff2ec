"""One driver at a time in an output folder; a dead one holds it for a moment at most."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tokloss_ray.errors import JobFailed, Refused, StorageFailed
from tokloss_ray.output.names import LEASE
from tokloss_ray.scoring import lease as lease_module
from tokloss_ray.scoring.lease import Lease, check_owner
from tokloss_ray.storage.files import open_location

HOLD = """
import sys, time
from tokloss_ray.scoring.lease import Lease
lease = Lease(sys.argv[1], "abc123")
lease.claim()
lease.confirm()
print("held", flush=True)
time.sleep(600)
"""


def holder_of(output: Path) -> dict[str, Any]:
    return json.loads((output / LEASE).read_text())["holder"]


def other_machine(output: Path, beats: bool, seconds: float) -> threading.Thread:
    """A lease of a driver elsewhere, which counts up for a while, or does not."""
    content = {"fingerprint": "abc123", "holder": {"host": "far", "machine": ["x", "y", "far"], "pid": 1}, "beat": 0}
    output.mkdir(exist_ok=True)
    (output / LEASE).write_text(json.dumps(content))

    def run() -> None:
        for beat in range(1, int(seconds / 0.1)):
            time.sleep(0.1)
            (output / LEASE).write_text(json.dumps(content | {"beat": beat}))

    thread = threading.Thread(target=run if beats else lambda: None)
    thread.start()
    return thread


def test_a_living_driver_is_not_disturbed_and_a_killed_one_not_waited_for(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(Refused, match=rf"another run is at work in .* \(process {process.pid} on "),
            Lease(str(tmp_path), "abc123"),
        ):
            pass
        assert holder_of(tmp_path)["pid"] == process.pid, "the refused one took the lease away"
    finally:
        process.kill()
        process.wait()
    begin = time.monotonic()
    with Lease(str(tmp_path), "abc123") as lease:
        assert time.monotonic() - begin < 1
        lease.confirm()
        assert holder_of(tmp_path)["pid"] == os.getpid()
        check_owner(str(tmp_path), "abc123")
        with pytest.raises(JobFailed, match="another run took over"):
            check_owner(str(tmp_path), "def456")
    assert not (tmp_path / LEASE).exists()
    with pytest.raises(JobFailed, match="another run took over"):
        check_owner(str(tmp_path), "abc123")


def test_two_calls_in_one_process(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "abc123"), pytest.raises(Refused), Lease(str(tmp_path), "abc123"):
        pass
    assert not (tmp_path / LEASE).exists()


def test_of_two_that_begin_together_one_goes_on(tmp_path: Path) -> None:
    """Both have looked before either has written."""
    first, second = Lease(str(tmp_path), "abc123"), Lease(str(tmp_path), "abc123")
    first.claim()
    second._write()
    second.claimed = time.monotonic()
    with pytest.raises(Refused):
        first.confirm()
    second.confirm()
    first.release()
    assert (tmp_path / LEASE).exists(), "the refused one released what it did not hold"
    second.release()
    assert not (tmp_path / LEASE).exists()


def test_a_driver_on_another_machine_is_known_by_its_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "PATIENCE", 2.5)
    thread = other_machine(tmp_path, beats=True, seconds=2.0)
    with pytest.raises(Refused, match="process 1 on far"):
        Lease(str(tmp_path), "abc123").claim()
    thread.join()
    other_machine(tmp_path, beats=False, seconds=0)
    with Lease(str(tmp_path), "abc123"):
        assert holder_of(tmp_path)["pid"] == os.getpid()


def test_a_driver_that_lost_its_folder_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.05)
    with Lease(str(tmp_path), "abc123") as lease:
        lease.confirm()
        beats: set[int] = set()
        deadline = time.monotonic() + 60
        while len(beats) <= 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            beats.add(json.loads((tmp_path / LEASE).read_text())["beat"])
        assert len(beats) > 2
        lease.check()
        while not lease.lost and time.monotonic() < deadline:
            if holder_of(tmp_path)["host"] != "far":  # a beat that had begun before may come after it
                other_machine(tmp_path, beats=False, seconds=0)
            time.sleep(0.2)
        with pytest.raises(JobFailed, match="another run took over"):
            lease.check()
    assert holder_of(tmp_path)["host"] == "far", "the loser removed what was not its own"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"holder": 3}'])
def test_a_lease_that_cannot_be_read_holds_nobody_up(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "PATIENCE", 0.1)
    (tmp_path / LEASE).write_text(text)
    with Lease(str(tmp_path), "abc123") as lease:
        lease.confirm()


def test_on_object_storage(bucket: str) -> None:
    """No exclusive create and no rename there: the same protocol with whole objects."""
    fs, _ = open_location(bucket)
    process = subprocess.Popen([sys.executable, "-c", HOLD, f"{bucket}/out"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        with pytest.raises(Refused, match=f"another run is at work in {bucket}/out"):
            Lease(f"{bucket}/out", "abc123").claim()
    finally:
        process.kill()
        process.wait()
    with Lease(f"{bucket}/out", "abc123") as lease:
        lease.confirm()
        check_owner(f"{bucket}/out", "abc123")
    assert fs.find(bucket) == []


def test_a_lease_that_could_not_be_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that lives on, such as a notebook's."""

    def fail(output: str) -> None:
        raise StorageFailed("not now")

    with Lease(str(tmp_path), "abc123") as lease, monkeypatch.context() as gone:
        gone.setattr(lease_module, "_read", fail)
        lease.release()
    lost = json.loads((tmp_path / LEASE).read_text()) if (tmp_path / LEASE).exists() else lease.content
    (tmp_path / LEASE).write_text(json.dumps(lost))
    with Lease(str(tmp_path), "abc123"):
        pass

    def interrupted(self: Lease) -> None:
        write(self)
        raise KeyboardInterrupt

    write = Lease._write
    monkeypatch.setattr(Lease, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt), Lease(str(tmp_path), "abc123"):
        pass
    assert not (tmp_path / LEASE).exists()
