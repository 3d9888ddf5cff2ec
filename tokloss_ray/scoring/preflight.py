"""Whether a job can be done: input, columns, model, tokenizer and tag names, looked at before anything is written."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace

import pyarrow.compute as pc
from tokenizers import Tokenizer

from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.inputs.columns import ColumnOptions, find_columns
from tokloss_ray.inputs.hub import HubData, find_on_hub, names_dataset, with_features
from tokloss_ray.inputs.input_files import InputFiles
from tokloss_ray.inputs.listing import Inspected, inspect_files, list_inputs
from tokloss_ray.inputs.span_columns import SpanOptions
from tokloss_ray.inputs.tag_names import find_tags
from tokloss_ray.inputs.unit import Columns
from tokloss_ray.model.files import ModelInfo, resolve_model
from tokloss_ray.model.store import ModelFolder, find_model
from tokloss_ray.output.run import read_run
from tokloss_ray.storage.failures import display
from tokloss_ray.storage.files import kind_of, open_location

DEFAULT_OVERLAP = 64


@dataclass(frozen=True)
class Located:
    """What listings and metadata tell: the input files (`inspected`: those that were looked into), which of their
    columns count, where the model is, and the name of a dataset of the hub with its commit."""

    files: InputFiles
    inspected: list[Inspected]
    columns: Columns
    model: ModelFolder
    warnings: tuple[str, ...] = ()
    dataset: str | None = None


@dataclass(frozen=True)
class Preflight:
    """What was found out of input and model, before anything depends on the machine that runs the job."""

    config: ScoreConfig
    files: InputFiles
    inspected: list[Inspected]
    model: ModelInfo
    columns: Columns
    data_tags: tuple[str, ...] | None
    overlap: int
    warnings: list[str]
    dataset: str | None = None


def locate(config: ScoreConfig, like: Located | None = None) -> Located:
    """The part of the preflight that takes no time: is everything there?

    `like` is what was found for another run over the same input.

    Raises:
        Refused: with the first thing that does not fit.
    """
    warnings: list[str] = [] if like is None else list(like.warnings)
    if like is None:
        hub = _on_hub(config)
        files = list_inputs(config.input, config.split, warnings) if hub is None else hub.files
        _outside_of_input(config, files)
        inspected = inspect_files(files)
        if hub is not None:
            inspected = with_features(inspected, hub.features)
        dataset = None if hub is None else hub.name
    else:
        files, inspected, dataset = like.files, like.inspected, like.dataset
        _outside_of_input(config, files)
    model = find_model(config.model, config.revision, "model")
    columns = find_columns(_column_options(config), inspected)
    return Located(files, inspected, columns, model, tuple(warnings), dataset)


def _on_hub(config: ScoreConfig) -> HubData | None:
    """The dataset of the hub that the input names, if it does; at the commit of an earlier attempt."""
    named = [uri for uri in config.input if names_dataset(uri)]
    if not named:
        if config.dataset_config is not None:
            raise Refused("--dataset-config is for datasets of the Hub: --input hf://datasets/ORG/NAME")
        return None
    if len(config.input) > 1:
        raise Refused(f"--input {named[0]} is a dataset of the Hub: score it in a job of its own")
    run = None if config.overwrite else read_run(config.output)
    recorded = None if run is None else run.identity.get("dataset")
    return find_on_hub(named[0], config.dataset_config, config.split, recorded)


def preflight(config: ScoreConfig, located: Located | None = None) -> Preflight:
    """Check input, columns, model, tokenizer and tag names; `located` is what `locate` has found.

    Raises:
        Refused: with the first thing that does not fit.
    """
    located = located or locate(config)
    model = resolve_model(config, located.model)
    warnings = [*located.warnings, *(model.warnings if located.columns.words else ())]
    warnings += _context_warnings(located)
    if config.level == "word" and located.columns.words is None:
        raise Refused("--level word needs words, but the input is token ids")
    data_tags = find_tags(config.tags, located.inspected, located.columns, model.tags, warnings)
    columns = replace(located.columns, declared=(data_tags or ()) if config.tags is None else None)
    overlap, dataset = _overlap(config, model), located.dataset
    return Preflight(config, located.files, located.inspected, model, columns, data_tags, overlap, warnings, dataset)


def _context_warnings(located: Located) -> list[str]:
    """What is taken for a document, where the user should know.

    Raises:
        Refused: the input is pre-encoded, and where words end is not known.
    """
    columns = located.columns
    if not columns.documents:
        return []
    if columns.words is None:
        raise Refused("--context-sentences and --context-tokens need words, but the input is token ids")
    if columns.document is None and any(item.file.format != "conll" for item in located.inspected):
        return ["no --document-column: all sentences of a file are taken for one document"]
    return []


def _column_options(config: ScoreConfig) -> ColumnOptions:
    names = (
        "tokens_column",
        "labels_column",
        "labels",
        "id_column",
        "keep",
        "partition_by",
        "add_column",
        "document_column",
    )
    spans = SpanOptions(**{name: getattr(config, name) for name in SpanOptions.__dataclass_fields__})
    documents = bool(config.context_sentences or config.context_tokens)
    return ColumnOptions(**{name: getattr(config, name) for name in names}, spans=spans, documents=documents)


def _outside_of_input(config: ScoreConfig, files: InputFiles) -> None:
    fs, output = open_location(config.output)
    folder = display(fs, posixpath.join(output, ""))
    inside = files.table.column("source").filter(pc.starts_with(files.table.column("path"), folder))
    if len(inside):
        raise Refused(f"--output {config.output} holds the input {inside[0]}: choose another folder")
    for uri in config.input:
        fs, path = open_location(uri)
        if output.startswith(posixpath.join(path, "")) and kind_of(fs, path) == "directory":
            raise Refused(f"--output {config.output} is inside the input folder {uri}: choose another folder")


def _overlap(config: ScoreConfig, model: ModelInfo) -> int:
    specials = Tokenizer.from_str(model.tokenizer_json).num_special_tokens_to_add(False)
    capacity = model.max_length - specials
    if capacity < 1:
        raise Refused(f"--max-length {model.max_length} leaves no room for anything but {specials} special tokens")
    if config.overlap is None:
        return min(DEFAULT_OVERLAP, capacity // 2)
    if config.overlap >= capacity and config.overflow == "window":
        raise Refused(f"--overlap {config.overlap} must be less than the {capacity} tokens a window has for words")
    return config.overlap
