"""Finding the row that kills: what a shard was doing when its worker died.

Memory that runs out on the host ends a process with SIGKILL; nothing can be caught. So after a pass that lost shards,
a shard is noted in a file while it is scored. If the note is there when the shard is tried again, a worker died over
it, and it is scored carefully: before each micro-batch its rows are noted too, and those that were noted at a death are
split in halves from then on. A row that was noted alone at two deaths (one may be the loss of a node) is not tried
again. Shards over which nobody died are scored at full speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

import numpy as np

from tokloss_ray.output.names import ATTEMPTS
from tokloss_ray.scoring.stages.batching import plan_batches
from tokloss_ray.storage.files import open_location, read_files, read_whole, remove, write_whole

DEATHS_ALONE = 2


@dataclass
class Journal:
    """What is known of one shard's attempts.

    Attributes:
        uri: the file.
        begun: the shard is being scored, at full speed.
        note: rows (numbers of sequences in the shard) that are being scored; empty between shards.
        groups: rows over which a worker has died, still to be told apart.
        alone: row -> how often a worker died when the row was scored alone.
        deaths: workers lost so far.
    """

    uri: str
    begun: bool = False
    note: list[int] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    alone: dict[int, int] = field(default_factory=dict)
    deaths: int = 0

    @property
    def poison(self) -> list[int]:
        """Rows that are not tried again."""
        return sorted(row for row, deaths in self.alone.items() if deaths >= DEATHS_ALONE)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While it lasts, the shard is noted; an exception leaves no note, as nobody has died."""
        self.begun = True
        self._save()
        try:
            yield
        finally:
            self.begun = False
            fs, path = open_location(self.uri)
            remove(fs, path)

    def write(self, rows: list[int]) -> None:
        """Note the rows that are scored next; none when all is done."""
        self.note = rows
        self._save()

    def _save(self) -> None:
        fs, path = open_location(self.uri)
        write_whole(fs, path, json.dumps(asdict(self)).encode())

    def batches(self, lengths: np.ndarray, budget: int, equal_length: bool = False) -> list[np.ndarray]:
        """Micro-batches of all rows but the poison; what is suspected comes last, in halves of the group it was in."""
        suspected = [row for group in self.groups for row in group]
        clean = np.setdiff1d(np.arange(len(lengths)), [*suspected, *self.poison])
        batches = [clean[batch] for batch in plan_batches(lengths[clean], budget, equal_length)]
        for group in self.groups:
            rows = np.array([row for row in group if row not in self.poison], dtype=np.int64)
            halves = np.array_split(rows, 2) if len(rows) > 1 else [rows]
            for half in halves:
                batches += [half[batch] for batch in plan_batches(lengths[half], budget, equal_length)]
        return batches


def open_journal(output: str, name: str) -> Journal:
    """The journal of a shard; a note in it means that the attempt before this one died."""
    uri = f"{output}/{ATTEMPTS}/{name}.json"
    fs, path = open_location(uri)
    try:
        content = json.loads(read_whole(fs, path))
    except (FileNotFoundError, ValueError):
        return Journal(uri)
    content["alone"] = {int(row): deaths for row, deaths in content["alone"].items()}
    journal = Journal(**content)
    if journal.begun:
        journal.deaths, journal.begun = journal.deaths + 1, False
    if journal.note:
        died_over = set(journal.note)
        journal.deaths += 1
        rest = [[row for row in group if row not in died_over] for group in journal.groups]
        journal.groups = [group for group in [*rest, sorted(died_over)] if group]
        if len(died_over) == 1:
            (row,) = died_over
            journal.alone[row] = journal.alone.get(row, 0) + 1
        journal.note = []
    return journal


def count_deaths(output: str) -> int:
    """Workers that died after the first pass, over all shards: while it grows, another pass gets further."""
    fs, root = open_location(output)
    journals = []
    for _, data in read_files(fs, f"{root}/{ATTEMPTS}", ".json"):
        with suppress(ValueError):  # damaged: as good as none
            journals.append(json.loads(data))
    return sum(content["deaths"] + content["begun"] + bool(content["note"]) for content in journals)
