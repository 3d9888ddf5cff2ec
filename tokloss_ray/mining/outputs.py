"""One or several outputs of `tokloss score`, opened for mining: their tags, columns and committed files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from tokloss_ray.errors import Refused
from tokloss_ray.schema import NULL_PARTITION
from tokloss_ray.scoring.output import read_finished
from tokloss_ray.scoring.records import read_records

OUTPUT = "output"
"""Name of the slice by output, where several are mined as one."""


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
        path: its path in the output.
        size: bytes.
        rows: sequences.
        tokens: all tokens in it; of a shard of several files, its share by rows.
        constants: columns with one value in the whole file: the partition columns, null where the folder says so, and
            the output.
    """

    output: str
    path: str
    size: int
    rows: int
    tokens: int
    constants: dict[str, str | None]


@dataclass(frozen=True)
class Scores:
    """What there is to mine.

    Attributes:
        outputs: as they were given.
        tags: the model's tags by code; of several outputs, in the order of the first.
        files: of committed shards, in the order of outputs, shards and partitions.
        columns: that one can slice and filter by: partition columns, kept and added ones.
        labels: labelled tokens by tag.
        has_probs: all outputs have the probabilities of all tags.
        finished: all outputs are.
    """

    outputs: tuple[str, ...]
    tags: tuple[str, ...]
    files: tuple[ScoreFile, ...]
    columns: tuple[str, ...]
    labels: dict[str, int]
    has_probs: bool
    finished: bool


def open_outputs(outputs: str | Sequence[str], partial: bool = False) -> Scores:
    """Open finished outputs that have the same set of tags; with `partial` also unfinished ones.

    Raises:
        Refused: a folder is not an output, is not finished, was named twice, or has other tags than the first.
    """
    given = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if not given:
        raise Refused("name at least one output of tokloss score")
    twice = [name for name, count in Counter(name.rstrip("/") for name in given).items() if count > 1]
    if twice:
        raise Refused(f"{twice[0]} is named twice: its rows would count double")
    opened = [_open_one(output, partial) for output in given]
    first = opened[0]
    for other in opened[1:]:
        if set(other.tags) != set(first.tags):
            only = ", ".join(sorted(set(other.tags) ^ set(first.tags)))
            raise Refused(
                f"{given[0]} and {other.outputs[0]} have different tags ({only} in one alone): mine them apart"
            )
    labels: Counter[str] = Counter()
    for scores in opened:
        labels.update(scores.labels)
    shared = [name for name in first.columns if all(name in scores.columns for scores in opened)]
    return Scores(
        outputs=given,
        tags=first.tags,
        files=tuple(file for scores in opened for file in scores.files),
        columns=tuple(shared),
        labels={tag: labels[tag] for tag in first.tags},
        has_probs=all(scores.has_probs for scores in opened),
        finished=all(scores.finished for scores in opened),
    )


def _open_one(output: str, partial: bool) -> Scores:
    run, finished = read_finished(output, partial, "take")
    identity = run["identity"]
    columns = dict.fromkeys([*identity["partition_by"], *identity["keep"], *identity["add_column"]])
    columns.setdefault(OUTPUT)
    labels: Counter[str] = Counter()
    files: list[ScoreFile] = []
    for record in read_records(output, run["fingerprint"][:6]).values():
        labels.update({tag: count for tag, (count, _) in record["loss_by_tag"].items()})
        files += _files_of(output, record)
    return Scores(
        (output,), tuple(run["tags"]), tuple(files), tuple(columns), labels, bool(identity["keep_probs"]), finished
    )


def _files_of(output: str, record: dict[str, Any]) -> Iterable[ScoreFile]:
    """The files that a commit record names; others in the folder are nobody's."""
    for file in record["files"]:
        folders = [folder.split("=", 1) for folder in file["path"].split("/")[1:-1]]
        constants: dict[str, str | None] = {OUTPUT: output}
        constants |= {unquote(name): None if value == NULL_PARTITION else unquote(value) for name, value in folders}
        tokens = round(record["tokens"] * file["rows"] / max(record["sequences"], 1))
        yield ScoreFile(output, file["path"], file["bytes"], file["rows"], tokens, constants)


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
            raise Refused(f"--where {text}: write COLUMN=VALUE or COLUMN!=VALUE")
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
            raise Refused(f"{option} {name}: there is no such column; there are {', '.join(columns)}")


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
