"""What the benchmarks share: corpora, a stand-in's answers, medians, memory, the machine, and how figures are shown."""

from __future__ import annotations

import json
import os
import platform
import statistics
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tokloss_ray import schema
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array

ID_COLUMN = "id"
ROWS_PER_FILE, ROWS_PER_GROUP = 100_000, 2_500
_PACKAGES = ("tokloss-ray", "ray", "pyarrow", "tokenizers", "torch", "transformers", "numpy")


class Memory(threading.Thread):
    """Peak of the memory of a process (by default this one) and its descendants, in bytes.

    It adds up proportional set sizes (PSS): a page that several processes map, such as one of Ray's object store, is
    divided among them, and so counts once. Looking costs some milliseconds of processor time for each process.
    """

    def __init__(self, root: int | None = None, every: float = 1.0) -> None:
        super().__init__(daemon=True)
        self.root, self.every, self.over = root or os.getpid(), every, threading.Event()
        self.samples: list[dict[str, int]] = []
        self.start()

    def run(self) -> None:
        while not self.over.wait(self.every):
            sample: dict[str, int] = {}
            for process in processes(self.root):
                try:
                    role, used = role_of(process, self.root), process.memory_full_info().pss
                except psutil.Error:
                    continue
                sample[role] = sample.get(role, 0) + used
            self.samples.append(sample)

    def stop(self) -> int:
        """The peak so far; looks no more."""
        self.over.set()
        return max((sum(sample.values()) for sample in self.samples), default=0)

    def tenths(self) -> dict[str, list[int]]:
        """MB by kind of process: the median of each tenth of the time."""
        parts = [part for part in np.array_split(np.array(self.samples, dtype=object), 10) if len(part)]
        names = sorted({name for sample in self.samples for name in sample})
        return {
            name: [round(statistics.median(sample.get(name, 0) for sample in part) / 1e6) for part in parts]
            for name in names
        }


def role_of(process: psutil.Process, root: int) -> str:
    """What a process of a run is for: driver, tasks (idle workers too), actors, or Ray itself."""
    if process.pid == root:
        return "driver"
    title = " ".join(process.cmdline())
    if "MapWorker" in title:
        return "actors"
    return "tasks" if title.startswith("ray::") else "ray"


def processes(root: int | None = None) -> list[psutil.Process]:
    """A process (by default this one) and its descendants; none if it has gone."""
    try:
        first = psutil.Process(root)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def write_corpus(folder: Path, rows: int, data: Path) -> Path:
    """The rows of some Parquet file or files again and again, each copy with other ids, up to so many; returns the
    folder, which gets files of 100,000 rows."""
    base = pq.read_table(data)
    folder.mkdir(parents=True, exist_ok=True)
    copies = -(-ROWS_PER_FILE // base.num_rows)
    for number in range(-(-rows // ROWS_PER_FILE)):
        part = pa.concat_tables([_copy(base, number * copies + copy) for copy in range(copies)])
        part = part.slice(0, min(ROWS_PER_FILE, rows - number * ROWS_PER_FILE))
        pq.write_table(part, folder / f"{number:04d}.parquet", row_group_size=ROWS_PER_GROUP)
    return folder


def _copy(table: pa.Table, number: int) -> pa.Table:
    if ID_COLUMN not in table.column_names:
        return table
    ids = pc.binary_join_element_wise(table.column(ID_COLUMN).cast(pa.string()), str(number), "-")
    at = table.column_names.index(ID_COLUMN)
    return table.set_column(at, pa.field(ID_COLUMN, pa.string()), ids)


def settings(data: Path) -> dict[str, Any]:
    """Settings of a run that follow from the columns of the data."""
    first = next(iter(sorted(data.glob("*.parquet")))) if data.is_dir() else data
    return {"id_column": ID_COLUMN} if ID_COLUMN in pq.read_schema(first).names else {}


def count_tokens(sequences: pa.Table) -> int:
    """Tokens of a shard's sequences."""
    return int(list_lengths(one_array(sequences.column(schema.INPUT_IDS))).sum())


class StandIn:
    """Answers as a model would, without one: random tags, losses and probabilities, drawn once.

    Random on purpose: zeros would be compressed to nothing when they are written.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.drawn: dict[str, np.ndarray] = {}
        self.size = 0

    def answer(self, sequences: pa.Table) -> tuple[pa.Table, int]:
        """The table that a Scorer gives, and its tokens."""
        offsets = offsets_of(list_lengths(one_array(sequences.column(schema.INPUT_IDS))))
        tokens = int(offsets[-1])
        if tokens > self.size:
            self._draw(tokens * 5 // 4)
        for name, values in self.drawn.items():
            sequences = sequences.append_column(name, list_array(values[:tokens], offsets))
        return sequences.append_column(schema.PROBLEM, pa.nulls(sequences.num_rows, pa.string())), tokens

    def _draw(self, size: int) -> None:
        rng = np.random.default_rng(0)
        self.size = size
        self.drawn = {
            schema.PREDICTED_IDS: rng.integers(0, self.classes, size).astype(np.int32),
            schema.LOSS: rng.exponential(1, size).astype(np.float32),
            schema.PREDICTED_PROB: rng.random(size, dtype=np.float32),
            schema.SECOND_IDS: rng.integers(0, self.classes, size).astype(np.int32),
            schema.SECOND_PROB: rng.random(size, dtype=np.float32),
        }


def spread(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """Median, least and most of some runs, and the runs."""
    rounded = [round(value, digits) for value in values]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "runs": rounded}


def machine() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    model = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on the screen; numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    Console().print(table)


def say(text: str) -> None:
    """A line on the screen."""
    Console(highlight=False).print(text, soft_wrap=True)


def save(path: str | None, benchmark: str, figures: dict[str, Any]) -> None:
    """Write the figures of a benchmark as JSON, with the machine they were taken on."""
    if path:
        made = {"benchmark": benchmark, "machine": machine(), **figures}
        Path(path).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
