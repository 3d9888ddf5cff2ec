"""From what the preflight found to the job and its read units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.inputs import formats
from tokloss_ray.inputs.input_files import InputFiles
from tokloss_ray.inputs.unit import ReadUnit
from tokloss_ray.inputs.units import make_units
from tokloss_ray.output.run import fingerprint, input_identity
from tokloss_ray.ragged import sum_if_known
from tokloss_ray.scoring.additions import Base
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.preflight import Preflight
from tokloss_ray.scoring.sample import sample_rows, sample_warnings
from tokloss_ray.scoring.stages.context import Context
from tokloss_ray.scoring.stages.word_level import WordLevel
from tokloss_ray.storage.files import is_local, open_location

CPU_SHARD_TOKENS, GPU_SHARD_TOKENS = 1 << 16, 1 << 20
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1 << 10, 1 << 15
MIN_BATCHES = 32
MOST_SHARDS = 20_000
"""Of a corpus on CPUs, about, as long as a shard need not be larger than on a GPU."""
FORMAT = 4
"""Part of every fingerprint: raise it when the cuts of units and shards, or the files' content, change."""


@dataclass(frozen=True)
class Plan:
    """The job, its units, and what is expected of them.

    Attributes:
        inputs: the input files that the units are of: source, size, version.
        files: all files of the input.
        added: the units are of files that were added to an output.
        rows: None where metadata do not tell.
    """

    job: Job
    inputs: pa.Table
    files: InputFiles
    units: list[ReadUnit]
    rows: int | None
    estimated_tokens: int
    estimated_rows: int
    warnings: list[str] = field(default_factory=list)
    added: bool = False

    @property
    def read_files(self) -> int:
        """How many files the units are of."""
        sources = [chunk for unit in self.units for chunk in unit.table.column("source").chunks]
        return int(pc.count_distinct(pa.chunked_array(sources, pa.string())).as_py())

    @property
    def estimated_shards(self) -> int:
        """About how many shards there will be."""
        share = self.estimated_tokens / max(1, sum(u.size for u in self.units))
        return sum(max(1, -(-int(u.size * share) // self.job.shard_tokens)) for u in self.units)


def make_plan(
    found: Preflight,
    gpu: bool,
    bfloat16: bool,
    recorded: dict[str, Any] | None = None,
    base: Base | None = None,
    others: Sequence[Plan] = (),
) -> Plan:
    """The job and its units; those of new files alone where there is a `base` to which they are added.

    `auto` settings are taken from `recorded`, the identity of an earlier attempt, if any. `others` are plans of the
    same input; what is the same in one of them is taken from it.
    """
    config, recorded = found.config, recorded or {}
    dtype: str = config.dtype
    if dtype == "auto":
        dtype = recorded.get("dtype") or ("bfloat16" if gpu and bfloat16 else "float32")
    batch_tokens = config.batch_tokens or (GPU_BATCH_TOKENS if gpu else CPU_BATCH_TOKENS)
    shard_tokens = config.shard_tokens or recorded.get("shard_tokens")
    if not shard_tokens:
        shard_tokens = _auto_shard_tokens(found, gpu, batch_tokens)
    if gpu and not config.batch_tokens:  # as many as there is memory for; more would waste padding
        batch_tokens = max(GPU_BATCH_TOKENS, shard_tokens // MIN_BATCHES)
    files = found.files if base is None else base.new
    like = next((plan for plan in others if base is None and not plan.added), None)
    inputs = _inputs_table(files) if like is None else like.inputs
    # What was there before the additions tells a run from others.
    if base is not None:
        of_input = recorded["input"]
    else:
        of_input = input_identity(inputs) if like is None else like.job.identity["input"]
    job = _job(found, _identity(found, of_input, dtype, shard_tokens), batch_tokens, gpu and not config.batch_tokens)
    if like is not None and like.job.shard_tokens == shard_tokens:
        units = like.units
    else:
        units = make_units(
            files, found.inspected, shard_tokens, config.limit, base.units if base else 0, found.columns.documents
        )
    rows = sum_if_known(unit.rows for unit in units)
    sample = sample_rows(job, units)
    warnings = [*found.warnings, *sample_warnings(job, sample)]
    size = sum(unit.size for unit in units)
    per_byte = sample.rows / sample.size if sample.size else 0
    estimated_rows = rows if rows is not None else round(size * per_byte)
    tokens = round(estimated_rows * sample.tokens_per_row)
    return Plan(job, inputs, found.files, units, rows, tokens, estimated_rows, warnings, base is not None)


def _auto_shard_tokens(found: Preflight, gpu: bool, batch_tokens: int) -> int:
    """Tokens of a shard: more where a corpus would come to more than MOST_SHARDS, each of which costs the driver time
    and the storage requests."""
    bytes_per_token = {item.name: item.bytes_per_token for item in formats.FORMATS}
    of_format = found.files.table.group_by("format").aggregate([("size", "sum")])
    sums = zip(of_format.column("format").to_pylist(), of_format.column("size_sum").to_pylist(), strict=True)
    tokens = sum(nbytes / bytes_per_token[name] for name, nbytes in sums)
    size = CPU_SHARD_TOKENS
    while size < GPU_SHARD_TOKENS and tokens / size > MOST_SHARDS:
        size *= 2
    return max(GPU_SHARD_TOKENS if gpu else size, MIN_BATCHES * batch_tokens)


def _inputs_table(files: InputFiles) -> pa.Table:
    table = files.table.select(["source", "size", "version"])
    return table.set_column(0, "source", table.column("source").cast(pa.large_string()))


def _identity(found: Preflight, of_input: Any, dtype: str, shard_tokens: int) -> dict[str, Any]:
    """Everything that results depend on, as JSON has it; settings of speed are not in it."""
    config, model, columns = found.config, found.model, found.columns
    identity = {
        "format": FORMAT,
        "input": of_input,
        "split": config.split,
        "columns": [columns.words, columns.labels, columns.mask, columns.example_id],
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
    if columns.spans is not None:
        identity["spans"] = asdict(columns.spans)
    if config.level == "word":
        identity["level"] = ["word", config.word_loss, config.word_tag]
    if columns.documents:
        identity["context"] = [config.context_sentences, config.context_tokens, columns.document]
    if _keeps_entropy(found):  # not in runs of versions without the setting
        identity["keep_entropy"] = True
    if config.tf32 and dtype == "float32":  # nor this one
        identity["tf32"] = True
    if found.dataset is not None:
        identity["dataset"] = found.dataset
    return json.loads(json.dumps(identity))


def _keeps_entropy(found: Preflight) -> bool:
    """Whether entropies are written: asked for, or always where no label tells how sure the model should be."""
    return found.config.keep_entropy or found.columns.labels is None


def _job(found: Preflight, identity: dict[str, Any], batch_tokens: int, find_budget: bool) -> Job:
    config, model = found.config, found.model
    fs, output = open_location(config.output)
    return Job(
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
        shard_tokens=identity["shard_tokens"],
        model=model.folder,
        dtype=identity["dtype"],
        batch_tokens=batch_tokens,
        find_budget=find_budget,
        tf32=config.tf32,
        keep_probs=config.keep_probs,
        keep_entropy=_keeps_entropy(found),
        level=WordLevel(config.word_loss, config.word_tag) if config.level == "word" else None,
        context=Context(config.context_sentences or 0, config.context_tokens or 0) if found.columns.documents else None,
        storage_tries=config.storage_tries,
        packing=config.packing,
        compile=config.compile,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        identity=identity,
    )


def _padded(strings: pa.Array, size: int) -> pa.Array:
    """Token strings for every id the model has an embedding for; ids the tokenizer does not use are null."""
    return pa.concat_arrays([strings, pa.nulls(max(0, size - len(strings)), pa.string())])
