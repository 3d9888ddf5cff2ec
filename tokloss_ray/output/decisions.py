"""What people decided about label issues: JSON lines in OUTPUT/review, each line written once and never changed.

A decision says of the words [start, stop) of one row which tags they should have. What a person does at once is one
batch: a single decision, one for each place of a group, or the undoing of an earlier batch. On a file system a reviewer
has one file, REVIEWER.jsonl, to which each batch is appended and synced. An object store cannot append: there each
batch is an object of its own, REVIEWER/NUMBER-SESSION.jsonl.
"""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote

from tokloss_ray.errors import Refused
from tokloss_ray.output.names import MAX_FOLDER_NAME, REVIEW
from tokloss_ray.storage.files import open_location, read_whole
from tokloss_ray.storage.listings import files_below
from tokloss_ray.threads import in_context

KEEP, ACCEPT, EDIT, SKIP, UNDO = "keep", "accept", "edit", "skip", "undo"
ACTIONS = (KEEP, ACCEPT, EDIT, SKIP)

Row = tuple[str, int]
"""Source and source_row."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One line of a reviewer's file.

    Attributes:
        reviewer: who decided.
        batch: number of what was done at once, from 1 upwards for each reviewer.
        of: how many decisions the batch has; it counts if they are all there.
        time: when, ISO 8601 in UTC.
        action: keep, accept, edit, skip or undo.
        seconds: how long the issue had been on the screen.
        undoes: the batch that an undo takes back; all that follows is empty then.
        example_id, source, source_row: the row, as in scores/.
        word_index, suggested_label: the word that was the issue, and the tag suggested for it.
        score: its score in the table of label issues; None if the word was drawn at random.
        start, stop: the words that were decided on, stop exclusive.
        words: these words as they were shown.
        labels: their tags in the data, None where a word has none.
        tags: the tags that they should have; equal to `labels` after keep and skip.
        stratum, draw, population: of a word drawn at random: its stratum, its place in the random order of the stratum
            from 1, and how many words the stratum has. With n of them drawn, each was drawn with probability n /
            population.
        passes: batches with drawn words that would have come up before this issue by rank.
    """

    reviewer: str
    batch: int
    of: int = 1
    time: str
    action: str
    seconds: float | None = None
    undoes: int | None = None
    example_id: str = ""
    source: str = ""
    source_row: int = -1
    word_index: int = -1
    suggested_label: str | None = None
    score: float | None = None
    start: int = 0
    stop: int = 0
    words: tuple[str, ...] = ()
    labels: tuple[str | None, ...] = ()
    tags: tuple[str | None, ...] = ()
    stratum: int | None = None
    draw: int | None = None
    population: int | None = None
    passes: tuple[int, ...] = ()

    @property
    def row(self) -> Row:
        """Which row of scores/ it is about."""
        return self.source, self.source_row

    @property
    def name(self) -> str:
        """How a message names the row."""
        return self.example_id or f"{self.source}:{self.source_row}"

    @property
    def counts(self) -> bool:
        """Whether it says which tags are right: skipping says nothing."""
        return self.action in (KEEP, ACCEPT, EDIT)


def review_folder(output: str) -> str:
    """Where the decisions about an output are."""
    return f"{output.rstrip('/')}/{REVIEW}"


def file_stem(reviewer: str) -> str:
    """The name of a reviewer's file, without `.jsonl`.

    Raises:
        Refused: it is empty or too long for a file.
    """
    stem = quote(reviewer, safe=" @+,").replace(".", "%2E")
    if not reviewer.strip() or len(stem) + len(".jsonl") > MAX_FOLDER_NAME:
        raise Refused(f"--reviewer {reviewer!r}: choose a name of 1 to 80 letters")
    return stem


def to_line(decision: Decision) -> bytes:
    """A decision as a line; fields that are as by default are left out."""
    given = {name: value for name, value in asdict(decision).items() if value != _DEFAULTS.get(name, ...)}
    return json.dumps(given, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


_DEFAULTS = {f.name: f.default for f in fields(Decision)}
_LISTS = ("words", "labels", "tags", "passes")


def from_line(line: bytes) -> Decision:
    """A decision from a line.

    Raises:
        ValueError: it is none.
    """
    content: Any = json.loads(line.decode("utf-8", "surrogatepass"))
    try:
        known = {name: content[name] for name in _DEFAULTS if name in content}
        known |= {name: tuple(known[name]) for name in _LISTS if name in known}
        decision = Decision(**known)
        lengths = {len(decision.words), len(decision.labels), len(decision.tags), decision.stop - decision.start}
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    if decision.action not in (*ACTIONS, UNDO) or len(lengths) > 1:
        raise ValueError("not a decision")
    return decision


def read_decisions(output: str) -> dict[str, list[Decision]]:
    """All that was written for an output, by reviewer in the order in which it was done, undoing included.

    A line without an end, which a process that was killed may leave behind, was never confirmed and does not count.

    Raises:
        Refused: a line is damaged.
    """
    return read_folder(review_folder(output))


def read_folder(folder: str) -> dict[str, list[Decision]]:
    """The same of the folder that holds the files."""
    fs, root = open_location(folder)
    paths = [f.path for f in files_below(fs, root) if f.path.endswith(".jsonl") and "/." not in f.path]
    with ThreadPoolExecutor(16) as pool:
        contents = list(pool.map(in_context(lambda path: read_whole(fs, path)), paths))
    found: dict[str, list[Decision]] = defaultdict(list)
    for path, data in zip(paths, contents, strict=True):
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                decision = from_line(line)
            except ValueError:
                name = posixpath.relpath(path, root)
                raise Refused(f"line {number} of {folder}/{name} is damaged: remove it to go on without it") from None
            found[decision.reviewer].append(decision)
    return dict(found)


def standing(decisions: Iterable[Decision]) -> list[Decision]:
    """What one reviewer's decisions come to: without what was undone."""
    batches: dict[int, list[Decision]] = {}
    for decision in decisions:
        if decision.action == UNDO:
            batches.pop(decision.undoes or 0, None)
        else:
            batches.setdefault(decision.batch, []).append(decision)
    return [decision for batch in batches.values() if len(batch) >= batch[0].of for decision in batch]


def by_word(decisions: Iterable[Decision]) -> dict[Row, dict[int, Decision]]:
    """The latest of one reviewer's standing decisions on each word, by row."""
    rows: dict[Row, dict[int, Decision]] = defaultdict(dict)
    for decision in decisions:
        rows[decision.row].update(dict.fromkeys(range(decision.start, decision.stop), decision))
    return dict(rows)


def tag_of(decision: Decision, word: int) -> str | None:
    """The tag that a decision gives a word of its row."""
    return decision.tags[word - decision.start]
