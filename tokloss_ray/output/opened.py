"""One or several outputs of `tokloss score`, opened for mining: their tags, columns and committed files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from tokloss_ray.errors import Refused
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.records import stream_records
from tokloss_ray.output.run import read_finished
from tokloss_ray.schema import NULL_PARTITION
from tokloss_ray.storage.files import is_local, open_location

OUTPUT = "output"
"""Name of the slice by output, where several are mined as one."""
GENERATION = "generation"
"""Name of the slice by generation of an output to which files were added: 0 for the first files, then 1 and so on."""


class Condition(NamedTuple):
    """`column=value`, or `column!=value` where `equal` is false; the value None stands for null or empty text."""

    column: str
    value: str | None
    equal: bool

    def keeps(self, value: str | None) -> bool:
        """Whether a row with this value stays, as far as this condition goes."""
        return ((value or None) == self.value) == self.equal


@dataclass(frozen=True)
class ScoreFile:
    """One file of a committed shard.

    Attributes:
        output: the output it is of, as it was given.
        folder: the same by a name that is right in every working directory: workers have others.
        path: its path in the output.
        size: bytes.
        rows: sequences.
        tokens: all tokens in it; of a shard of several files, its share by rows.
        constants: columns with one value in the whole file: the partition columns, null where the folder says so, and
            the output, unless the rows have a column of that name.
        checksum: of its content, by the record; "" where the record has none, and neither have the file's pages.
    """

    output: str
    folder: str
    path: str
    size: int
    rows: int
    tokens: int
    constants: dict[str, str | None]
    checksum: str = ""


class Contents(NamedTuple):
    """What tells whether an output still holds what it held: the run's fingerprint, and figures of its records."""

    output: str
    fingerprint: str
    shards: int
    labels: int
    loss: float

    def equals(self, other: Contents) -> bool:
        """Whether both are of the same rows and losses, under whatever name. Losses may differ in their last digits."""
        return self[1:4] == other[1:4] and math.isclose(self.loss, other.loss, rel_tol=1e-5, abs_tol=1e-5)


@dataclass(frozen=True)
class Scores:
    """What there is to mine.

    Attributes:
        outputs: as they were given.
        runs: of each output, what it holds.
        tags: the model's tags by code; of several outputs, in the order of the first.
        files: of committed shards, in the order of outputs, shards and partitions.
        columns: that one can slice and filter by: partition columns, kept and added ones.
        labels: labelled tokens by tag.
        has_output_column: the rows of an output have a column of their own that is called `output`.
        has_probs, has_entropy: all outputs have the probabilities of all tags, or the entropies.
        finished: all outputs are.
    """

    outputs: tuple[str, ...]
    runs: tuple[Contents, ...]
    tags: tuple[str, ...]
    files: tuple[ScoreFile, ...]
    columns: tuple[str, ...]
    labels: dict[str, int]
    has_output_column: bool
    has_probs: bool
    has_entropy: bool
    finished: bool


def open_outputs(outputs: str | Sequence[str], partial: bool = False) -> Scores:
    """Open finished outputs that have the same set of tags; with `partial` also unfinished ones.

    Raises:
        Refused: a folder is not an output, is not finished, was named twice, or has other tags than the first.
    """
    given = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if not given:
        raise Refused("give at least one output of tokloss score")
    twice = [name for name, count in Counter(name.rstrip("/") for name in given).items() if count > 1]
    if twice:
        raise Refused(f"{twice[0]} is given twice: its rows would be counted twice")
    opened = [_open_one(output, partial) for output in given]
    first = opened[0]
    for other in opened[1:]:
        if set(other.tags) != set(first.tags):
            only = ", ".join(sorted(set(other.tags) ^ set(first.tags)))
            raise Refused(
                f"{given[0]} and {other.outputs[0]} have different tags ({only} in only one): mine them separately"
            )
    labels: Counter[str] = Counter()
    for scores in opened:
        labels.update(scores.labels)
    shared = [name for name in first.columns if all(name in scores.columns for scores in opened)]
    return Scores(
        outputs=given,
        runs=tuple(run for scores in opened for run in scores.runs),
        tags=first.tags,
        files=tuple(file for scores in opened for file in scores.files),
        columns=tuple(shared),
        labels={tag: labels[tag] for tag in first.tags},
        has_output_column=any(scores.has_output_column for scores in opened),
        has_probs=all(scores.has_probs for scores in opened),
        has_entropy=all(scores.has_entropy for scores in opened),
        finished=all(scores.finished for scores in opened),
    )


def _open_one(output: str, partial: bool) -> Scores:
    run, finished = read_finished(output, partial, "take")
    identity = run.identity
    columns = dict.fromkeys([*identity["partition_by"], *identity["keep"], *identity["add_column"]])
    tells_generations = bool(run.additions) and GENERATION not in columns
    if tells_generations:
        columns[GENERATION] = None
    labels: Counter[str] = Counter()
    losses: list[float] = []
    shards: dict[str, list[ScoreFile]] = {}
    own = OUTPUT in columns
    for record in stream_records(output, run.short_fingerprint):
        labels.update({tag: count for tag, (count, _) in record.loss_by_tag.items()})
        losses += [loss for _, loss in record.loss_by_tag.values()]
        more = {} if own else {OUTPUT: output}
        if tells_generations:
            more[GENERATION] = str(run.generation(record.unit))
        shards[record.shard] = list(_files_of(output, record, more))
    files = [file for shard in sorted(shards) for file in shards[shard]]
    about = Contents(output, run.fingerprint, len(shards), labels.total(), math.fsum(losses))
    return Scores(
        (output,),
        (about,),
        run.tags,
        tuple(files),
        tuple(columns if own else [*columns, OUTPUT]),
        labels,
        own,
        bool(identity["keep_probs"]),
        bool(identity.get("keep_entropy")),
        finished,
    )


def _files_of(output: str, record: CommitRecord, more: dict[str, str]) -> Iterable[ScoreFile]:
    """The files that a commit record names; others in the folder are nobody's. more: constants of them all."""
    fs, place = open_location(output)
    folder = place if is_local(fs) else output
    for file in record.files:
        folders = [folder.split("=", 1) for folder in file.path.split("/")[1:-1]]
        constants: dict[str, str | None] = {**more}
        constants |= {unquote(name): None if value == NULL_PARTITION else unquote(value) for name, value in folders}
        tokens = round(record.tokens * file.rows / max(record.sequences, 1))
        yield ScoreFile(output, folder, file.path, file.bytes, file.rows, tokens, constants, file.sha256 or "")


def parse_where(where: Sequence[str], columns: Sequence[str]) -> tuple[Condition, ...]:
    """Read `COL=VALUE` and `COL!=VALUE`; nothing after the sign means null or empty.

    Raises:
        Refused: it is neither, or there is no such column.
    """
    conditions = []
    for text in where:
        column, sign, value = text.partition("=")
        equal = not column.endswith("!")
        column = column.removesuffix("!").strip()
        if not sign or not column:
            raise Refused(f"--where {text}: expected COLUMN=VALUE or COLUMN!=VALUE")
        check_columns("--where", [column], columns)
        conditions.append(Condition(column, value or None, equal))
    return tuple(conditions)


def check_columns(option: str, names: Iterable[str], columns: Sequence[str]) -> None:
    """See that columns are among those there are.

    Raises:
        Refused: with the names there are.
    """
    for name in names:
        if name not in columns:
            raise Refused(f"{option} {name}: no such column; available: {', '.join(columns)}")


def keeps(value: str | None, conditions: Iterable[Condition]) -> bool:
    """Whether a value of one column passes the conditions on it: any of the equalities, and no inequality fails."""
    equal = [condition for condition in conditions if condition.equal]
    other = [condition for condition in conditions if not condition.equal]
    return (not equal or any(c.keeps(value) for c in equal)) and all(c.keeps(value) for c in other)


def by_column(conditions: Iterable[Condition]) -> dict[str, list[Condition]]:
    """Conditions by their column."""
    grouped: dict[str, list[Condition]] = {}
    for condition in conditions:
        grouped.setdefault(condition.column, []).append(condition)
    return grouped


def files_where(files: Iterable[ScoreFile], conditions: Iterable[Condition]) -> tuple[ScoreFile, ...]:
    """Files whose partition values pass: the others need not be opened."""
    grouped = by_column(conditions)
    return tuple(
        file
        for file in files
        if all(keeps(file.constants[name], tests) for name, tests in grouped.items() if name in file.constants)
    )
