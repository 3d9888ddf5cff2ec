"""The preflight: everything that can be found out before work begins, and from it the job and its read units."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from tokloss_ray import schema
from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused, before_work
from tokloss_ray.inputs.columns import ColumnOptions, find_columns, find_tags
from tokloss_ray.inputs.lines import MAX_RECORD
from tokloss_ray.inputs.listing import Inspected, inspect_files, list_inputs
from tokloss_ray.inputs.read import Chunk, read_unit
from tokloss_ray.inputs.unit import Columns, ReadUnit
from tokloss_ray.inputs.units import make_units
from tokloss_ray.model.files import ModelInfo, resolve_model
from tokloss_ray.model.store import ModelFolder, find_model
from tokloss_ray.output.run import fingerprint
from tokloss_ray.ragged import list_lengths, one_array
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.encode import encode_rows
from tokloss_ray.storage.files import is_local, kind_of, open_location
from tokloss_ray.tags.warnings import scheme_warnings

CPU_SHARD_TOKENS, GPU_SHARD_TOKENS = 1 << 16, 1 << 20
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1 << 10, 1 << 15
MIN_BATCHES = 32
FORMAT = 3
"""Part of every fingerprint: raise it when the cuts of units and shards, or the files' content, change."""
DEFAULT_OVERLAP = 64
SAMPLE_ROWS = 500
PACKED_RATIO = 4
"""How much larger text is than its packed file, about; estimates alone depend on it."""


@dataclass(frozen=True)
class Given:
    """What listings and metadata tell: the input files, which of their columns count, and where the model is."""

    inspected: list[Inspected]
    columns: Columns
    model: ModelFolder
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preflight:
    """What was found out of input and model, before anything depends on the machine that runs the job."""

    config: ScoreConfig
    inspected: list[Inspected]
    model: ModelInfo
    columns: Columns
    data_tags: tuple[str, ...] | None
    overlap: int
    warnings: list[str]


@dataclass(frozen=True)
class Plan:
    """The job, its units, and what is expected of them (`rows` is None where metadata do not tell)."""

    job: Job
    units: list[ReadUnit]
    rows: int | None
    estimated_tokens: int
    estimated_rows: int
    warnings: list[str] = field(default_factory=list)

    @property
    def estimated_shards(self) -> int:
        """About how many shards there will be."""
        share = self.estimated_tokens / max(1, sum(u.size for u in self.units))
        return sum(max(1, -(-int(u.size * share) // self.job.shard_tokens)) for u in self.units)


def look(config: ScoreConfig) -> Given:
    """The part of the preflight that takes no time: is everything there?

    Raises:
        Refused: with the first thing that does not fit.
    """
    warnings: list[str] = []
    inspected = inspect_files(list_inputs(config.input, config.split, warnings))
    _outside_of_input(config, inspected)
    model = find_model(config.model, config.revision, "model")
    return Given(inspected, find_columns(_column_options(config), inspected), model, tuple(warnings))


def _column_options(config: ScoreConfig) -> ColumnOptions:
    names = ("tokens_column", "labels_column", "id_column", "keep", "partition_by", "add_column")
    return ColumnOptions(**{name: getattr(config, name) for name in names})


def preflight(config: ScoreConfig, given: Given | None = None) -> Preflight:
    """Check input, columns, model, tokenizer and tag names; `given` is what `look` has found.

    Raises:
        Refused: with the first thing that does not fit.
    """
    given = given or look(config)
    model = resolve_model(config, given.model)
    warnings = [*given.warnings, *(model.warnings if given.columns.words else ())]
    data_tags = find_tags(config.tags, given.inspected, given.columns, model.tags, warnings)
    overlap = _overlap(config, model)
    return Preflight(config, given.inspected, model, given.columns, data_tags, overlap, warnings)


def make_plan(found: Preflight, gpu: bool, bfloat16: bool, recorded: dict[str, Any] | None = None) -> Plan:
    """The job and its units. `auto` settings are taken from `recorded`, the identity of an earlier attempt, if any."""
    config, model = found.config, found.model
    recorded = recorded or {}
    dtype: str = config.dtype
    if dtype == "auto":
        dtype = recorded.get("dtype") or ("bfloat16" if gpu and bfloat16 else "float32")
    batch_tokens = config.batch_tokens or (GPU_BATCH_TOKENS if gpu else CPU_BATCH_TOKENS)
    shard_tokens = config.shard_tokens or recorded.get("shard_tokens")
    if not shard_tokens:
        shard_tokens = max(GPU_SHARD_TOKENS if gpu else CPU_SHARD_TOKENS, MIN_BATCHES * batch_tokens)
    identity = {
        "format": FORMAT,
        "input": [[i.file.source, i.file.listed.size, i.file.listed.version] for i in found.inspected],
        "split": config.split,
        "columns": [found.columns.words, found.columns.labels, found.columns.mask, found.columns.example_id],
        "tags": found.data_tags,
        "model": model.content,
        "model_tags": model.tags,
        "tokenizer": model.tokenizer_content,
        "dtype": dtype,
        "max_length": model.max_length,
        "overflow": config.overflow,
        "overlap": found.overlap,
        "label_all_subtokens": config.label_all_subtokens,
        "keep": config.keep,
        "partition_by": config.partition_by,
        "add_column": config.add_column,
        "keep_probs": config.keep_probs,
        "shard_tokens": shard_tokens,
        "limit": config.limit,
    }
    identity = json.loads(json.dumps(identity))
    fs, output = open_location(config.output)
    job = Job(
        output=output if is_local(fs) else config.output.rstrip("/"),
        fingerprint=fingerprint(identity)[:6],
        columns=found.columns,
        constants=config.add_column,
        partition_by=config.partition_by,
        tags=model.tags,
        data_tags=found.data_tags,
        tokenizer_json=model.tokenizer_json,
        tokenizers_version=version("tokenizers"),
        token_strings=_padded(model.token_strings, model.embedding_rows),
        embedding_rows=model.embedding_rows,
        pad_token_id=model.pad_token_id,
        max_length=model.max_length,
        overflow=config.overflow,
        overlap=found.overlap,
        label_all_subtokens=config.label_all_subtokens,
        shard_tokens=shard_tokens,
        model=model.folder,
        dtype=dtype,
        batch_tokens=batch_tokens,
        keep_probs=config.keep_probs,
        storage_tries=config.storage_tries,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        identity=identity,
    )
    units = make_units(found.inspected, shard_tokens, config.limit)
    known = [unit.rows for unit in units]
    rows = None if None in known else sum(n or 0 for n in known)
    sample = sample_rows(job, units)
    warnings = [*found.warnings, *_sample_warnings(job, sample)]
    size = sum(unit.size for unit in units)
    per_byte = sample.rows / sample.size if sample.size else 0
    estimated_rows = rows if rows is not None else round(size * per_byte)
    return Plan(job, units, rows, round(estimated_rows * sample.tokens_per_row), estimated_rows, warnings)


@dataclass(frozen=True)
class Sample:
    """The first rows, read and encoded as the job will do it."""

    rows: int
    size: float
    tokens_per_row: float
    reasons: dict[str, int]
    unknown: list[str]
    sequences: pa.Table | None


def sample_rows(job: Job, units: list[ReadUnit]) -> Sample:
    """Read and encode the first rows of the first unit that has any."""
    tokenizer = Tokenizer.from_str(job.tokenizer_json)
    for unit in units:
        with before_work():
            chunk = _first_rows(job, unit)
            rows = chunk.rows.num_rows + chunk.errors.num_rows
            if not rows:
                continue
            sequences, errors = encode_rows(job, tokenizer, unit.source, chunk.rows)
        tokens = int(list_lengths(one_array(sequences.column(schema.INPUT_IDS))).sum())
        reasons: dict[str, int] = {}
        for reason in [*chunk.errors.column("reason").to_pylist(), *errors.column("reason").to_pylist()]:
            reasons[reason] = reasons.get(reason, 0) + 1
        share = rows / unit.rows if unit.rows else 0
        size = unit.size * share if unit.rows else _bytes_read(chunk.rows, unit)
        if unit.stop < 0:  # the plan knows the size of a packed file, the sample that of its text
            size /= PACKED_RATIO
        return Sample(rows, size, tokens / max(1, chunk.rows.num_rows), reasons, _tags_of(job, chunk.errors), sequences)
    return Sample(0, 0, 0, {}, [], None)


def _first_rows(job: Job, unit: ReadUnit) -> Chunk:
    """Some hundred rows of a unit; text may come in smaller chunks, good rows apart from bad ones."""
    chunks: list[Chunk] = []
    for chunk in read_unit(job, unit):
        chunks.append(chunk)
        rows, size = (sum(getattr(t, what) for c in chunks for t in c) for what in ("num_rows", "nbytes"))
        if rows >= SAMPLE_ROWS or size > MAX_RECORD:
            break
    return Chunk(pa.concat_tables(c.rows for c in chunks), pa.concat_tables(c.errors for c in chunks))


def _tags_of(job: Job, errors: pa.Table) -> list[str]:
    """The tags of the rows that have one the model does not know."""
    unknown = errors.filter(pc.equal(errors.column("reason"), "unknown_tag")).column("payload").to_pylist()
    tags = {tag for row in unknown for tag in json.loads(row)[job.columns.labels] if tag is not None}
    return sorted(tags)


def _bytes_read(rows: pa.Table, unit: ReadUnit) -> float:
    """Bytes of text up to the last row of the sample: rows are numbered by their first byte."""
    numbers = one_array(rows.column(schema.SOURCE_ROW))
    if len(numbers) < 2:
        return unit.size
    return (numbers[-1].as_py() - numbers[0].as_py()) * len(numbers) / (len(numbers) - 1)


def _sample_warnings(job: Job, sample: Sample) -> list[str]:
    bad = sum(sample.reasons.values())
    unknown = sample.reasons.get("unknown_tag", 0)
    if unknown * 2 > sample.rows and job.data_tags is None:
        raise Refused(
            f"most rows have tags that the model does not know: column {job.columns.labels} has "
            f"{', '.join(sample.unknown[:20])}; the model has {', '.join(job.tags)}; "
            f"choose another --labels-column or --model"
        )
    if bad * 2 > sample.rows:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(sample.reasons.items()))
        return [f"{bad} of the first {sample.rows} rows cannot be scored ({reasons}): is a column name wrong?"]
    return scheme_warnings(job.tags, sample.sequences)


def _padded(strings: pa.Array, size: int) -> pa.Array:
    """Token strings for every id the model has an embedding for; ids the tokenizer does not use are null."""
    return pa.concat_arrays([strings, pa.nulls(max(0, size - len(strings)), pa.string())])


def _outside_of_input(config: ScoreConfig, inspected: list[Inspected]) -> None:
    output = open_location(config.output)[1]
    for item in inspected:
        if open_location(item.file.listed.path)[1].startswith(posixpath.join(output, "")):
            raise Refused(f"--output {config.output} holds the input {item.file.source}: choose another folder")
    for uri in config.input:
        fs, path = open_location(uri)
        if output.startswith(posixpath.join(path, "")) and kind_of(fs, path) == "directory":
            raise Refused(f"--output {config.output} lies inside the input folder {uri}: choose another folder")


def _overlap(config: ScoreConfig, model: ModelInfo) -> int:
    specials = Tokenizer.from_str(model.tokenizer_json).num_special_tokens_to_add(False)
    capacity = model.max_length - specials
    if capacity < 1:
        raise Refused(f"--max-length {model.max_length} leaves no room beside {specials} special tokens")
    if config.overlap is None:
        return min(DEFAULT_OVERLAP, capacity // 2)
    if config.overlap >= capacity and config.overflow == "window":
        raise Refused(f"--overlap {config.overlap} must be less than the {capacity} tokens a window has for words")
    return config.overlap
