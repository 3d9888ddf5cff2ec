"""A few of the harness's runs; `make interruptions` has hundreds. And what is particular to Ray, one by one."""

from __future__ import annotations

import random
import sys

import pytest

from tests.long.interruptions import Case, Ended, Run, full_disk, interruptions, make_case, odd_lines, storage_gone

SESSION = """
import os, signal, sys
from ray._private import services
from tokloss_ray import ScoreConfig, stopping
from tokloss_ray.errors import Interrupted
from tokloss_ray.cluster import session

if sys.argv[1] == "without":
    session.SETS_HANDLER = session.ENDS_PROCESSES = session.SESSION_NAME = "ray._private.utils:not_in_this_version"
start_raylet = services.start_raylet

def interrupted(*args, **kwargs):
    started = start_raylet(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGTERM)
    return started

if sys.argv[2] == "init":
    services.start_raylet = interrupted
stopping.install(is_command=True)
try:
    with session.ray_session():
        print("up")
        if sys.argv[2] == "work":
            os.kill(os.getpid(), signal.SIGTERM)
            print("not reached")
except Interrupted as error:
    print("code", error.exit_code)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("private_parts", "moment", "expected"),
    [
        ("with", "init", "code 143\n"),
        ("without", "init", "code 143\n"),
        pytest.param("without", "work", "up\ncode 143\n", marks=pytest.mark.slow),
        pytest.param("without", "never", "up\n", marks=pytest.mark.slow),
    ],
)
def test_sigterm_while_ray_starts(private_parts: str, moment: str, expected: str) -> None:
    """Ray has a handler of its own then, which ends the process half-way. Without its private parts we get by."""
    ended = Run([sys.executable, "-c", SESSION, private_parts, moment]).end()
    assert ended.text == expected
    assert ended.code == 0
    # Half of a Ray cannot be shut down: its processes end by themselves, when they notice, some seconds later.
    assert private_parts == "without" or not ended.left


LATE = """
import os, signal, subprocess, sys
import ray
from ray._private.node import Node
from tokloss_ray import ScoreConfig
from tokloss_ray.cluster.session import ray_session

end = Node.kill_all_processes
def interrupted(node, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    # In place of a worker that is still at its imports: it has not heard of the end of the node that started it.
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"--session-name={node.session_name}"])
    return end(node, *args, **kwargs)
Node.kill_all_processes = interrupted

from tokloss_ray import stopping
stopping.install(is_command=True)
try:
    with ray_session():
        pass
except BaseException as error:
    print(error.exit_code)
os._exit(0)
"""


@pytest.mark.slow
def test_sigterm_while_ray_shuts_down() -> None:
    """Ray has taken the handler away by then, and SIGTERM would end the process before the rest of it. And what Ray was
    just starting must not stay."""
    ended = Run([sys.executable, "-c", LATE]).end()
    assert (ended.text, ended.code, ended.left) == ("143\n", 0, [])


def test_what_counts_as_odd() -> None:
    """The harness must be able to fail."""
    sentence = "error: interrupted; committed shards are kept: run the same command again to resume"
    assert not odd_lines(f"scoring: 3 of about 9 shards\nwarning: x\n{sentence}\n", sentence=True)
    for text in ("", f"{sentence}\n{sentence}", f"{sentence}\nTraceback (most recent call last):", f"x\n{sentence}"):
        assert odd_lines(text, sentence=True)
    assert odd_lines("Exception ignored in: <function ActorHandle.__del__>", sentence=False)
    assert odd_lines("error: 'NoneType' object has no attribute 'x'", sentence=True)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("interruptions"))


def hold(kind: str, what: str, ended: Ended) -> None:
    """No run may have a problem."""
    assert not ended.problems, (kind, what, ended.phase, ended.text)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_runs(case: Case) -> None:
    interruptions(case, 3, ["INT", "TERM"], random.Random(3), hold)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk(case: Case) -> None:
    try:
        full_disk(case, 2, random.Random(3), hold)
    except PermissionError as error:
        pytest.skip(f"cannot mount: {error}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_storage_that_goes_away(case: Case) -> None:
    storage_gone(case, 2, random.Random(3), hold)
