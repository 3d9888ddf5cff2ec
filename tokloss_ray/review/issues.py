"""The table of label issues, page by page: some rows at a time for the screen, a small index for filters and groups."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray.errors import Refused, TokLossError
from tokloss_ray.mining.mined import mining_folder, name_in, read_provenance
from tokloss_ray.output.opened import OUTPUT, Contents
from tokloss_ray.output.score_files import cause_of
from tokloss_ray.ragged import one_array
from tokloss_ray.storage.failures import is_local
from tokloss_ray.storage.files import listed, open_location, open_random, read_whole
from tokloss_ray.threads import in_background

TABLE = "label_issues"
WHY = "why"
_COLUMNS = (
    "example_id", "source", "source_row", "word_index", "word", "label", "predicted", "suggested_label", "score",
    "loss",
)  # fmt: skip
_INDEXED = ("word", "label", "suggested_label")
_GROUPS_KEPT = 4
_SMALL = 32 << 20
"""A table up to this size is fetched from object storage at once; of a larger one, what is looked at."""


class Issue(NamedTuple):
    """A row of the table; `why` is "" where the table does not say."""

    example_id: str
    source: str
    source_row: int
    word_index: int
    word: str | None
    label: str
    predicted: str
    suggested_label: str
    score: float
    loss: float
    why: str = ""


@dataclass(frozen=True)
class Filter:
    """Which issues to show; None and empty: all.

    Attributes:
        label, suggested: the tag in the data, the tag that is suggested.
        word: exactly this word.
        min_score, max_score: bounds, both inclusive.
        slices: values of the columns that the table is sliced by.
    """

    label: str | None = None
    suggested: str | None = None
    word: str | None = None
    min_score: float | None = None
    max_score: float | None = None
    slices: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether it lets everything through."""
        return self == Filter()

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal filters, and hashable."""
        slices = tuple(sorted(self.slices.items()))
        return (self.label, self.suggested, self.word, self.min_score, self.max_score, slices)


class Index(NamedTuple):
    """Of every row of the table: codes of its strings, [N] int32 each, with the strings; and its score, [N] float64."""

    codes: dict[str, np.ndarray]
    strings: dict[str, pa.Array]
    score: np.ndarray
    order: np.ndarray | None
    """Rows by score, where the table is not in that order; only those of this output. None: as they stand, all."""


class IssueTable:
    """The label issues of one output, the most suspicious first; may be used by several threads.

    Attributes:
        by: columns that the table is sliced by.
        rows: in the table.
        scheme: tag scheme it was mined with, if it was given.
        rank: what it is ranked by.

    Raises:
        Refused: there is no table, it is damaged, or it is not about the output as it is now.
    """

    def __init__(self, output: str, run: Contents) -> None:
        path = f"{mining_folder(output)}/{TABLE}.parquet"
        self._open = _opener(output, path)
        self._parquet = self._open()
        schema = self._parquet.schema_arrow
        provenance = read_provenance(schema.empty_table())
        called = name_in(provenance, run)
        if called is None or OUTPUT not in schema.names:
            raise Refused(f"{path} does not match {output} as it is now: run tokloss mine {output} again")
        self.path, self.rows = path, self._parquet.metadata.num_rows
        self.by: tuple[str, ...] = tuple(provenance["by"])
        self.scheme: str | None = provenance.get("scheme")
        self.rank: str = provenance.get("rank", "")
        self._own = called if len(provenance["runs"]) > 1 else None
        self._names = [*_COLUMNS, *([WHY] if WHY in schema.names else [])]
        groups = [self._parquet.metadata.row_group(i).num_rows for i in range(self._parquet.num_row_groups)]
        self._ends = np.cumsum(groups)
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        self._built = in_background(self._build)
        self._found: tuple[Any, np.ndarray] | None = None
        self._ranked: tuple[int, np.ndarray | None] = (0, None)

    @property
    def index(self) -> Index:
        """What filters, groups and learning use; waits until it is made."""
        return self._built.result()

    @property
    def ranking(self) -> int:
        """How often the issues were ranked again."""
        return self._ranked[0]

    def reorder(self, value: np.ndarray) -> None:
        """Show issues by another score from now on: [rows], higher is more suspicious; ties as they stood."""
        rows = np.arange(self.rows) if self.index.order is None else self.index.order
        self._ranked = (self.ranking + 1, rows[np.argsort(-value[rows], kind="stable")])

    def walk(self, chosen: Filter, start: int, count: int, wanted: Callable[[Issue], bool]) -> tuple[list[Issue], int]:
        """The next issues that the filter lets through and that are wanted, from place `start` on, and the place to go
        on from. A place is a position among the issues that the filter lets through."""
        found: list[Issue] = []
        total = self.count(chosen)
        step = 64
        while len(found) < count and start < total:
            batch = self.take(self._rows_at(chosen, start, min(start + step, total)))
            for issue in batch:
                start += 1
                if wanted(issue):
                    found.append(issue)
                    if len(found) == count:
                        break
            step = min(step * 4, 4096)
        return found, start

    def count(self, chosen: Filter) -> int:
        """How many issues a filter lets through."""
        if self._is_plain(chosen):
            return self.rows
        return len(self._matching(chosen))

    def group(self, word: str | None, label: str, suggested: str) -> np.ndarray:
        """Rows of the issues of one word with one label and one suggestion, the most suspicious first."""
        return self._matching(Filter(label=label, suggested=suggested, word=word)) if word is not None else np.zeros(0)

    def pairs(self) -> list[tuple[str, str, int]]:
        """Label, suggestion and number of the issues of each pair of tags, the most frequent first."""
        index = self.index
        codes = [index.codes[name].astype(np.int64) for name in ("label", "suggested_label")]
        if index.order is not None:
            codes = [values[index.order] for values in codes]
        names = [index.strings[name].to_pylist() for name in ("label", "suggested_label")]
        counts = np.bincount(codes[0] * len(names[1]) + codes[1], minlength=1)
        pairs = [(names[0][k // len(names[1])], names[1][k % len(names[1])], int(n)) for k, n in enumerate(counts) if n]
        return sorted(pairs, key=lambda pair: -pair[2])

    def slice_values(self) -> dict[str, list[str]]:
        """The values of each column that the table is sliced by."""
        return {name: sorted(filter(None, self.index.strings[name].to_pylist())) for name in self.by}

    def _is_plain(self, chosen: Filter) -> bool:
        """Whether the rows are to be shown as they stand, for which no index is needed."""
        return chosen.is_empty and not self.by and self._own is None and self._ranked[1] is None

    def _rows_at(self, chosen: Filter, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop) if self._is_plain(chosen) else self._matching(chosen)[start:stop]

    def _matching(self, chosen: Filter) -> np.ndarray:
        """Rows that a filter lets through, the most suspicious first."""
        index, (ranking, order), found = self.index, self._ranked, self._found
        if order is None:
            order = index.order
        if found is not None and found[0] == (chosen.key, ranking):
            return found[1]
        keep = np.ones(self.rows, dtype=bool)
        equal = {"label": chosen.label, "suggested_label": chosen.suggested, "word": chosen.word, **chosen.slices}
        for name, value in equal.items():
            if value is not None:
                if name not in index.codes:
                    raise Refused(f"the table is not sliced by {name}: mine with --by {name}")
                strings = index.strings[name]
                keep &= index.codes[name] == pc.index(strings, pa.scalar(value or None, strings.type)).as_py()
        if chosen.min_score is not None:
            keep &= index.score >= chosen.min_score
        if chosen.max_score is not None:
            keep &= index.score <= chosen.max_score
        rows = np.flatnonzero(keep) if order is None else order[keep[order]]
        self._found = ((chosen.key, ranking), rows)
        return rows

    def take(self, rows: np.ndarray) -> list[Issue]:
        """The issues in some rows, in this order."""
        found: dict[int, Issue] = {}
        group = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(group).tolist():
            here = rows[group == number]
            begin = int(self._ends[number - 1]) if number else 0
            part = self._group(number).take(pa.array(here - begin))
            columns = [part.column(name).to_pylist() for name in self._names]
            found.update(zip(here.tolist(), map(_issue, zip(*columns, strict=True)), strict=True))
        return [found[row] for row in rows.tolist()]

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            if number not in self._groups:
                with _damage(self.path):
                    table = self._parquet.read_row_group(number, self._names, use_threads=False)
                self._groups[number] = table
                while len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(number)
            return self._groups[number]

    def _build(self) -> Index:
        names = [*_INDEXED, *self.by, *([OUTPUT] if self._own is not None else [])]
        codes: dict[str, list[pa.Array]] = {name: [] for name in names}
        scores = []
        with _damage(self.path), self._open(read_dictionary=names, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(1 << 16, columns=[*names, "score"], use_threads=False):
                for name in names:
                    codes[name].append(batch.column(name).dictionary_encode())
                scores.append(batch.column("score").to_numpy(zero_copy_only=False))
        column = {name: _encoded(parts) for name, parts in codes.items()}
        score = np.concatenate([np.zeros(0), *scores])
        order = None
        if self.by or self._own is not None:
            order = np.argsort(-score, kind="stable")
            if self._own is not None:
                ours = pc.index(column[OUTPUT][1], pa.scalar(self._own)).as_py()
                order = order[column[OUTPUT][0][order] == ours]
        return Index({n: c[0] for n, c in column.items()}, {n: c[1] for n, c in column.items()}, score, order)


def _issue(values: tuple[Any, ...]) -> Issue:
    return Issue(*values[: len(_COLUMNS)], *(value or "" for value in values[len(_COLUMNS) :]))


def _encoded(parts: Sequence[pa.Array]) -> tuple[np.ndarray, pa.Array]:
    """[N] int32 codes and their strings; null is a string of its own at the end."""
    column = one_array(pa.chunked_array(parts, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries())
    strings = pa.concat_arrays([column.dictionary, pa.array([None], pa.string())])
    codes = pc.fill_null(column.indices, len(strings) - 1).to_numpy(zero_copy_only=False)
    return codes, strings


def _opener(output: str, path: str) -> Callable[..., pq.ParquetFile]:
    fs, place = open_location(path)
    try:
        size = listed(fs, place).size
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"{output} has no table of label issues: run tokloss mine {output}") from None
    whole = None if is_local(fs) or size > _SMALL else pa.py_buffer(read_whole(fs, place))

    def opened(**options: Any) -> pq.ParquetFile:
        source = place if is_local(fs) else pa.BufferReader(whole) if whole else open_random(fs, place, size)
        with _damage(path):
            return pq.ParquetFile(source, **options)

    return opened


@contextmanager
def _damage(path: str) -> Iterator[None]:
    """What pyarrow says of a damaged table, as one sentence."""
    try:
        yield
    except TokLossError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise Refused(f"cannot read {path}: {cause_of(error)}; run tokloss mine again") from error
