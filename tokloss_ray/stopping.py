"""SIGINT and SIGTERM as one exception, raised where it does no harm, as often as it gets lost, and never too late.

Python raises from a signal handler wherever the main thread happens to be. In a destructor or a callback from C such an
exception is lost; in the middle of `ray.init` it leaves processes behind. So signals are noted; the exception waits
while work goes on that must not be torn (`held`), is raised again where it was lost, and not any more once the command
is on its way out (`unwinding`). Imports nothing but the standard library: it is in place before anything else.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.5
"""Seconds after which an exception that got lost is raised again."""
PATIENCE = 30.0
"""Seconds that a command has for its way out, before the process ends without it."""
INTERRUPTED = "error: interrupted"


class Stopped(KeyboardInterrupt):
    """A signal, as an exception that no `except Exception` on its way takes for its own."""


class _State:
    """Of the process and its main thread, which signals are for: what runs in another goes on undisturbed, as ever in
    Python, and keeps no signal waiting."""

    handlers: dict[int, Any] | None = None
    """Those that were there before; None while ours are not in place."""
    hook: Any = None
    number: int | None = None
    held = 0
    unwinding = False
    is_command = False
    last_words: Callable[[], bool] | None = None


@contextmanager
def handled() -> Iterator[None]:
    """While it lasts, signals raise `Stopped` in the main thread. Within another of its kind it does nothing.

    Outside of the main thread, where Python refuses handlers, neither. A signal that the caller ignores, as a shell's
    background jobs do with SIGINT, stays ignored.
    """
    if not _in_main_thread() or _State.handlers is not None:
        yield
        return
    install()
    try:
        yield
    finally:
        before: dict[int, Any] = _State.handlers or {}
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _State.handlers = None
        _State.number, _State.unwinding = None, False
        sys.unraisablehook, _State.hook = _State.hook, None


def install(is_command: bool = False) -> None:
    """Put the handlers in place, or back in place; `is_command`: for good, the process is nothing but this command."""
    if not _in_main_thread():
        return
    if is_command and not _State.is_command:
        _State.is_command = True
        arrivals, here = os.pipe()
        os.set_blocking(here, False)
        signal.set_wakeup_fd(here, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(arrivals,), name="tokloss-watch", daemon=True).start()
    if _State.handlers is None:
        _State.handlers = {n: signal.getsignal(n) for n in SIGNALS}
        _State.hook, sys.unraisablehook = sys.unraisablehook, _drop_lost
    for number, before in _State.handlers.items():
        if before is not signal.SIG_IGN:
            signal.signal(number, _arrived)


def put_back() -> None:
    """Put the handlers back in place, where they were and somebody else has set others."""
    if _State.handlers is not None and _in_main_thread():
        install()


def note(number: int) -> None:
    """Take a signal for received that somebody else's handler got."""
    if _State.number is not None:
        return
    _State.number = number
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, _alarm):
        signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)


def _arrived(number: int, frame: FrameType | None) -> None:
    note(number)
    _raise_unless_busy()


def _alarm(number: int, frame: FrameType | None) -> None:
    if _State.number is None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return
    _raise_unless_busy()


def _watch(arrivals: int) -> None:
    """End the process some time after a signal, whatever the main thread does: it may be in C, where it runs no
    handler, such as a start of Ray whose own processes got the signal too."""
    while (number := os.read(arrivals, 1)[0]) not in SIGNALS:
        pass
    time.sleep(PATIENCE)
    _State.number = _State.number or number
    _end_now()


def _raise_unless_busy() -> None:
    if not _State.held and not _State.unwinding:
        raise Stopped


def received() -> bool:
    """Whether a signal has arrived; for the main thread alone."""
    return _State.number is not None and _in_main_thread()


def is_command() -> bool:
    """Whether the process is nothing but a command of this program."""
    return _State.is_command


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def exit_code() -> int:
    """Of the signal that has arrived; of SIGINT where it raised an exception before anybody handled it."""
    return 128 + (_State.number or signal.SIGINT)


def raise_if_stopped() -> None:
    """Raise what a signal has raised before: an exception that arrives in a destructor, say, is lost."""
    if received():
        raise Stopped


def unwinding() -> None:
    """The exception has done its work: what comes now is the way out, and no further signal disturbs it."""
    if _in_main_thread():
        _State.unwinding = received()


@contextmanager
def held() -> Iterator[None]:
    """Keep signals waiting for the end of some work that must not be torn.

    Raises:
        Stopped: one has arrived meanwhile.
    """
    if not _in_main_thread():
        yield
        return
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
    if received() and not _State.unwinding:
        _raise_unless_busy()


def over() -> None:
    """The outcome of the command stands, and is said: signals change nothing any more."""
    _State.unwinding = True
    if _in_main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def last_words(say: Callable[[], bool]) -> None:
    """Have an interruption said in another way than in a sentence on standard error, unless `say` returns False."""
    _State.last_words = say


def say_interrupted() -> None:
    """The sentence alone, where there is nothing yet, or nothing any more, that could say it better."""
    if _State.last_words is not None and _State.last_words():
        return
    stream: Any = sys.stderr
    with suppress(OSError, ValueError, AttributeError):
        os.write(stream.fileno(), f"{INTERRUPTED}\n".encode())


def _end_now() -> None:
    say_interrupted()
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h")  # a spinner had hidden the cursor
    os._exit(exit_code())


def _drop_lost(lost: Any) -> None:
    """Python reports an exception that arrived in a destructor, where it is lost. Ours is raised again: no report."""
    if not (lost.exc_type is not None and issubclass(lost.exc_type, Stopped)):
        (_State.hook or sys.__unraisablehook__)(lost)
