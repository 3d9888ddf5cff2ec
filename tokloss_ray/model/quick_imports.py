"""Importing torch and transformers quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection(ours: bool) -> Iterator[None]:
    """Without garbage collection, for large imports: they make a million objects that stay, which the collector would
    look through again and again, for a fifth of the time.

    ours: whether the process is a command's or a worker's. Then the collector is told in the end to leave them alone
    for good; in somebody else's process all that is theirs would be left alone with them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ours:
            gc.freeze()
        if was_on:
            gc.enable()
