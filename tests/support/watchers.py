"""Watchers that interfere with a run."""

from __future__ import annotations

from tokloss_ray.errors import Interrupted
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.scoring.watcher import Watcher


class StopAfter(Watcher):
    """Ends the run once so many shards are committed, as a signal would."""

    def __init__(self, shards: int) -> None:
        self.left = shards

    def committed(self, record: CommitRecord) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted("stopped", 130)
