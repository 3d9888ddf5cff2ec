"""What other programs say is kept off the terminal, except where the process dies of it."""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, warnings
from tokloss_ray import stopping
from tokloss_ray.cli.terminal import quiet
if sys.argv[1] == "command":
    stopping.install(is_command=True)
quiet(sys.argv[2] == "verbose")
os.write(2, b"chatter of C++\\n")
warnings.warn("chatter of Python")
print("ours", file=sys.stderr)
exec(sys.argv[3])
"""


CODE = "f = lambda n: f(n - 1) if n else __import__('ctypes').string_at(0)\\nf(90)"
DEEP = f'exec(compile("{CODE}", "deep" * 30, "exec"))'


def run(folder: Path, process: str, verbose: str, then: str) -> tuple[int, str]:
    """Exit code, and what came on standard error until everybody had closed it; no file is left."""
    command = [sys.executable, "-c", SCRIPT, process, verbose, then]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, timeout=60, env=os.environ | {"TMPDIR": str(folder)}
    )
    deadline = time.monotonic() + 10
    while glob.glob(f"{folder}/tokloss-*") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not glob.glob(f"{folder}/tokloss-*")
    return done.returncode, done.stderr


@pytest.mark.parametrize("then", ["pass", "os._exit(0)"])
def test_chatter_is_not_shown(then: str, tmp_path: Path) -> None:
    assert run(tmp_path, "command", "quiet", then) == (0, "ours\n")


def test_a_process_that_is_ended_shows_nothing(tmp_path: Path) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        then = f"import signal; signal.signal({number}, signal.SIG_DFL); os.kill(os.getpid(), {number})"
        then = then if number != signal.SIGKILL else f"os.kill(os.getpid(), {number})"
        assert run(tmp_path, "command", "quiet", then) == (-number, "ours\n")


@pytest.mark.parametrize(
    ("then", "number", "said"),
    [
        ("import ctypes; ctypes.string_at(0)", signal.SIGSEGV, "Segmentation fault"),
        # Far down in calls, as imports are: the report is long, and says the most important first.
        (DEEP, signal.SIGSEGV, "Segmentation fault"),
        ("os.write(2, b'free(): invalid pointer\\n'); os.abort()", signal.SIGABRT, "free(): invalid pointer"),
    ],
)
def test_a_crash_shows_what_was_said_last(then: str, number: int, said: str, tmp_path: Path) -> None:
    code, text = run(tmp_path, "command", "quiet", then)
    assert code == -number
    assert text.startswith("ours\nerror: the process crashed outside of Python; this is what it said last\n")
    assert said in text
    assert "Fatal Python error" in text
    assert "chatter of C++" in text
    assert 'File "' in text


def test_verbose_shows_all_as_it_comes(tmp_path: Path) -> None:
    code, text = run(tmp_path, "command", "verbose", "pass")
    assert code == 0
    assert text.startswith("chatter of C++\n")
    assert "chatter of Python" in text


def test_a_callers_process_keeps_its_files_and_warnings(tmp_path: Path) -> None:
    code, text = run(tmp_path, "caller", "quiet", "pass")
    assert code == 0
    assert text.startswith("chatter of C++\n")
    assert "chatter of Python" in text
