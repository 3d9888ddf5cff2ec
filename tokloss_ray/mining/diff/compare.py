"""`tokloss diff`: the pass over two outputs, and the tables it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tokloss_ray.errors import Refused
from tokloss_ray.mining.diff.bootstrap import RESAMPLES
from tokloss_ray.mining.diff.compared import ComparedOutput
from tokloss_ray.mining.diff.counts import Pair, Partial, align_tags, diff_combine, diff_partial
from tokloss_ray.mining.diff.large_words import WORDS, LargeWords, with_slice
from tokloss_ray.mining.diff.matching import Matched, matching_words
from tokloss_ray.mining.diff.tables import TABLES, diff_tables
from tokloss_ray.mining.mined import mining_folder
from tokloss_ray.mining.tables.grouping import slices
from tokloss_ray.mining.words.load import BATCH_TOKENS
from tokloss_ray.mining.words.words import take_sequences
from tokloss_ray.output.opened import OUTPUT, Scores, check_columns, open_outputs, parse_where
from tokloss_ray.output.run import read_finished
from tokloss_ray.tags.schemes import TagSet

_FAN = 8  # partials that are combined at once: each has few distinct words, all together have many


@dataclass(frozen=True)
class Diff:
    """The result of `diff`.

    Attributes:
        tables: name -> table; docs/diff.md describes the columns.
        matched: how the rows and words of the two outputs matched.
    """

    tables: dict[str, pa.Table]
    matched: Matched


def diff(
    a: str,
    b: str,
    *,
    by: Sequence[str] = (),
    where: Sequence[str] = (),
    common: bool = False,
    scheme: str | None = None,
    limit: int = 10_000,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Diff:
    """Compare two finished outputs of the same rows, word by word.

    Args:
        a, b: output folders or addresses; tokenizers, partitions and shards may differ.
        by: columns of A to slice by.
        where: use only rows with `COLUMN=VALUE` or `COLUMN!=VALUE`, columns that both outputs have.
        common: leave out rows that only one output has, instead of refusing them.
        scheme: tag scheme such as "IOB1", if the tag names do not tell.
        limit: maximum rows of `regressions` and `sequences`.
        resamples: number of bootstrap resamples.
        level: confidence level of the intervals, between 0 and 1.
        seed: bootstrap seed.
        batch_tokens: about how many tokens to compare at a time; bounds memory and does not change the results.

    Returns:
        The tables by name, and how the rows matched. Losses are float64, in nats.

    Raises:
        Refused: the two outputs do not have the same rows, words or labels, or an argument is wrong.
        JobFailed: a file is missing or damaged.

    Example:
        >>> import tokloss_ray
        >>> found = tokloss_ray.diff("tokloss-demo", "tokloss-demo", resamples=100)
        >>> found.matched.words, found.tables["outcomes"]["words"].to_pylist()[1]  # fixed by B
        (97805, 0)
    """
    ours, theirs = open_outputs(a), open_outputs(b)
    check_columns("--by", by, [name for name in ours.columns if name != OUTPUT])
    shared = [name for name in ours.columns if name in theirs.columns and name != OUTPUT]
    conditions = parse_where(where, shared or ["none in both outputs"])
    compared = ComparedOutput(ours, tuple(by), conditions), ComparedOutput(theirs, (), conditions)
    matched = Matched()
    partials: dict[tuple[str | None, ...], list[Partial]] = {}
    tag_set: TagSet | None = None
    with LargeWords() as large:
        for words, others in matching_words(*compared, matched, batch_tokens):
            if matched.label_conflicts or matched.word_conflicts:
                continue  # all that is left to do is to count
            pair = align_tags(words, others, scheme)
            tag_set = pair.tag_set
            for key, part in _sliced(pair):
                partials.setdefault(key, []).append(diff_partial(part, limit))
            large.take_out(partials)  # before parts are combined: from then on none of them has any
            for parts in partials.values():
                if len(parts) == _FAN:
                    parts[:] = [diff_combine(parts, limit)]
        _check_same(ours, theirs, matched, common)
        tables = {
            key: diff_tables(diff_combine(partials[key], limit), tag_set, resamples, level, seed)
            for key in sorted(partials, key=_nulls_last)
        }
        result = _with_slices(tables, tuple(by))
        if large.spill is not None:
            result[WORDS] = large.table(by)
    return Diff({name: result[name] for name in TABLES}, matched)


def _nulls_last(key: tuple[str | None, ...]) -> list[tuple[bool, str]]:
    return [(value is None, value or "") for value in key]


def _sliced(pair: Pair) -> Iterator[tuple[tuple[str | None, ...], Pair]]:
    """The rows of each slice."""
    if not pair.a.by:
        yield (), pair
        return
    codes, values = slices(pair.a)
    for code in range(len(values[0])):
        at = np.flatnonzero(codes == code)
        yield (
            tuple(value[code].as_py() for value in values),
            Pair(take_sequences(pair.a, at), take_sequences(pair.b, at), pair.tag_set),
        )


def _with_slices(tables: dict[tuple[str | None, ...], dict[str, pa.Table]], by: tuple[str, ...]) -> dict[str, pa.Table]:
    result: dict[str, pa.Table] = {}
    for key, of_slice in tables.items():
        for name, table in of_slice.items():
            table = with_slice(table, by, key)
            result[name] = pa.concat_tables([result[name], table]) if name in result else table
    return result


def _check_same(a: Scores, b: Scores, matched: Matched, common: bool) -> None:
    names = f"{a.outputs[0]} and {b.outputs[0]}"
    if matched.word_conflicts:
        raise Refused(
            f"{names} do not have the same text: {matched.word_conflicts:,} of {matched.words:,} words differ "
            f"({matched.example})"
        )
    if matched.label_conflicts:
        raise Refused(
            f"{names} were scored against different labels: {matched.label_conflicts:,} of {matched.words:,} words "
            f"differ ({matched.example}); score both on the same labels"
        )
    if not matched.rows:
        raise Refused(f"{names} have no rows in common: diff compares two models on the same input")
    if (matched.only_a or matched.only_b) and not common:
        raise Refused(
            f"{names} do not have the same rows: {matched.only_a:,} are only in the first, {matched.only_b:,} only in "
            f"the second (such as {matched.example_only}); add --common to compare the {matched.rows:,} rows in both"
        )


def diff_folder(a: str, b: str) -> str:
    """Where the tables go unless a folder is named: in B's mining folder, by the fingerprint of A's run.

    Raises:
        Refused: A is no output.
    """
    run, _ = read_finished(a, True, "compare")
    return f"{mining_folder(b)}/diff-{run.short_fingerprint}"
