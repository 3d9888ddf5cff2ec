"""The settings of a run, validated and frozen. Each field is a command-line option and a key of the YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokloss_ray import schema
from tokloss_ray.errors import Refused

DTYPES = Literal["auto", "float32", "bfloat16", "float16"]


class ScoreConfig(BaseModel):
    """Settings of `tokloss score`. Only `model`, `input` and `output` have no default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="Token-classification model: a folder, or a Hugging Face hub id.")
    input: tuple[str, ...] = Field(
        description="Parquet, JSON lines or CoNLL files, globs or folders, or a datasets folder."
    )
    output: str = Field(description="Folder the results go to.")

    revision: str | None = Field(None, description="Revision of a hub model.")
    tokenizer: str | None = Field(None, description="Folder or hub id of the tokenizer, where it is not the model's.")
    split: str | None = Field(None, description="Which split of a saved DatasetDict.")
    tokens_column: str | None = Field(
        None,
        description="Column with the words of a sentence (default: tokens or words; of CoNLL files FORM or the first).",
    )
    labels_column: str | None = Field(
        None,
        description="Column with one tag per word (default: ner_tags, tags or labels; of CoNLL files the last, "
        "of CoNLL-U UPOS), or per token if pre-encoded.",
    )
    id_column: str | None = Field(None, description="Column that becomes example_id (default: file name and row).")
    tags: tuple[str, ...] | None = Field(
        None, description="Names of the integer tags of the data, in order, separated by commas."
    )
    keep: tuple[str, ...] = Field((), description="Input column to copy to the output; may be repeated.")
    partition_by: tuple[str, ...] = Field((), description="Column to partition the output by; may be repeated.")
    add_column: dict[str, str] = Field({}, description="NAME=VALUE, a constant column; may be repeated.")
    max_length: int | None = Field(None, gt=0, description="Most tokens a sequence may have (default: the model's).")
    overflow: Literal["window", "truncate", "reject"] = Field(
        "window", description="What happens to longer sequences: overlapping windows, cut off, or sent to errors/."
    )
    overlap: int | None = Field(None, ge=0, description="Tokens that neighbouring windows share (default: 64).")
    label_all_subtokens: bool = Field(False, description="Score every token of a word, not the first alone.")
    keep_probs: bool = Field(False, description="Write the probability of every tag (column probs).")
    dtype: DTYPES = Field("auto", description="Numbers the model computes in (auto: bfloat16 on a GPU that has it).")
    batch_tokens: int | None = Field(
        None, gt=0, description="Padded tokens a micro-batch may have (default: by device)."
    )
    shard_tokens: int | None = Field(
        None, gt=0, description="Tokens a shard has, the unit of commit and retry (default: by device)."
    )
    actors: tuple[int, int] | None = Field(
        None, description="Model actors: N, or MIN,MAX (default: one per GPU, or one per node without GPUs)."
    )
    gpus_per_actor: float | None = Field(
        None, ge=0, description="GPUs an actor holds (default: 1 where there are GPUs)."
    )
    max_error_rate: float = Field(
        0.0, ge=0, le=1, description="Share of rows that may end in errors/ before exit code 3."
    )
    stall_timeout: float = Field(1800, gt=0, description="Seconds without progress after which the job fails.")
    storage_tries: int = Field(
        6, gt=0, description="How often to try what storage fails at for the moment, with growing pauses."
    )
    overwrite: bool = Field(False, description="Start afresh in a folder that an earlier run made.")
    address: str | None = Field(None, description="Ray cluster to use (default: a local one, started for the job).")
    limit: int | None = Field(None, gt=0, description="Score the first so many rows only.")
    verbose: bool = Field(False, description="Show what Ray and transformers say, and where an error came from.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    allow_pickle: bool = Field(False, description="Load weights that are not safetensors.")

    @field_validator("input", mode="before")
    @classmethod
    def _one_input(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, (str, Path)) else value

    @field_validator("model", "output", "tokenizer", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("input")
    @classmethod
    def _some_input(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one input")
        return value

    @field_validator("tags", "keep", "partition_by", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """`A,B` and repeated options give the same list."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, (list, tuple)):
            return tuple(part for v in value for part in (v.split(",") if isinstance(v, str) else [v]))
        return value

    @field_validator("add_column", mode="before")
    @classmethod
    def _constants(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            pairs = [str(v).partition("=") for v in value]
            if any(not name or not sep for name, sep, _ in pairs):
                raise ValueError("write it as NAME=VALUE")
            return {name: text for name, _, text in pairs}
        if isinstance(value, dict):
            return {name: str(text) for name, text in value.items()}
        return value

    @field_validator("keep", "partition_by")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    @field_validator("actors", mode="before")
    @classmethod
    def _actors(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = [int(v) for v in value.split(",")]
            except ValueError:
                raise ValueError("write it as N or MIN,MAX") from None
        if isinstance(value, int):
            value = [value]
        if isinstance(value, (list, tuple)):
            low, high = (value[0], value[-1]) if 1 <= len(value) <= 2 else (0, 0)
            if not 1 <= low <= high:
                raise ValueError("write it as N or MIN,MAX, with 1 <= MIN <= MAX")
            return (low, high)
        return value

    @model_validator(mode="after")
    def _names_agree(self) -> ScoreConfig:
        if self.tags is not None and len(set(self.tags)) != len(self.tags):
            raise ValueError("tags: a name stands there twice")
        clash = sorted(schema.RESERVED & {*self.keep, *self.partition_by, *self.add_column})
        if clash:
            raise ValueError(f"{', '.join(clash)}: the output has a column of that name; rename it in the input")
        twice = sorted(set(self.keep) & set(self.add_column))
        if twice:
            raise ValueError(f"{', '.join(twice)}: both kept from the input and added as a constant")
        return self


def make_config(settings: dict[str, Any]) -> ScoreConfig:
    """Validate settings from the command line or a file.

    Raises:
        Refused: with one sentence that names the first setting that is wrong.
    """
    try:
        return ScoreConfig(**settings)
    except ValidationError as error:
        # A misspelt key also makes the right one missing: the misspelling is what to tell.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
        if first["type"] == "missing":
            raise Refused(f"{name} is missing: tokloss score --model M --input FILES --output FOLDER") from None
        if first["type"] == "extra_forbidden":
            raise Refused(f"{name} is not a setting; tokloss score --help lists them") from None
        message = first["msg"].removeprefix("Value error, ")
        raise Refused(f"{name}: {message}" if name else message) from None


def read_yaml(path: str) -> dict[str, Any]:
    """The settings in a YAML file, keys written with dashes or underscores.

    Raises:
        Refused: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Refused(f"{path} must hold one mapping of settings, such as 'model: ./my-model'")
    return {str(key).replace("-", "_"): value for key, value in content.items()}
