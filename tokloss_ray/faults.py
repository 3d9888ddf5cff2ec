"""Named points at which tests make a process die, fail or stand still.

TOKLOSS_FAULTS holds one fault or several, separated by commas: `POINT=ACTION`, or `POINT@TEXT=ACTION` for a visit whose
subject contains the text. Actions: `kill` (as SIGKILL does), `raise`, `stall:SECONDS`, and `note:FILE`, which adds a
line with time, point and subject to a file. With TOKLOSS_FAULTS_ONCE, the name of a folder, each fault happens once,
whatever number of processes pass by. Without the variable a point costs one comparison.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time

POINTS = (
    "plan.before",
    "plan.written",
    "run.written",
    "file.half",
    "file.temporary",
    "score.batch",
    "commit.before",
    "commit.data",
    "commit.errors",
    "commit.record",
    "roll.before",
    "roll.written",
    "success.before",
    "success.after",
)
"""In the order a run passes them; `file.half` and `file.temporary` are inside each write on a local disk. The model
actor passes `actor.begin` and `actor.ready` beside them, `--overwrite` passes `clear` after each thing it removes;
`apply-fixes` passes `apply.file` before each file of a copy, and `apply.whole` before the copy gets its name."""

_faults = os.environ.get("TOKLOSS_FAULTS", "")


class InjectedFault(RuntimeError):
    """Raised where TOKLOSS_FAULTS says so."""


def fault_point(name: str, subject: str = "") -> None:
    """Do what TOKLOSS_FAULTS asks for here; nothing as a rule."""
    if _faults:
        _visit(name, subject)


def armed() -> bool:
    """Whether there are faults at all."""
    return bool(_faults)


def _visit(name: str, subject: str) -> None:
    for fault in _faults.split(","):
        where, _, action = fault.partition("=")
        point, _, text = where.partition("@")
        if point != name or text not in subject or not _first_time(fault):
            continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "raise":
            raise InjectedFault(f"{name} {subject}")
        elif action.startswith("stall:"):
            time.sleep(float(action.removeprefix("stall:")))
        elif action.startswith("note:"):
            with open(action.removeprefix("note:"), "a") as file:
                file.write(f"{time.time()} {name} {subject}\n")
        else:
            raise ValueError(f"TOKLOSS_FAULTS: no action {action}")


def _first_time(fault: str) -> bool:
    folder = os.environ.get("TOKLOSS_FAULTS_ONCE")
    if not folder:
        return True
    try:
        open(os.path.join(folder, hashlib.sha256(fault.encode()).hexdigest()[:16]), "x").close()
    except FileExistsError:
        return False
    return True
