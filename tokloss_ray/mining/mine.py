"""Mine one or several outputs: read, make every table, write them whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tokloss_ray.errors import Refused, before_work
from tokloss_ray.mining.mined import mining_folder, provenance_of
from tokloss_ray.mining.passes import (
    LargePartials,
    column_names,
    combine_in_order,
    count_batch,
    final_tables,
    mine_batch,
)
from tokloss_ray.mining.ranks.label_scores import DEFAULT, RANKS, check_rank
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables.table import Partials, Tables
from tokloss_ray.mining.words.load import file_batches
from tokloss_ray.mining.words.occurrences import add_counts, repeated
from tokloss_ray.mining.write import check_folder, write_tables
from tokloss_ray.output.opened import OUTPUT, ScoreFile, Scores, check_columns, files_where, open_outputs, parse_where
from tokloss_ray.tags.schemes import read_tag_set
from tokloss_ray.threads import map_in_threads

Progress = Callable[[int, int], None]

TABLE = "label_issues"
RARE = b"tokloss_rare_words"
"""Metadata of that table where not all words were counted: labels of the most frequent word that was left out."""

Over = Callable[[Sequence[list[ScoreFile]], Callable[[list[ScoreFile], Any], Any], Any], Iterator[Any]]
"""Batches of files, what to do with each, and what all of them need to know -> the results in order."""


def mine(
    outputs: str | Sequence[str],
    *,
    by: Sequence[str] = (),
    where: Sequence[str] = (),
    min_count: int = 1,
    limit: int = 10_000,
    scheme: str | None = None,
    rank: str = DEFAULT,
    partial: bool = False,
    write: bool = True,
    to: str | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> Tables:
    """Make the mining tables of finished outputs; docs/mining.md describes their columns.

    Args:
        outputs: output folder or address, or several, which are mined together.
        by: columns to slice every table by.
        where: use only rows with `COLUMN=VALUE` or `COLUMN!=VALUE`.
        min_count: leave tokens and words rarer than this out of their tables.
        limit: maximum rows of the ranked tables, per slice.
        scheme: tag scheme such as "IOB1", if the tag names do not tell.
        rank: rank for label issues; the prior, and the other places of a word, are those of all rows of the
            outputs, whatever is sliced or filtered.
        partial: accept unfinished runs and use what is committed.
        write: also write the tables as Parquet.
        to: folder to write to, by default `mining/` of the first output; tables already there are replaced.
        address: Ray cluster to use; by default the one this process has joined, otherwise threads of this process.
        progress: called with the tokens done and the tokens in all.

    Returns:
        The tables by name. Losses are in nats; sums and means over them are float64.

    Raises:
        Refused: an argument is wrong; an output is not one of `score`, is not finished, or has other tags; `to` holds
            other data.
        JobFailed: a file cannot be read, or a table cannot be written.

    Example:
        >>> import tokloss_ray
        >>> tables = tokloss_ray.mine("tokloss-demo", write=False)
        >>> tables["tags"].select(["tag", "count"]).slice(0, 2).to_pylist()
        [{'tag': 'I-LOC', 'count': 2284}, {'tag': 'B-ORG', 'count': 4281}]
    """
    folder = mining_folder(outputs if isinstance(outputs, str) else outputs[0]) if outputs else ""
    with before_work():
        scores, settings, files = _plan(outputs, by, where, min_count, limit, scheme, rank, partial)
        if write and to is not None:
            check_folder(to, folder)
    batches = file_batches(files)
    done, in_all = 0, sum(file.tokens for file in files)

    def counted(parts: Iterator[Partials | None]) -> Iterator[Partials | None]:
        nonlocal done
        for batch, part in zip(batches, parts, strict=True):
            done += sum(file.tokens for file in batch)
            if progress is not None:
                progress(done, in_all)
            yield part

    with LargePartials(settings) as large:
        with _workers(address) as over:
            if progress is not None:
                progress(0, in_all)
            if RANKS[rank].reads_places:
                every = file_batches(scores.files)
                counts = repeated(add_counts(over(every, lambda batch, _: count_batch(batch, settings), None)))
            else:
                counts = None
            # The counts may be large: on a cluster they go to each node once, beside the function.
            parts = over(batches, lambda batch, counts: mine_batch(batch, replace(settings, counts=counts)), counts)
            whole = combine_in_order(counted(parts), settings, large)
        if whole is None:
            raise Refused(f"--where {' '.join(where)} leaves no words" if where else "no token has a label")
        tables = final_tables(whole, settings, large)
    if counts is not None and counts.dropped:
        tables[TABLE] = tables[TABLE].replace_schema_metadata({RARE: str(counts.dropped)})
    if write:
        options = {
            "by": list(by), "where": list(where), "min_count": min_count, "limit": limit, "scheme": scheme,
            "rank": rank, "partial": partial,
        }  # fmt: skip
        write_tables(to or folder, tables, provenance_of(scores, options))
    return tables


def rare_words_hint(tables: Tables) -> str | None:
    """What to know where a corpus has more different words than were counted; None where it has not."""
    dropped = (tables[TABLE].schema.metadata or {}).get(RARE)
    if dropped is None:
        return None
    return (
        f"the outputs have too many different words to count each: for those labelled {int(dropped):,} times or less, "
        "label issues may lack the evidence of other places"
    )


def _plan(
    outputs: str | Sequence[str],
    by: Sequence[str],
    where: Sequence[str],
    min_count: int,
    limit: int,
    scheme: str | None,
    rank: str,
    partial: bool,
) -> tuple[Scores, MiningSettings, tuple[ScoreFile, ...]]:
    for name, value in (("--limit", limit), ("--min-count", min_count)):
        if value < 1:
            raise Refused(f"{name} {value}: must be at least 1")
    scores = open_outputs(outputs, partial)
    check_columns("--by", by, scores.columns)
    read_tag_set(scores.tags, scheme)  # refuses a scheme that is not theirs
    check_rank(rank, scores.has_probs)
    _check_slice_names(by, scores, rank, scheme)
    if len(set(by)) < len(by):
        raise Refused("--by: duplicate column")
    conditions = parse_where(where, scores.columns)
    files = files_where(scores.files, conditions)
    if not files:
        reason = f"--where {' '.join(where)} leaves no files" if scores.files else "there are no scored rows"
        raise Refused(f"nothing to mine in {', '.join(scores.outputs)}: {reason}")
    settings = MiningSettings(
        tags=scores.tags,
        labels=scores.labels,
        by=tuple(by),
        where=conditions,
        limit=limit,
        min_count=min_count,
        scheme=scheme,
        rank=rank,
        probs=scores.has_probs and RANKS[rank].reads_probs,
        entropy=scores.has_entropy,
    )
    return scores, settings, files


def _check_slice_names(by: Sequence[str], scores: Scores, rank: str, scheme: str | None) -> None:
    """See that no column to slice by has the name of a column of a table.

    Raises:
        Refused: one has.
    """
    if not by:
        return
    there = column_names(MiningSettings(tags=scores.tags, labels={}, rank=rank, scheme=scheme, probs=scores.has_probs))
    if taken := [name for name in by if name in there and (name != OUTPUT or scores.has_output_column)]:
        raise Refused(
            f"--by {taken[0]}: the tables already have a column with this name; score with another name for it"
        )


@contextmanager
def _workers(address: str | None) -> Iterator[Over]:
    """What works on all batches, in threads or on a cluster, and gives the results in order."""
    if _on_cluster(address):
        from tokloss_ray.mining.on_ray import on_ray

        with on_ray(address) as over:
            yield over
    else:
        yield lambda batches, work, shared: map_in_threads(lambda batch: work(batch, shared), batches)


def _on_cluster(address: str | None) -> bool:
    """Whether Ray does the work: an address is given, or this process has joined a cluster already."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        return address != "local"
    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized())
