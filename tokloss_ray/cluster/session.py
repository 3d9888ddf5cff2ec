"""Ray for the time of a run: joined where there is one, else started quietly and shut down."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from tokloss_ray import stopping
from tokloss_ray.cluster.private_parts import find, replaced
from tokloss_ray.errors import Interrupted, Refused
from tokloss_ray.stopping import raise_if_stopped as raise_if_stopped


def joins_cluster(address: str | None) -> bool:
    """Whether the job runs in a Ray that is there already, and not in one that is started for it."""
    return ray.is_initialized() or _address(address) is not None


def _address(address: str | None) -> str | None:
    """The cluster to join, if any: --address, or RAY_ADDRESS, which `ray job submit` sets."""
    address = address or os.environ.get("RAY_ADDRESS")
    return address if address and address != "local" else None


@dataclass
class _Process:
    """What runs of this process share: the first brings Ray up and quiets it, the last leaves all as it was."""

    lock: Any = field(default_factory=threading.RLock)
    users: set[object] = field(default_factory=set)
    started: bool = False
    """Whether the first of them started Ray, and not its caller."""
    alone: bool = False
    """Whether it started one for itself, and did not join a cluster."""
    undo: ExitStack = field(default_factory=ExitStack)


_process = _Process()


@contextmanager
def ray_session(address: str | None = None, verbose: bool = False) -> Iterator[None]:
    """Ray, with its chatter off unless verbose, and with signals that stop the run in good order.

    Runs that overlap share it. What it changes in the calling process (signal handlers, log levels, environment) is
    undone at the end of the last.

    Raises:
        Refused: no cluster answers at the address.
        Interrupted: SIGINT or SIGTERM arrived; what is committed stays.
    """
    user = object()
    with stopping.handled():
        try:
            try:
                with _process.lock:
                    _enter(address, verbose, user)
                yield
            except BaseException:
                stopping.unwinding()
                raise
            finally:
                with stopping.held(), _process.lock:
                    _leave(user)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt) and not stopping.received():
                raise
            # What fails after a signal fails because of it, or would be said by the next attempt.
            stopping.unwinding()
            raise _interrupted() from (None if isinstance(error, KeyboardInterrupt) else error)


def _enter(address: str | None, verbose: bool, user: object) -> None:
    _process.users.add(user)
    if len(_process.users) > 1:
        return
    _process.undo.enter_context(_environment(_DEFAULTS))
    _process.started = not ray.is_initialized()
    _process.alone = _process.started and _address(address) is None
    if _process.started:
        _start(address, verbose)
    # Both outlast ray.shutdown: a thread of Ray Data that comes to its end meanwhile would start an actor to report it.
    _process.undo.enter_context(_quiet_ray_data(verbose))
    _process.undo.enter_context(_lean(_process.alone))


def _leave(user: object) -> None:
    _process.users.discard(user)
    if _process.users:
        return
    started, _process.started = _process.started, False
    try:
        if started:
            _shut_down(_process.alone)
    finally:
        _process.undo.close()


_DEFAULTS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about its coming default
    "RAY_prestart_worker_first_driver": "0",  # starts 0.3 s sooner
}


def _start(address: str | None, verbose: bool) -> None:
    level = logging.INFO if verbose else logging.CRITICAL
    where = _address(address)
    try:
        if where:
            _somebody_listens(where)
            with _handlers_left_alone():
                ray.init(address=where, logging_level=level, log_to_driver=verbose)
        else:
            # "local" and not a bare init: an address file left by a crash would make that one hang. Half of a Ray could
            # not be shut down, and a signal may tear it anywhere: it waits.
            with stopping.held(), _handlers_left_alone():
                ray.init(address="local", include_dashboard=False, logging_level=level, log_to_driver=verbose)
    except (ConnectionError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        stopping.raise_if_stopped()
        raise Refused(f"no Ray cluster at {where}: {reason}" if where else f"Ray failed to start: {reason}") from None


def _shut_down(alone: bool) -> None:
    """End Ray, and all its processes if it was started for this run `alone`. No signal cuts it short: it takes two
    seconds, and would leave processes behind.

    Half-way Ray takes its handlers back, and leaves none for SIGTERM: the next one would end this process there and
    then. So ours is put back in place when Ray comes to end its processes, which is what takes the time.
    """
    end = find(ENDS_PROCESSES)

    def put_back_and_end(*args: Any, **kwargs: Any) -> Any:
        stopping.put_back()
        return end(*args, **kwargs)

    name = find(SESSION_NAME)
    with stopping.held():
        with replaced(ENDS_PROCESSES, put_back_and_end):
            ray.shutdown()
        stopping.put_back()
        if alone and name:
            _end_late(name)


def _end_late(session: str) -> None:
    """End what a Ray was just starting when it ended itself: a signal to the whole group reaches its processes too, and
    a worker that is not through with its imports notices the loss seconds later."""
    mark = f"--session-name={session}".encode()
    for entry in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        with suppress(OSError):
            if mark in Path("/proc", entry, "cmdline").read_bytes().split(b"\0"):
                os.kill(int(entry), signal.SIGKILL)


@contextmanager
def _handlers_left_alone() -> Iterator[None]:
    """ray.init replaces the handler of SIGTERM with one that ends the process half-way, in exit code 15."""
    try:
        with replaced(SETS_HANDLER, _no_handler):
            yield
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        stopping.note(signal.SIGTERM)
        raise stopping.Stopped from None
    finally:
        stopping.put_back()


SETS_HANDLER = "ray._private.utils:set_sigterm_handler"
ENDS_PROCESSES = "ray._private.node:Node.kill_all_processes"
SESSION_NAME = "ray._private.worker:_global_node.session_name"
"""Private parts of Ray. Where they are not, a SIGTERM in the middle of its start or end is handled less well."""


def _no_handler(handler: object) -> None:
    """In place of Ray's function that sets one."""


def _somebody_listens(address: str) -> None:
    """Ask first: ray.init waits for minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from None


@contextmanager
def _quiet_ray_data(verbose: bool) -> Iterator[None]:
    import ray.data  # noqa: F401  (its import sets the handlers up)

    handlers = [h for h in logging.getLogger("ray.data").handlers if h.name == "console" and not verbose]
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)


def _lean(alone: bool) -> AbstractContextManager[None]:
    if not alone:
        return nullcontext()
    from tokloss_ray.cluster.one_machine import one_machine  # late: Ray Data takes a moment to import

    return one_machine()


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while, where the user has not set them; in the end, Ray's are as they were."""
    before = _rays_variables()
    os.environ.update({name: value for name, value in defaults.items() if name not in os.environ})
    try:
        yield
    finally:
        for name in _rays_variables().keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update(before)


def _rays_variables() -> dict[str, str]:
    """Those that Ray sets when it starts; of one, `breakpoint()` would go to a debugger of Ray's from then on."""
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "PYTHONBREAKPOINT"))}


def _interrupted() -> Interrupted:
    sentence = "interrupted; committed shards are kept: run the same command again to resume"
    return Interrupted(sentence, stopping.exit_code())
