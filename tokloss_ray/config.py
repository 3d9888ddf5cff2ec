"""The settings of a run, validated and frozen. Each field is a command-line option and a key in the YAML file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.pairing import one_each

DTYPES = Literal["auto", "float32", "bfloat16", "float16"]


class ScoreConfig(BaseModel):
    """Settings of `score`. Only `model`, `input` and `output` are required.

    Each field is an option of `tokloss score` and a key in its YAML file; `tokloss score --help` describes them.
    Instances are immutable; `input`, `tags`, `keep` and `partition_by` accept one string or several.

    Raises:
        pydantic.ValidationError: a setting is missing, unknown or out of range.

    Example:
        >>> from tokloss_ray import ScoreConfig
        >>> config = ScoreConfig(model="my-model", input="data/*.parquet", output="out", partition_by="split,lang")
        >>> config.input, config.partition_by, config.max_error_rate
        (('data/*.parquet',), ('split', 'lang'), 0.0)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(
        description="Token-classification model: a folder or a Hugging Face Hub id; repeat to score with several in "
        "one pass."
    )
    input: tuple[str, ...] = Field(
        description="Parquet, Arrow, JSON Lines, CoNLL or CSV files, globs, folders, a folder saved by datasets, or "
        "hf://datasets/ORG/NAME."
    )
    output: str = Field(
        description="Output folder; of several models, each gets a folder in it, or repeat the option for one each."
    )

    revision: str | None = Field(None, description="Revision of a Hub model.")
    tokenizer: str | None = Field(None, description="Tokenizer folder or Hub id (default: the model's).")
    dataset_config: str | None = Field(None, description="Configuration of a dataset of the Hub.")
    split: str | None = Field(None, description="Split of a dataset of the Hub or of a saved DatasetDict.")
    tokens_column: str | None = Field(
        None,
        description="Column with the words of a sentence (default: tokens or words; in CoNLL files FORM or the first).",
    )
    labels_column: str | None = Field(
        None,
        description="Column with one tag per word (default: ner_tags, tags or labels; in CoNLL files the last, "
        "in CoNLL-U UPOS), or per token if pre-encoded.",
    )
    text_column: str | None = Field(None, description="Column with text that has labelled spans (default: text).")
    spans_column: str | None = Field(
        None,
        description="Column with labelled spans of the text (default: entities, ents, spans, label, labels or "
        "annotations).",
    )
    words: Literal["punctuation", "whitespace", "model"] | None = Field(
        None,
        description="Where text is split into words: at white space and around punctuation (default), at white space "
        "alone, or where the model's tokenizer does.",
    )
    widen_spans: bool = Field(False, description="Widen spans that cut a word to the whole word.")
    label_map: dict[str, str] = Field(
        {}, description="What the model calls a label of spans, as LABEL=TYPE; may be repeated."
    )
    labels: bool = Field(True, description="Read labels; --no-labels scores text without: predictions, no losses.")
    id_column: str | None = Field(None, description="Column to use as example_id (default: file name and row).")
    tags: tuple[str, ...] | None = Field(None, description="Names for integer tags, in order, separated by commas.")
    keep: tuple[str, ...] = Field((), description="Input column to copy to the output; may be repeated.")
    partition_by: tuple[str, ...] = Field((), description="Column to partition the output by; may be repeated.")
    add_column: dict[str, str] = Field({}, description="Constant column to add, as NAME=VALUE; may be repeated.")
    max_length: int | None = Field(None, gt=0, description="Maximum tokens per sequence (default: the model's).")
    overflow: Literal["window", "truncate", "reject"] = Field(
        "window", description="Longer sequences: split into overlapping windows, truncated, or sent to errors/."
    )
    overlap: int | None = Field(None, ge=0, description="Tokens shared by neighbouring windows (default: 64).")
    label_all_subtokens: bool = Field(False, description="Score every token of a word, not only the first.")
    keep_probs: bool = Field(False, description="Write the probability of every tag (column probs).")
    keep_entropy: bool = Field(
        False, description="Write the entropy of every token's tags (column entropy); always with --no-labels."
    )
    level: Literal["token", "word"] = Field(
        "token", description="With word, also write one label, prediction, probability and loss for each word."
    )
    word_loss: Literal["first", "mean", "max", "sum"] = Field(
        "first", description="For --level word: which of the losses of its tokens a word has."
    )
    word_tag: Literal["first", "vote"] = Field(
        "first", description="For --level word: the prediction of a word's first token, or of most of its tokens."
    )
    context_sentences: int | None = Field(
        None, gt=0, description="Let the model see N sentences of the document before and after each one."
    )
    context_tokens: int | None = Field(
        None, gt=0, description="Let the model see N tokens of the document before and after each sentence."
    )
    document_column: str | None = Field(
        None,
        description="For context: column that says which document a row is of (default: each file is one; in CoNLL "
        "files -DOCSTART-, #begin document and newdoc begin one).",
    )
    dtype: DTYPES = Field("auto", description="Compute dtype (auto: bfloat16 on GPUs that support it, else float32).")
    tf32: bool = Field(
        False, description="Let GPUs compute float32 products in TF32: faster, and losses differ in the third digit."
    )
    batch_tokens: int | None = Field(
        None, gt=0, description="Maximum padded tokens per micro-batch (default: 1,024; what a GPU has memory for)."
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Put sequences end to end instead of padding them, where the model answers the same "
        "(auto: on GPUs).",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compile the model with torch.compile, which takes about a minute per actor "
        "(auto: on GPUs, where the run is long enough).",
    )
    shard_tokens: int | None = Field(
        None, gt=0, description="Tokens per shard, the unit of commit and retry (default: depends on the device)."
    )
    actors: tuple[int, int] | None = Field(
        None, description="Number of model actors: N or MIN,MAX (default: one per GPU; without GPUs, one per node)."
    )
    gpus_per_actor: Literal["auto"] | Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="GPUs per model actor: a number, or auto, which puts several actors with a tiny model on each GPU "
        "(default: 1 if the cluster has GPUs).",
    )
    max_error_rate: float = Field(
        0.0, ge=0, le=1, description="Largest share of rows allowed in errors/; above it, exit code 3."
    )
    stall_timeout: float = Field(1800, gt=0, description="Fail after this many seconds without progress.")
    storage_tries: int = Field(6, gt=0, description="Attempts per storage operation.")
    append: bool = Field(False, description="Score only the files that the output does not have, and add them to it.")
    overwrite: bool = Field(False, description="Discard the earlier run in the output folder and start over.")
    address: str | None = Field(None, description="Ray cluster to use (default: start a local one).")
    limit: int | None = Field(None, gt=0, description="Score only the first N rows.")
    verbose: bool = Field(False, description="Show messages from Ray and transformers, and the traceback of an error.")
    log_format: Literal["text", "json"] | None = Field(
        None,
        description="What the command prints: text, or json for machines, one object per line on standard output "
        "(default: the environment variable TOKLOSS_LOG_FORMAT, otherwise text).",
    )
    trust_remote_code: bool = Field(False, description="Allow Python code that comes with the model to run.")
    allow_pickle: bool = Field(False, description="Allow weights that are not in safetensors format.")

    @field_validator("input", mode="before")
    @classmethod
    def _one_input(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, (str, Path)) else value

    @field_validator("model", "output", "tokenizer", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            raise ValueError("one value; ScoreConfig.several takes one for each run")
        return str(value) if isinstance(value, Path) else value

    @field_validator("input")
    @classmethod
    def _some_input(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("give at least one input")
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

    @field_validator("add_column", "label_map", mode="before")
    @classmethod
    def _constants(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            pairs = [str(v).partition("=") for v in value]
            if any(not name or not sep for name, sep, _ in pairs):
                raise ValueError("expected NAME=VALUE")
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
                raise ValueError("expected N or MIN,MAX") from None
        if isinstance(value, int):
            value = [value]
        if isinstance(value, (list, tuple)):
            low, high = (value[0], value[-1]) if 1 <= len(value) <= 2 else (0, 0)
            if not 1 <= low <= high:
                raise ValueError("expected N or MIN,MAX with 1 <= MIN <= MAX")
            return (low, high)
        return value

    @model_validator(mode="after")
    def _names_agree(self) -> ScoreConfig:
        if self.tags is not None and len(set(self.tags)) != len(self.tags):
            raise ValueError("tags: duplicate name")
        clash = sorted(schema.RESERVED & {*self.keep, *self.partition_by, *self.add_column})
        if clash:
            raise ValueError(f"{', '.join(clash)}: reserved column name; rename it in the input")
        if self.level == "token" and (self.word_loss, self.word_tag) != ("first", "first"):
            raise ValueError(f"{'word_loss' if self.word_loss != 'first' else 'word_tag'}: is for level word; add it")
        if self.word_loss != "first" and not self.label_all_subtokens:
            raise ValueError(f"word_loss: {self.word_loss} needs label_all_subtokens; else one token has a loss")
        if self.context_sentences and self.context_tokens:
            raise ValueError("context_tokens: cannot be combined with context_sentences")
        if self.document_column and not (self.context_sentences or self.context_tokens):
            raise ValueError("document_column: is for context_sentences or context_tokens; add one of them")
        if not self.labels and (self.labels_column or self.tags):
            raise ValueError(f"{'labels_column' if self.labels_column else 'tags'}: cannot be combined with no-labels")
        if self.append and (self.overwrite or self.limit):
            raise ValueError(f"append: cannot be combined with {'overwrite' if self.overwrite else 'limit'}")
        twice = sorted(set(self.keep) & set(self.add_column))
        if twice:
            raise ValueError(f"{', '.join(twice)}: both kept from the input and added as a constant; remove one")
        return self

    @classmethod
    def several(cls, **settings: Any) -> tuple[ScoreConfig, ...]:
        """The settings of several runs in one pass, for `score`.

        Args:
            settings: the fields; `model`, `output`, `revision`, `tokenizer` and `labels_column` may be lists with a
                value for each run. With one `output`, each run writes to a folder in it, named after its model.

        Raises:
            ValueError: lists differ in length, or two runs would write to one folder.
            pydantic.ValidationError: a setting is missing, unknown or out of range.

        Example:
            >>> from tokloss_ray import ScoreConfig
            >>> configs = ScoreConfig.several(model=["runs/step-100", "runs/step-200"], input="news", output="out")
            >>> [config.output for config in configs]
            ['out/step-100', 'out/step-200']
        """
        return tuple(cls(**one) for one in one_each(settings))


def make_configs(settings: dict[str, Any]) -> tuple[ScoreConfig, ...]:
    """Validate settings from the command line or a file: those of one run, or of several in one pass.

    Raises:
        Refused: a setting is wrong; the message names the first one.
    """
    try:
        each = one_each(settings)
    except ValueError as error:
        name, _, sentence = str(error).partition(": ")
        raise Refused(f"--{name.replace('_', '-')}: {sentence}") from None
    return tuple(make_config(one) for one in each)


def named_values(option: str, given: Iterable[str]) -> dict[str, str]:
    """What is given to an option as NAME=VALUE.

    Raises:
        Refused: it is not.
    """
    pairs = [text.partition("=") for text in given]
    if any(not name or not equals for name, equals, _ in pairs):
        raise Refused(f"{option}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def make_config(settings: dict[str, Any]) -> ScoreConfig:
    """Validate the settings of one run from the command line or a file.

    Raises:
        Refused: a setting is wrong; the message names the first one.
    """
    try:
        return ScoreConfig(**settings)
    except ValidationError as error:
        # A misspelt key also leaves the right one missing: report the misspelling.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
        if first["type"] == "missing":
            raise Refused(f"{name} is required: tokloss score --model M --input FILES --output FOLDER") from None
        if first["type"] == "extra_forbidden":
            raise Refused(f"{name} is not a setting; see tokloss score --help") from None
        message = first["msg"].removeprefix("Value error, ")
        raise Refused(f"{name}: {message}" if name else message) from None


def read_yaml(path: str) -> dict[str, Any]:
    """Read settings from a YAML file; keys may use dashes or underscores.

    Raises:
        Refused: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"cannot read the configuration file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Refused(f"{path} must contain a mapping of settings, such as 'model: ./my-model'")
    return {str(key).replace("-", "_"): value for key, value in content.items()}
