"""What a command does to its own process and says at its end: other programs' chatter off, errors as one sentence."""

from __future__ import annotations

import os
import sys
import traceback
import warnings

from rich.console import Console

from tokloss_ray import stopping
from tokloss_ray.errors import Interrupted, TokLossError
from tokloss_ray.text import visible

_speech = {"verbose": False}


def quiet(verbose: bool) -> None:
    """Keep the chatter of Ray, transformers and their C++ parts off the terminal, unless verbose.

    For the process of a command: it lasts until the process ends.
    """
    _speech["verbose"] = verbose
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")
    # Ray's C++ core writes to file descriptor 2 whatever its log level; our own messages keep the terminal.
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def shown(error: Exception) -> TokLossError:
    """What a person is told of an error. After a signal nothing else: what fails then, fails because of it."""
    if stopping.received() and not isinstance(error, Interrupted):
        detail = "".join(traceback.format_exception(error)) if _speech["verbose"] else ""
        return Interrupted("interrupted", stopping.exit_code(), detail)
    if isinstance(error, TokLossError):
        return error
    detail = "".join(traceback.format_exception(error))
    return TokLossError(f"{type(error).__name__}: {error} (this should not happen; please report it)", detail)


def say(error: TokLossError) -> None:
    """Print the sentence. It may quote an id or a file's name, and a terminal would obey what is in them."""
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="", highlight=False)
    console.print(visible(str(error)), markup=False, highlight=False)
    if error.detail:
        if _speech["verbose"]:
            for line in error.detail.split("\n"):
                console.print(visible(line), markup=False, highlight=False)
        else:
            console.print("(--verbose shows where it came from)", style="dim")
