"""How the words of a corpus are labelled elsewhere: counts by word and label, and a few places of each.

One pass over scores/ in the background, as soon as the review starts. What is kept is bounded by the number of distinct
words and labels, not by the length of the corpus.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.mining.words.load import file_batches, read_tokens
from tokloss_ray.mining.words.words import Words, first_tokens
from tokloss_ray.output.decisions import Row
from tokloss_ray.output.opened import Scores
from tokloss_ray.ragged import one_array

EXAMPLES = 4
"""Places that are kept of each word with each label, the first ones of the corpus."""
_COMPACT_ROWS = 4_000_000


class Usage(NamedTuple):
    """How often a word has a label, and some places: row and word index."""

    label: str
    times: int
    examples: list[tuple[Row, int]]


def usages(words: Words) -> pa.Table:
    """`word`, `label` (code), `count` and a place (`source`, `source_row`, `word_index`).

    Up to `EXAMPLES` rows for each word with each label, in the order of the corpus; the first has the count, the others
    0.
    """
    table = pa.table(
        {
            "word": words.word,
            "label": pa.array(words.label, pa.int32()),
            "count": pa.array(np.ones(len(words), np.int64)),
            "source": words.source.dictionary_encode().take(pa.array(words.sequence)),
            "source_row": pa.array(words.source_row[words.sequence], pa.int64()),
            "word_index": pa.array(words.word_index),
        }
    )
    return merged([table.filter(pc.is_valid(table.column("word")))], len(words.tags))


def merged(parts: Sequence[pa.Table], labels: int) -> pa.Table:
    """Several such tables as one, sorted by word (in no particular order) and label."""
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    codes = one_array(table.column("word")).indices.to_numpy().astype(np.int64)
    key = codes * labels + table.column("label").to_numpy()
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, len(key)))
    number = np.arange(len(key)) - np.repeat(starts, lengths)
    counts = np.zeros(len(key), np.int64)
    if len(key):
        counts[starts] = np.add.reduceat(table.column("count").to_numpy()[order], starts)
    kept = number < EXAMPLES
    table = table.take(pa.array(order[kept]))
    return table.set_column(table.column_names.index("count"), "count", pa.array(counts[kept]))


def labelled_words(scores: Scores) -> Iterator[tuple[Words, float]]:
    """The labelled words of an output, some at a time, with the share of the corpus that has been read before them."""
    total, tokens = sum(file.tokens for file in scores.files), 0
    for batch in file_batches(scores.files):
        for part in read_tokens(batch, scores.tags):
            yield first_tokens(part), tokens / max(total, 1)
        tokens += sum(file.tokens for file in batch)


class Places:
    """The usages of all words, once the pass over the corpus has got so far.

    use: called with the words as they are read. then: called when all were read.

    Attributes:
        done: share of the corpus that has been read, 0 to 1; exact counts once it is 1.
        failed: what ended the pass early, or "".
    """

    def __init__(
        self, scores: Scores, use: Callable[[Words], None] = lambda words: None, then: Callable[[], None] = lambda: None
    ) -> None:
        self.scores, self.use, self.then = scores, use, then
        self.done = 0.0
        self.failed = ""
        self._table: pa.Table | None = None
        self._words = pa.array([], pa.string())
        self._codes = np.zeros(0, np.int32)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tokloss-places", daemon=True)

    def start(self) -> None:
        """Begin in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End it, finished or not."""
        self._stopped.set()

    def wait(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:  # the review goes on without it
            self.failed = str(error)

    def _read(self) -> None:
        parts: list[pa.Table] = []
        rows = 0
        for words, done in labelled_words(self.scores):
            if self._stopped.is_set():
                return
            self.done = done
            self.use(words)
            parts.append(usages(words))
            rows += parts[-1].num_rows
            if rows > _COMPACT_ROWS:
                parts = [merged(parts, len(self.scores.tags))]
                rows = parts[0].num_rows
        if parts:
            table = merged(parts, len(self.scores.tags))
            column = one_array(table.column("word"))
            self._words, self._codes, self._table = column.dictionary, column.indices.to_numpy(), table
        self.then()
        self.done = 1.0

    def of(self, word: str) -> list[Usage] | None:
        """How a word is labelled, the most frequent label first; None before the pass is done."""
        if self.done < 1:
            return None
        if self._table is None or (code := pc.index(self._words, pa.scalar(word, self._words.type)).as_py()) < 0:
            return []
        start, stop = np.searchsorted(self._codes, [code, code + 1])
        found: dict[str, Usage] = {}
        for row in self._table.slice(start, stop - start).to_pylist():
            label = self.scores.tags[row["label"]]
            place = (row["source"], row["source_row"]), row["word_index"]
            found.setdefault(label, Usage(label, row["count"], [])).examples.append(place)
        return sorted(found.values(), key=lambda usage: -usage.times)
