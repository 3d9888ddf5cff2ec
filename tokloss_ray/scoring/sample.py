"""The first rows of the input, read and encoded as the job will do it: what to expect of the rest."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray import schema
from tokloss_ray.errors import Refused, before_work
from tokloss_ray.inputs.formats import format_named
from tokloss_ray.inputs.lines import MAX_RECORD
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.inputs.validate import Chunk
from tokloss_ray.ragged import any_per_row, list_lengths, offsets_of, one_array
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.encode import encode_rows
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.tags.warnings import scheme_warnings

SAMPLE_ROWS = 500
PACKED_RATIO = 4
"""How much larger text is than its packed file, about; estimates alone depend on it."""


@dataclass(frozen=True)
class Sample:
    """The first rows, read and encoded as the job will do it; of the files `sources`.

    `size`: how much of what the plan counts as bytes they are; `unlabelled`: rows without any label; `cpu_seconds`:
    processor time that reading and encoding took.
    """

    rows: int
    size: float
    tokens_per_row: float
    reasons: dict[str, int]
    unknown: list[str]
    sources: list[str]
    sequences: pa.Table | None
    unlabelled: int = 0
    cpu_seconds: float = 0.0


def sample_rows(job: Job, units: list[ReadUnit]) -> Sample:
    """Read and encode the first rows of the first unit that has any."""
    tokenizer = RowTokenizer(job.tokenizer_json)
    for unit in units:
        start = time.process_time()
        with before_work():
            chunk = _first_rows(job, unit)
            rows = chunk.rows.num_rows + chunk.errors.num_rows
            if not rows:
                continue
            sequences, errors = encode_rows(job, tokenizer, unit.sources, chunk.rows)
        seconds = time.process_time() - start
        tokens = int(list_lengths(one_array(sequences.column(schema.INPUT_IDS))).sum())
        if schema.OWN in sequences.column_names:  # what is committed is counted without the context
            tokens = int(one_array(sequences.column(schema.OWN)).flatten().true_count)
        reasons: dict[str, int] = {}
        for reason in [*chunk.errors.column("reason").to_pylist(), *errors.column("reason").to_pylist()]:
            reasons[reason] = reasons.get(reason, 0) + 1
        size, per_row = _bytes_read(unit, chunk), tokens / max(1, chunk.rows.num_rows)
        unlabelled = _unlabelled(chunk.rows) if job.columns.labels else 0
        tags = _tags_of(job, chunk.errors)
        return Sample(rows, size, per_row, reasons, tags, unit.sources, sequences, unlabelled, seconds)
    return Sample(0, 0, 0, {}, [], [], None)


def _first_rows(job: Job, unit: ReadUnit) -> Chunk:
    """Some hundred rows of a unit; text may come in smaller chunks, good rows apart from bad ones."""
    chunks: list[Chunk] = []
    for chunk in read_unit(job, unit):
        chunks.append(chunk)
        rows, size = (sum(getattr(t, what) for c in chunks for t in c) for what in ("num_rows", "nbytes"))
        if rows >= SAMPLE_ROWS or size > MAX_RECORD:
            break
    return Chunk(pa.concat_tables(c.rows for c in chunks), pa.concat_tables(c.errors for c in chunks))


def _bytes_read(unit: ReadUnit, chunk: Chunk) -> float:
    """How much of what the plan counts the sample is: the files before its last row, and a share of the last one."""
    good = one_array(chunk.rows.column(schema.FILE_PART)).to_numpy()
    bad = pc.index_in(chunk.errors.column(schema.SOURCE), pa.array(unit.sources, pa.string())).to_numpy()
    at = int(np.concatenate([good, bad]).max())
    part, before = unit.parts[at], sum(part.size for part in unit.parts[:at])
    if part.rows:
        return before + part.size * int((good == at).sum() + (bad == at).sum()) / part.rows
    numbers = one_array(chunk.rows.column(schema.SOURCE_ROW)).to_numpy()[good == at]
    if format_named(part.format).records is None or len(numbers) < 2:
        return before + part.size
    # Rows of text are numbered by their first byte.
    size = (numbers[-1] - numbers[0]) * len(numbers) / (len(numbers) - 1)
    if part.stop < 0:  # the plan knows the size of a packed file, the sample that of its text
        size /= PACKED_RATIO
    return before + float(size)


def _unlabelled(rows: pa.Table) -> int:
    """How many rows have no label at all."""
    labels = one_array(rows.column(schema.LABEL_IDS))
    has = any_per_row(labels.flatten().to_numpy() != schema.IGNORE_INDEX, offsets_of(list_lengths(labels)))
    return int((~has).sum())


def _tags_of(job: Job, errors: pa.Table) -> list[str]:
    """The tags of the rows that have one the model does not know."""
    unknown = errors.filter(pc.equal(errors.column("reason"), "unknown_tag")).column("payload").to_pylist()
    tags = {tag for row in unknown for tag in json.loads(row)[job.columns.labels] if tag is not None}
    return sorted(tags)


def sample_warnings(job: Job, sample: Sample) -> list[str]:
    """What the user should know: rows that cannot be scored, tags in another scheme than most models have.

    Raises:
        Refused: most rows have tags that the model does not know.
    """
    bad = sum(sample.reasons.values())
    unknown = sample.reasons.get("unknown_tag", 0)
    spans = job.columns.spans
    column, option = (job.columns.labels, "--labels-column") if spans is None else (spans.spans, "--spans-column")
    if unknown * 2 > sample.rows and job.data_tags is None:
        mapping = "" if spans is None else "give the model's names with --label-map LABEL=TYPE, or "
        raise Refused(
            f"most rows have tags that the model does not know: column {column} has "
            f"{', '.join(sample.unknown[:20])}; the model has {', '.join(job.tags)}; "
            f"{mapping}choose another {option} or --model"
        )
    if bad * 2 > sample.rows:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(sample.reasons.items()))
        return [f"{bad} of the first {sample.rows} rows cannot be scored ({reasons}): is a column name wrong?"]
    warnings = scheme_warnings(job.tags, sample.sequences)
    if sample.unlabelled:
        several = f"{sample.unlabelled} of the first {sample.rows} rows have"
        warnings.append(f"{several} no label in {column}: they are scored without a loss")
    return warnings
