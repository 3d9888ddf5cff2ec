"""Options of the commands that take a run's settings: one option for each field of `ScoreConfig`, and `--config`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tokloss_ray.cli import log
from tokloss_ray.config import ScoreConfig, make_configs, read_yaml
from tokloss_ray.pairing import EACH

_PANELS = {
    "Input and output": "model input output config revision tokenizer dataset_config split limit append overwrite",
    "Columns and tags": "tokens_column labels_column labels id_column tags keep partition_by add_column",
    "Text with spans": "text_column spans_column words widen_spans label_map",
    "Tokens": "max_length overflow overlap label_all_subtokens keep_probs keep_entropy level word_loss word_tag "
    "context_sentences context_tokens document_column",
    "Speed and cluster": "dtype tf32 batch_tokens packing compile shard_tokens actors gpus_per_actor address "
    "stall_timeout storage_tries",
    "Limits and permissions": "max_error_rate trust_remote_code allow_pickle verbose log_format",
}
_OTHERS = "Other settings"
"""The panel of settings that no other names: a new field is an option without a line here."""
_SHORT = {"model": "-m", "input": "-i", "output": "-o", "verbose": "-v"}
_METAVARS = {
    "model": "FOLDER|ID",
    "input": "FILES",
    "output": "FOLDER",
    "config": "FILE",
    "tokenizer": "FOLDER|ID",
    "tokens_column": "COLUMN",
    "labels_column": "COLUMN",
    "text_column": "COLUMN",
    "spans_column": "COLUMN",
    "label_map": "LABEL=TYPE",
    "id_column": "COLUMN",
    "document_column": "COLUMN",
    "tags": "A,B,...",
    "keep": "COLUMN",
    "partition_by": "COLUMN",
    "add_column": "NAME=VALUE",
    "actors": "N|MIN,MAX",
    "gpus_per_actor": "NUMBER|auto",
    "stall_timeout": "SECONDS",
    "max_error_rate": "RATE",
}
_OF_TYPE = {bool: "", int: "N", float: "NUMBER"}
"""What stands for a value of a type in the help, as a person would write it; a flag takes none."""


def score_options(command: Callable[[tuple[ScoreConfig, ...]], None]) -> Callable[..., None]:
    """Give a command one option per setting, and --config; it is called with the validated settings of each run.

    The options are made from the fields of `ScoreConfig`, so that flags and keys of the file cannot drift apart.
    """

    def run(**given: Any) -> None:
        path = given.pop("config")
        settings = read_yaml(path) if path else {}
        settings |= {name: value for name, value in given.items() if value not in (None, [])}
        if settings.get("log_format") in log.FORMATS:  # the file may ask for it, and what follows may be refused
            log.use(settings["log_format"])
        command(make_configs(settings))

    parameters = setting_options(ScoreConfig.model_fields)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def setting_options(fields: Mapping[str, FieldInfo]) -> list[inspect.Parameter]:
    """A keyword parameter for each field and for `config`, panel by panel, None where the option is not given.

    Raises:
        KeyError: a panel names a setting that is not there.
    """
    config = FieldInfo(annotation=str, description="YAML file with any of these settings; options override it.")
    left = {**fields, "config": config}
    panels = {panel: names.split() for panel, names in _PANELS.items()}
    panels[_OTHERS] = [name for name in left if not any(name in names for names in panels.values())]
    return [_option(name, left[name], panel) for panel, names in panels.items() for name in names]


def _option(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    kind = list[str] if name in EACH else option_type(field.annotation)
    text, flag = field.description or "", name.replace("_", "-")
    if isinstance(field.default, (str, float)):
        text += f" [dim]\\[default: {field.default}][/]"
    # Also in the negative: an option must be able to win over a setting of the file.
    long = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
    names = [long, *([_SHORT[name]] if name in _SHORT else [])]
    choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
    metavar = _METAVARS.get(name) or choices or _OF_TYPE.get(kind, "TEXT")
    option = typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def option_type(annotation: Any) -> Any:
    """The type of a setting's option: a tuple or a mapping that may be empty is an option that may be repeated; a tuple
    that may be missing is one text, which the setting takes apart."""
    optional = get_origin(annotation) in (Union, UnionType)
    if optional:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        annotation = kinds[0] if len(kinds) == 1 else str  # a number or a word: the setting tells them apart
    if get_origin(annotation) in (tuple, dict):
        return str if optional else list[str]
    return annotation
