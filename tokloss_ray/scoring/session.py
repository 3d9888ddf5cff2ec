"""Ray for the time of a run: joined where there is one, else started quietly and shut down."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import ray

from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Interrupted, Refused


def joins_cluster(config: ScoreConfig) -> bool:
    """Whether the job runs in a Ray that is there already, and not in one that is started for it."""
    return ray.is_initialized() or _address(config) is not None


def _address(config: ScoreConfig) -> str | None:
    """The cluster to join, if any: --address, or RAY_ADDRESS, which `ray job submit` sets."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return address if address and address != "local" else None


@contextmanager
def ray_session(config: ScoreConfig) -> Iterator[None]:
    """Ray, with its chatter off unless verbose, and with signals that stop the run in good order.

    What it changes in the calling process (signal handlers, log levels, environment) is undone at its end.

    Raises:
        Refused: no cluster answers at the address.
        Interrupted: SIGINT or SIGTERM arrived; what is committed stays.
    """
    ours = not ray.is_initialized()
    # Quiet to the end: Ray Data's threads still log while Ray is being shut down.
    # ray.init replaces the caller's SIGTERM handler: this puts it back in the end.
    kept = _handlers({signal.SIGTERM: signal.getsignal(signal.SIGTERM)})
    with kept, _environment(_DEFAULTS):
        try:
            if ours:
                _start(config)
            with _quiet_ray_data(config.verbose), _lean(ours and _address(config) is None), _signals():
                yield
        except KeyboardInterrupt as error:
            raise _interrupted(signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT) from None
        finally:
            if ours:
                # No signal cuts it short: it takes two seconds, and would leave processes behind.
                with _handlers(dict.fromkeys(_STOPPING, signal.SIG_IGN)):
                    ray.shutdown()


_DEFAULTS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about its coming default
    "RAY_prestart_worker_first_driver": "0",  # starts 0.3 s sooner
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception that no `except Exception` on its way takes for its own."""


def _start(config: ScoreConfig) -> None:
    level = logging.INFO if config.verbose else logging.CRITICAL
    where = _address(config)
    try:
        if where:
            _somebody_listens(where)
            ray.init(address=where, logging_level=level, log_to_driver=config.verbose)
        else:
            # "local" and not a bare init: an address file left by a crash would make that one hang.
            ray.init(address="local", include_dashboard=False, logging_level=level, log_to_driver=config.verbose)
    except (ConnectionError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise Refused(f"no Ray cluster at {where}: {reason}" if where else f"Ray does not start: {reason}") from None


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
    from tokloss_ray.scoring.one_machine import one_machine  # late: Ray Data takes a moment to import

    return one_machine()


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while, where the user has not set them."""
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _handlers(chosen: dict[int, Any]) -> Iterator[None]:
    """Signal handlers for a while; none are touched outside of the main thread, where Python refuses it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in chosen.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM ends the run as SIGINT does. Installed after ray.init, which puts a handler of its own in place."""

    def stop(number: int, frame: FrameType | None) -> None:
        _received.append(number)
        raise_if_stopped()

    _received.clear()
    with _handlers(dict.fromkeys(_STOPPING, stop)):
        try:
            yield
        finally:
            _received.clear()


_STOPPING = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


def raise_if_stopped() -> None:
    """Raise what a signal has raised before: an exception that arrives in a destructor, say, is lost."""
    if _received:
        raise _Terminated if _received[0] == signal.SIGTERM else KeyboardInterrupt


def _interrupted(number: int) -> Interrupted:
    return Interrupted(
        "interrupted; committed shards are kept, and the same command goes on from there", exit_code=128 + number
    )
