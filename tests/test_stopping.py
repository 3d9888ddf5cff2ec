"""Signals while nothing of Ray is there yet: wherever they arrive, one sentence and the signal's exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokloss_ray import stopping

INTERRUPTED = "error: interrupted"


def run(script: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, after the imports that it needs."""
    script = "import os, signal, sys, time\nfrom tokloss_ray import stopping\nstopping.AGAIN = 0.1\n" + textwrap.dedent(
        script
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_one_that_is_lost_comes_again() -> None:
    """Python drops what a destructor raises, and reports it; here the report would be the trace in question."""
    done = run("""
        class Lost:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(10): pass
                print("not reached")
        with stopping.handled():
            try:
                Lost()
                print("goes on")
                time.sleep(30)
            except stopping.Stopped:
                print("stopped", stopping.exit_code())
    """)
    assert done.stdout.split("\n")[:2] == ["goes on", "stopped 143"]
    assert not done.stderr


def test_others_that_are_lost_are_still_reported() -> None:
    done = run("""
        class Lost:
            def __del__(self):
                raise ValueError("somebody else's")
        with stopping.handled():
            Lost()
    """)
    assert "somebody else's" in done.stderr


def test_work_that_must_not_be_torn_is_finished_first() -> None:
    done = run("""
        with stopping.handled():
            try:
                with stopping.held():
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(1.5 * stopping.AGAIN)
                    print("whole")
                print("not reached")
            except KeyboardInterrupt:
                stopping.unwinding()
                os.kill(os.getpid(), signal.SIGTERM)  # changes nothing: not the way out, and not the code
                time.sleep(1.5 * stopping.AGAIN)
                print("out", stopping.exit_code())
    """)
    assert done.stdout == "whole\nout 130\n"
    assert not done.stderr


def test_a_way_out_that_hangs_comes_to_an_end() -> None:
    done = run("""
        stopping.PATIENCE = 1.0
        stopping.install(is_command=True)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            stopping.unwinding()
            time.sleep(30)
    """)
    assert (done.returncode, done.stderr) == (143, f"{INTERRUPTED}\n")


def test_a_call_into_c_that_hangs_comes_to_an_end() -> None:
    """No handler of Python's runs there: a start of Ray whose own processes got the signal too is one."""
    done = run("""
        import hashlib, threading
        stopping.PATIENCE = 1.0
        stopping.install(is_command=True)
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 1_000_000_000)
    """)
    assert (done.returncode, done.stderr) == (143, f"{INTERRUPTED}\n")


def test_the_caller_gets_its_handlers_back() -> None:
    def handlers() -> list[object]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        return [signal.getsignal(number) for number in numbers] + [sys.unraisablehook]

    before = handlers()
    with stopping.handled(), stopping.handled():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stopping.received()
    assert handlers() == before
    assert not stopping.received()


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """As shells have it with SIGINT for jobs in the background."""
    done = run("""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with stopping.handled():
            os.kill(os.getpid(), signal.SIGINT)
            print("goes on")
    """)
    assert (done.stdout, done.stderr) == ("goes on\n", "")


def test_not_in_other_threads() -> None:
    """Python refuses handlers there; the work is done all the same."""
    seen: list[object] = []

    def work() -> None:
        with stopping.handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def start(*words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tokloss_ray", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}), start_new_session=True,
    )  # fmt: skip


def catches(process: subprocess.Popen[str]) -> bool:
    """Whether a process has a handler for SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_failure_without_the_private_part_of_atexit() -> None:
    """Exit functions are not run then; the sentence and the code stay."""
    done = run("""
        import atexit
        if hasattr(atexit, "_run_exitfuncs"):
            del atexit._run_exitfuncs
        from tokloss_ray.__main__ import main
        main(["status", "nowhere"])
    """)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_the_first_moment_on(number: int) -> None:
    """In the middle of imports: a C extension may make anything of an exception there."""
    interrupted = 0
    for wait in (0.0, 0.05, 0.1, 0.15, 0.2):
        process = start("status", "nowhere")
        deadline = time.monotonic() + 20
        while process.poll() is None and not catches(process):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(wait)
        process.send_signal(number)
        said = process.communicate(timeout=30)
        if process.returncode != 2:  # it had come to its end, and had said that there is no such output
            assert (process.returncode, *said) == (128 + number, "", f"{INTERRUPTED}\n"), wait
            interrupted += 1
    assert interrupted


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """Takes connections and never answers: a command that reads from it is at work until it is interrupted."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


FAST = [
    ("mine s3://bucket/out", signal.SIGTERM),
    ("show s3://bucket/out", signal.SIGINT),
    ("export s3://bucket/out --format csv -o x.csv", signal.SIGTERM),
    ("verify s3://bucket/out", signal.SIGINT),
]
SLOW = [
    ("mine s3://bucket/out", signal.SIGINT),
    ("show s3://bucket/out", signal.SIGTERM),
    ("verify s3://bucket/out", signal.SIGTERM),
    ("status s3://bucket/out", signal.SIGINT),
    ("status s3://bucket/out", signal.SIGTERM),
    ("report s3://bucket/out", signal.SIGINT),
    ("report s3://bucket/out", signal.SIGTERM),
    ("diff s3://bucket/out s3://bucket/out2", signal.SIGINT),
    ("diff s3://bucket/out s3://bucket/out2", signal.SIGTERM),
    ("export s3://bucket/out --format csv -o x.csv", signal.SIGINT),
    ("apply-fixes s3://bucket/x.csv --to s3://bucket/data -o s3://bucket/fixed", signal.SIGTERM),
    ("demo -o s3://bucket/out", signal.SIGINT),
    ("demo -o s3://bucket/out", signal.SIGTERM),
    ("check --model s3://bucket/m --input s3://bucket/in --output s3://bucket/out", signal.SIGINT),
    ("check --model s3://bucket/m --input s3://bucket/in --output s3://bucket/out", signal.SIGTERM),
    ("score --model s3://bucket/m --input s3://bucket/in --output s3://bucket/out", signal.SIGTERM),
]


@pytest.mark.parametrize(("words", "number"), [*FAST, *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]])
def test_every_command_at_work(words: str, number: int, silent_server: socket.socket, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{silent_server.getsockname()[1]}"
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
    process = start(*words.split(), env=keys | {"AWS_ENDPOINT_URL": endpoint})
    silent_server.accept()
    process.send_signal(number)
    said, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number, error
    assert error.startswith(INTERRUPTED)
    assert error.count("\n") == 1, error
    assert not said
