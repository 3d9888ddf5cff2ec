"""From ids to strings: the rows of scores/ and errors/, and the figures of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array, sum_per_row
from tokloss_ray.schema import ERRORS_SCHEMA, IGN, IGNORE_INDEX
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.context import without_context
from tokloss_ray.scoring.stages.encode import payload
from tokloss_ray.scoring.stages.word_level import word_columns

_SCORE_PROBLEMS = {
    "non_finite": "some logits are NaN or infinite",
    "out_of_memory": "it does not fit in memory, or kills the process that scores it",
    "too_short": "the model fails on such short sequences",
}


class Decoded(NamedTuple):
    """What one shard leaves behind: rows of scores/ (with the partition columns), rows of errors/, and figures."""

    scores: pa.Table
    errors: pa.Table
    figures: dict


def decode_shard(job: Job, sources: Sequence[str], sequences: pa.Table, errors: pa.Table) -> Decoded:
    """Decode a scored shard; sequences that could not be scored move to the errors.

    sources: the files of the shard, which the column file_part counts.

    Raises:
        ValueError: a list is not as long as the input it belongs to.
    """
    if job.context is not None:
        sequences = without_context(sequences)
    # A row of which one window cannot be scored is refused as a whole.
    problem = sequences.column(schema.PROBLEM).is_valid().to_numpy()
    scored, unscored = sequences, sequences.slice(0, 0)
    if problem.any():
        row = np.cumsum(one_array(sequences.column(schema.WINDOW)).to_numpy() == 0)
        bad = np.isin(row, row[problem])
        scored, unscored = (sequences.filter(pa.array(which)) for which in (~bad, bad))
    failed = _score_errors(job, sources, unscored)
    scores = _score_rows(job, sources, scored)
    labels = one_array(scored.column(schema.LABEL_IDS)).flatten().to_numpy()
    losses = one_array(scored.column(schema.LOSS)).flatten().to_numpy()
    labelled = labels != IGNORE_INDEX
    counts = np.bincount(labels[labelled], minlength=len(job.tags))
    sums = np.bincount(labels[labelled], weights=losses[labelled].astype(np.float64), minlength=len(job.tags))
    by_reason: dict[str, int] = dict.fromkeys(schema.REASONS, 0)
    for reason in [*errors.column("reason").to_pylist(), *failed.column("reason").to_pylist()]:
        by_reason[reason] += 1
    scored_rows = pc.sum(pc.equal(scored.column(schema.WINDOW), 0)).as_py() or 0
    figures = {
        "rows": scored_rows + failed.num_rows + errors.num_rows,
        "scored_rows": scored_rows,
        "error_rows": failed.num_rows + errors.num_rows,
        "sequences": scored.num_rows,
        "tokens": len(labels),
        "labels": int(labelled.sum()),
        "dropped_words": pc.sum(scored.column(schema.NUM_DROPPED_WORDS)).as_py() or 0,
        "errors": {reason: count for reason, count in by_reason.items() if count},
        "loss_by_tag": {t: (int(c), float(s)) for t, c, s in zip(job.tags, counts, sums, strict=True) if c},
    }
    return Decoded(scores, pa.concat_tables([errors, failed]), figures)


def _score_rows(job: Job, sources: Sequence[str], table: pa.Table) -> pa.Table:
    """The columns of scores/ in their order, then those the user keeps or adds, then the partition columns."""
    ids_column = one_array(table.column(schema.INPUT_IDS))
    lengths = list_lengths(ids_column)
    offsets = offsets_of(lengths)
    for name in (schema.LABEL_IDS, schema.PREDICTED_IDS, schema.LOSS, schema.PREDICTED_PROB, schema.SECOND_PROB):
        if not np.array_equal(list_lengths(one_array(table.column(name))), lengths):
            raise ValueError(f"{name} and input_ids differ in length")
    tags = pa.array([*job.tags, IGN], pa.string())

    def strings(column: str, of: pa.Array) -> pa.ListArray:
        return list_array(named(one_array(table.column(column)).flatten(), of), offsets)

    labels = one_array(table.column(schema.LABEL_IDS)).flatten().to_numpy()
    losses = one_array(table.column(schema.LOSS)).flatten().to_numpy()
    labelled = labels != IGNORE_INDEX
    num_labels = sum_per_row(labelled, offsets)
    # No sequence is empty, so that reduceat sees each row by itself.
    assert (lengths > 0).all()
    starts = offsets[:-1]
    total = np.add.reduceat(np.where(labelled, losses, np.float64(0)), starts) if len(starts) else np.zeros(0)
    most = np.maximum.reduceat(np.where(labelled, losses, -np.inf), starts) if len(starts) else np.zeros(0)
    none = num_labels == 0
    mean = total / np.maximum(num_labels, 1)
    made = {
        schema.SOURCE: pa.array(sources, pa.string()).take(one_array(table.column(schema.FILE_PART))),
        schema.INPUT_TOKENS: strings(schema.INPUT_IDS, job.token_strings),
        schema.LABELS: list_array(named(pa.array(np.where(labelled, labels, len(job.tags))), tags), offsets),
        schema.PREDICTED_LABEL: strings(schema.PREDICTED_IDS, tags),
        schema.SECOND_LABEL: strings(schema.SECOND_IDS, tags),
        schema.NUM_TOKENS: pa.array(lengths, pa.int32()),
        schema.NUM_LABELS: pa.array(num_labels, pa.int32()),
        schema.TOTAL_LOSS: pa.array(total.astype(np.float32)),
        schema.MEAN_LOSS: pa.array(mean.astype(np.float32), mask=none),
        schema.MAX_LOSS: pa.array(most.astype(np.float32), mask=none),
    }
    fields = list(schema.SCORES_FIELDS)
    if job.level is not None:
        made |= word_columns(job.level, job.tags, table)
        fields += schema.WORD_FIELDS
    fields += [schema.ENTROPY_FIELD] if job.keep_entropy else []
    fields += [schema.PROBS_FIELD] if job.keep_probs else []
    fields += [field for field in job.columns.carried if field.name not in job.constants]
    columns = {f.name: made[f.name] if f.name in made else one_array(table.column(f.name)).cast(f.type) for f in fields}
    columns |= {name: pa.repeat(pa.scalar(text, pa.string()), table.num_rows) for name, text in job.constants.items()}
    return pa.table(columns)


def named(ids: pa.Array, names: pa.Array) -> pa.Array:
    """The name of each id, as a dictionary of those that there are, by id: Parquet writes it as it is, where it would
    look each string up. Plain strings where one is null, which a dictionary does not have: of an id that the tokenizer
    does not use, or where there is no id, as for the runner-up of one class."""
    if ids.null_count:
        return names.take(ids)
    at, used = ids.to_numpy(), np.zeros(len(names), dtype=bool)
    used[at] = True
    of_used = names.filter(pa.array(used))
    if of_used.null_count:
        return names.take(ids)
    place = np.cumsum(used, dtype=np.int32) - 1
    return pa.DictionaryArray.from_arrays(pa.array(place[at], pa.int32()), of_used)


def _score_errors(job: Job, sources: Sequence[str], failed: pa.Table) -> pa.Table:
    """One record for each row, whatever number of its windows could not be scored."""
    rows: dict[tuple[int, int], list[dict]] = {}
    for window in failed.to_pylist():
        rows.setdefault((window[schema.FILE_PART], window[schema.SOURCE_ROW]), []).append(window)
    records = []
    for (part, source_row), windows in rows.items():
        reason = next(w[schema.PROBLEM] for w in windows if w[schema.PROBLEM])
        text = _SCORE_PROBLEMS[reason]
        numbers = [str(w[schema.WINDOW]) for w in windows if w[schema.PROBLEM]]
        records.append(
            {
                "example_id": windows[0][schema.EXAMPLE_ID],
                "source": sources[part],
                "source_row": source_row,
                "stage": "score",
                "reason": reason,
                "detail": text + (f" (window {', '.join(numbers)})" if len(windows) > 1 else ""),
                "payload": _payload_of_windows(job, windows),
            }
        )
    return pa.Table.from_pylist(records, ERRORS_SCHEMA)


def _payload_of_windows(job: Job, windows: list[dict]) -> str:
    """The row that the windows were made of. Tags of words without tokens are lost; windows of ids stay windows."""
    if job.columns.words is None:
        one = len(windows) == 1
        ids = windows[0][schema.INPUT_IDS] if one else [window[schema.INPUT_IDS] for window in windows]
        return payload(job, windows[0], ids, windows[0][schema.LABEL_IDS] if one else [])
    words = windows[0][schema.WORDS]
    label_ids = [IGNORE_INDEX] * len(words)
    for window in windows:
        for word, label in zip(window[schema.WORD_IDS], window[schema.LABEL_IDS], strict=True):
            if label != IGNORE_INDEX:
                label_ids[word] = label
    return payload(job, windows[0], words, label_ids)
