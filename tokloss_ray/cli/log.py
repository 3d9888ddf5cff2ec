"""The log for machines (`--log-format json`): one JSON object per line on standard output, and nothing else there.

Standard output and not standard error: what does not come from this program, such as a report of a crash in native
code, goes to standard error whatever one does, and every line of a log must parse. Imports nothing but the standard
library, so that a command that is interrupted during its imports can still say so.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from tokloss_ray import stopping

VARIABLE = "TOKLOSS_LOG_FORMAT"
FORMATS = ("text", "json")
OPTION = "--log-format"
COMMANDS = ("score", "check")
"""The commands that have the option; others print tables for people."""

EVENTS: dict[str, tuple[str, ...]] = {
    "start": ("version", "command"),
    "stage": ("stage",),
    "plan": (
        "output", "run", "units", "rows", "estimated_shards", "estimated_tokens", "done_shards", "done_tokens"
    ),
    "warning": ("message",),
    "again": ("run", "shard", "reason"),
    "commit": (
        "run", "shard", "rows", "error_rows", "errors", "sequences", "tokens", "padded_tokens", "batch_tokens",
        "memory_splits", "storage_retries", "device_wait", "seconds",
    ),
    "progress": (
        "stage", "shards", "estimated_shards", "tokens", "estimated_tokens", "tokens_per_second", "seconds_left"
    ),
    "retry": ("reason",),
    "summary": (
        "output", "already_complete", "new_shards", "seconds", "first_commit_seconds", "tokens_per_second", "shards",
        "rows", "scored_rows", "error_rows", "errors", "sequences", "tokens", "labels", "padded_tokens",
        "padding_efficiency", "batch_tokens", "batching", "compiled", "dropped_words", "mean_loss", "repeated_ids",
        "storage_retries", "memory_splits", "device_wait",
    ),
    "estimate": (
        "output", "files", "rows", "estimated_rows", "estimated_tokens", "estimated_shards", "shard_tokens", "tags",
        "dtype", "batch_tokens", "batching", "tokens_per_second", "estimated_bytes", "estimated_seconds",
        "core_tokens_per_second", "gpu_tokens_per_second", "cores_per_gpu",
    ),
    "error": ("message", "exit_code", "detail"),
}  # fmt: skip
"""The events and their fields, which docs/production.md describes: both are a contract. Every line also has `time`,
`level` and `event`; the last one is `summary`, `estimate` or `error`."""
_LEVELS = {"warning": "warning", "again": "warning", "retry": "warning", "error": "error"}
_PATIENCE = 1.0


class _State:
    """Of the process. The stream is None where people read."""

    stream: Any = None
    lock = threading.Lock()


def choose(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Decide before anything is parsed, so that a command line that is wrong is reported in the format it asks for."""
    _State.stream = None
    if not arguments or arguments[0] not in COMMANDS:
        return
    wanted = (os.environ if environment is None else environment).get(VARIABLE)
    words = list(arguments[1 : arguments.index("--")] if "--" in arguments else arguments[1:])
    for place, word in enumerate(words):
        if word == OPTION:
            wanted = words[place + 1] if place + 1 < len(words) else None
        elif word.startswith(f"{OPTION}="):
            wanted = word.partition("=")[2]
    if wanted == "json":
        _begin()


def use(wanted: str | None) -> str | None:
    """Decide once the settings are known; None leaves it to the environment.

    Returns what is wrong with the environment, in one sentence, or None.
    """
    wanted = wanted or os.environ.get(VARIABLE) or FORMATS[0]
    if wanted not in FORMATS:
        return f"{VARIABLE} is {wanted!r}: set it to {' or '.join(FORMATS)}"
    if wanted == "json":
        _begin()
    else:
        _State.stream = None
    return None


def _begin() -> None:
    _State.stream = _State.stream or sys.stdout
    stopping.last_words(_say_interrupted)


def is_json() -> bool:
    """Whether a machine reads."""
    return _State.stream is not None


def say(event: str, **fields: Any) -> None:
    """Write one line, whole: no signal tears it. A reader that has gone away does not end the job.

    Args:
        event: one of `EVENTS`.
        fields: those of the event; numbers that JSON does not have become null.
    """
    stream = _State.stream
    if stream is None:
        return
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content = {"time": time, "level": _LEVELS.get(event, "info"), "event": event, **_finite(fields)}
    line = json.dumps(content, allow_nan=False, default=str) + "\n"  # ASCII: a terminal obeys none of it
    with stopping.held():
        if not _State.lock.acquire(timeout=_PATIENCE):  # a thread is stuck in a write: the way out does not wait for it
            return
        try:
            with suppress(OSError, ValueError):
                stream.write(line)
                stream.flush()
        finally:
            _State.lock.release()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _say_interrupted() -> bool:
    """In place of the sentence on standard error, where nothing else can say it any more."""
    if is_json():
        say("error", message="interrupted", exit_code=stopping.exit_code(), detail=None)
    return is_json()
