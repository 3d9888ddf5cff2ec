"""Bounds for retries where Ray Data offers none.

Ray retries a task whose worker died, and restarts an actor, without limit unless it is told otherwise, and from 2.64 on
`map_batches` does not take the arguments that tell it. So an actor without CPUs is told of each begin and end of some
work. Work that was begun too often without an end is not begun again, but answered as lost: the pass ends, and the next
one looks for the row that does it (`stages/journal.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MAX_ATTEMPTS, MAX_STARTS = 3, 9
"""Attempts at a unit or a shard, and starts of a model actor, that die with their worker. Ray counts the same way:
two retries of a task of an actor, eight restarts of one."""
_PATIENCE = 60.0


class Attempts:
    """How often each piece of work was begun and not ended; lives in an actor."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, key: str) -> int:
        """Note a begin; returns how many there are now without an end."""
        self.begun[key] += 1
        return self.begun[key]

    def end(self, key: str) -> None:
        """Note the end of what was begun: whatever it came to, its worker is alive."""
        del self.begun[key]


def count_attempts() -> Any:
    """The actor that counts, on this node: it must not die with a worker's."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, max_restarts=-1)(Attempts).options(scheduling_strategy=here).remote()


@contextmanager
def attempt(counter: Any, key: str, most: int = MAX_ATTEMPTS) -> Iterator[bool]:
    """Whether to do some work: not if it was begun `most` times and its worker died each time.

    counter: of `count_attempts`; None where Ray itself counts.
    """
    if counter is None:
        yield True
        return
    try:
        begun = ray.get(counter.begin.remote(key), timeout=_PATIENCE)
    except ray.exceptions.RayError:  # it has died with its node, or the node is too busy to answer
        begun = 0
    try:
        yield begun <= most
    finally:
        # Waited for: if this worker dies of its next work, this end must have been noted.
        with suppress(ray.exceptions.RayError):
            ray.get(counter.end.remote(key), timeout=_PATIENCE)
