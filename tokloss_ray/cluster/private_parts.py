"""Parts of Ray that it does not promise to keep, looked up by name and replaced for a while.

Whoever uses one goes without where it is gone or has changed: slower, or less well at the edges, but never dead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def find(path: str) -> Any:
    """What a path such as `ray._private.node:Node.kill_all_processes` names; None if any step of it is not there."""
    module, _, names = path.partition(":")
    try:
        found = import_module(module)
        for name in filter(None, names.split(".")):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def takes(function: Any, *parameters: str) -> bool:
    """Whether a function has these parameters and no others."""
    try:
        return tuple(inspect.signature(function).parameters) == parameters
    except (TypeError, ValueError):
        return False


@contextmanager
def replaced(path: str, value: Any) -> Iterator[None]:
    """Something else in place of a function, while it lasts; nothing happens where no such function is."""
    owner_path, _, name = path.rpartition("." if "." in path.partition(":")[2] else ":")
    owner = find(owner_path)
    if owner is None or name not in vars(owner):
        yield
        return
    before = vars(owner)[name]  # and not getattr: a static method must come back as one
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
