"""What a command does to its own process and says at its end: other programs' chatter off, errors as one sentence."""

from __future__ import annotations

import faulthandler
import io
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console

from tokloss_ray import stopping
from tokloss_ray.cli import log
from tokloss_ray.errors import Interrupted, Refused, TokLossError
from tokloss_ray.text import visible

_speech = {"verbose": False}


def quiet(verbose: bool) -> None:
    """Keep the chatter of Ray, transformers and their C++ parts off the terminal, unless verbose; in the process of a
    command, until it ends. If it dies of a crash in native code, what was said last is shown after all."""
    _speech["verbose"] = verbose
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not stopping.is_command():  # a caller's process: its warnings and files are its own
        return
    warnings.simplefilter("ignore")
    # Ray's C++ core writes to file descriptor 2 whatever its log level; our own messages keep the terminal.
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
    file, path = tempfile.mkstemp(prefix="tokloss-", suffix=".stderr")
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable(2, all_threads=False)
    _tell_of_a_crash(path)


def use_log_format(wanted: str | None) -> None:
    """From here on, text or JSON; None leaves it to the environment.

    Raises:
        Refused: the environment asks for something else.
    """
    if problem := log.use(wanted):
        raise Refused(problem)


@contextmanager
def chatter(verbose: bool) -> Iterator[None]:
    """Keep off standard output what others print there while a run is at work, such as Ray, which prints what its
    raylets say, from a thread of its own."""
    if verbose and not log.is_json():
        yield
        return
    with redirect_stdout(sys.stderr if verbose else io.StringIO()):
        yield


_WATCH = r"""
while read -r _; do :; done
crash="^(Fatal Python error|\*\*\* SIG(SEGV|ABRT|BUS|FPE|ILL))"
if grep -Eq "$crash" "$0"; then
    echo "error: the process crashed outside of Python; this is what it said last"
    grep -E -m 1 -B 20 -A 40 "$crash" "$0"
fi
rm -f "$0"
"""


def _tell_of_a_crash(path: str) -> None:
    """Have the file shown if this process dies of a crash, when nothing of its own can print it; else removed.

    A shell waits for the end of a pipe, whose other end nobody but this process has. It is in a session of its own, so
    that no signal for this command ends it too early.
    """
    read_end, _here = os.pipe()
    try:
        with open(os.devnull, "w") as null:
            process = subprocess.Popen(
                ["sh", "-c", _WATCH, path], stdin=read_end, stdout=sys.stderr, stderr=null, start_new_session=True
            )
        process.returncode = 0  # it outlives this process: nobody waits for it
    except OSError:
        os.unlink(path)
    finally:
        os.close(read_end)


def shown(error: Exception) -> TokLossError:
    """What a person is told of an error. After a signal nothing else: what fails then, fails because of it."""
    if stopping.received() and not isinstance(error, Interrupted):
        detail = "".join(traceback.format_exception(error)) if _speech["verbose"] else ""
        return Interrupted("interrupted", stopping.exit_code(), detail)
    if isinstance(error, TokLossError):
        return error
    if (wrong := usage_error(error)) is not None:
        return Refused(wrong)
    detail = "".join(traceback.format_exception(error))
    return TokLossError(f"{type(error).__name__}: {error} (this should not happen; please report it)", detail)


def usage_error(error: Exception) -> str | None:
    """What is wrong with the arguments, if that is what the error is about. Typer has taken click's classes over, and
    older ones have click's: both are known by what they can do."""
    message = getattr(error, "format_message", None)
    return str(message()) if message is not None and hasattr(error, "exit_code") else None


def say(error: TokLossError) -> None:
    """Print the sentence. It may quote an id or a file's name, and a terminal would obey what is in them."""
    if log.is_json():
        detail = error.detail if _speech["verbose"] else ""
        log.say("error", message=str(error), exit_code=error.exit_code, detail=detail or None)
        return
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="", highlight=False)
    console.print(visible(str(error)), markup=False, highlight=False)
    if error.detail:
        if _speech["verbose"]:
            for line in error.detail.split("\n"):
                console.print(visible(line), markup=False, highlight=False)
        else:
            console.print("(use --verbose for the traceback)", style="dim")
