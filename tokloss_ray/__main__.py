"""Where the process starts: signals are in order before anything large is imported, and stay so to the very end."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress

from tokloss_ray import stopping
from tokloss_ray.cli import log


def main(arguments: list[str] | None = None) -> None:
    """Run a command line (by default the process's) and end the process with its exit code."""
    stopping.install(is_command=True)
    try:
        try:
            log.choose(sys.argv[1:] if arguments is None else arguments)
            from tokloss_ray.cli.app import main as run

            # Else the interpreter looks through all of torch and Ray before it ends, for a second.
            atexit.register(gc.freeze)

            run(arguments)
        finally:
            stopping.over()
    except SystemExit as ended:
        _leave(ended.code)
    except BaseException:
        # Too early or too late for the command to say it. (An import that is interrupted may raise anything.)
        if not stopping.received():
            raise
        stopping.over()
        stopping.say_interrupted()
        _leave(stopping.exit_code())


def _leave(code: str | int | None) -> None:
    """End the process. After a failure not by way of Python's own end: a thread that still imports torch crashes it."""
    if not isinstance(code, int) or code == 0:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    getattr(atexit, "_run_exitfuncs", lambda: None)()
    os._exit(code)


if __name__ == "__main__":
    main()
