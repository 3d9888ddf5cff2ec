"""Processes that begin with everything imported.

A new Python process imports torch, transformers, Ray and this package for four seconds before it does anything. Here
one process imports them once, for all tests, and is forked for each run (`multiprocessing`'s fork server). A child is a
process like any other, with memory, signals and an exit code of its own; only the way to its first line is short. What
is about that way, signals during imports or modules that must not be imported, needs a real new process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any
from unittest.mock import patch

IMPORTS = [
    "pyarrow.dataset",
    "ray.data",
    "s3fs",
    "torch",
    "transformers.models.bert.modeling_bert",
    "tokloss_ray.__main__",
    "tokloss_ray.cli.app",
    "tokloss_ray.scoring.driver",
    "tests.support.inline",
]
SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",  # it starts threads on import, and a fork has only the one that forks
    # As the command line sets them, for libraries that look on import.
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
LEFT_BY_RAY = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "PYTHONBREAKPOINT")
"""What `ray.init` leaves in the environment of a test process: a Ray that was imported without them does not start."""
_context = multiprocessing.get_context("forkserver")
_running: list[int] = []  # this process, once its server is there; a fork of it would need its own


def tokloss(*words: object, env: Mapping[str, str] | None = None, timeout: float = 150) -> CompletedProcess[str]:
    """The command line, as `python -m tokloss_ray WORDS` runs it: exit code and all it said.

    env: the whole environment, by default that of this process. Raises TimeoutExpired, after it has killed the child.
    """
    return run(_command, [str(word) for word in words], env=env, timeout=timeout)


def run(
    function: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None, timeout: float = 150
) -> CompletedProcess[str]:
    """Call a function of a module in a child: its exit code (negative: the signal that killed it) and output.

    function, args: must pickle. What the function returns is lost. An exception ends the child with exit code 1 and a
    traceback in its standard error. env, timeout: as in `tokloss`.
    """
    _serve()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = os.environ if env is None else env
        clean = {name: value for name, value in given.items() if name not in LEFT_BY_RAY}
        child = _context.Process(target=_begin, args=(function, args, clean, out, err))
        child.start()
        child.join(timeout)
        if child.is_alive():
            child.kill()
            child.join()
            raise TimeoutExpired(f"{function.__name__}{args}", timeout, _text(out), _text(err))
        return CompletedProcess(args, child.exitcode, _text(out), _text(err))


def _serve() -> None:
    """Start the server, unless there is one, and see that its imports worked: else it would be slow in silence."""
    if os.getpid() in _running:
        return
    _context.set_forkserver_preload(IMPORTS)
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with patch.dict(os.environ, SETTINGS, PYTHONPATH=os.pathsep.join(paths)):
        forkserver.ensure_running()
    _running.append(os.getpid())
    done = run(_check_imports)
    assert done.returncode == 0, done.stderr


def _check_imports() -> None:
    assert set(IMPORTS) <= sys.modules.keys()


def _begin(function: Callable[..., Any], args: tuple[Any, ...], env: dict[str, str], out: Path, err: Path) -> None:
    """In the child: output to files, the environment as it is to be, and what was read from it on import read again."""
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    from tokloss_ray import faults

    faults._faults = os.environ.get("TOKLOSS_FAULTS", "")
    function(*args)


def _command(words: list[str]) -> None:
    import tokloss_ray
    from tokloss_ray import __main__

    sys.argv = [str(Path(tokloss_ray.__file__).with_name("__main__.py")), *words]
    __main__.main()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
