"""Importing torch and transformers quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Without garbage collection, for large imports: they make a million objects that stay, which the collector would
    look through again and again, for a fifth of the time. In the end it is told to leave them alone for good."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
