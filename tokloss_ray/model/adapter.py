"""PEFT adapters (LoRA and its kin): a folder that names the model it belongs to, into whose weights it is merged.

https://huggingface.co/docs/peft/developer_guides/checkpoint describes the folder.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tokloss_ray.errors import Refused
from tokloss_ray.model.store import ModelFolder, find_model

if TYPE_CHECKING:
    from torch import nn

SETTINGS = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT")
"""Kinds that add tokens to the input, which no weights can hold."""


def base_of(folder: ModelFolder, path: str) -> ModelFolder | None:
    """The model that an adapter belongs to; None if the folder is a model itself. path: the folder's copy on this node.

    Raises:
        Refused: the model is not to be found, the adapter cannot be merged, or PEFT is not installed.
    """
    weights = folder.names("*.safetensors", "*.bin")
    if not folder.names(SETTINGS) or not weights or any(name not in _WEIGHTS for name in weights):
        return None
    try:
        settings = json.loads(Path(path, SETTINGS).read_bytes())
        name, kind, revision = (settings.get(key) for key in ("base_model_name_or_path", "peft_type", "revision"))
    except (OSError, ValueError, AttributeError):
        raise Refused(f"cannot read {SETTINGS} in {folder.name}") from None
    if kind in _PROMPTS:
        raise Refused(f"{folder.name} is an adapter of the kind {kind}, which cannot be merged into a model's weights")
    if not name:
        raise Refused(f"{SETTINGS} in {folder.name} names no base_model_name_or_path: add it")
    if find_spec("peft") is None:  # the driver has no use for the import itself, which takes a second
        raise Refused(f"{folder.name} is a PEFT adapter: pip install 'tokloss-ray[peft]'")
    try:
        return find_model(name, revision, "base model")
    except Refused as error:
        raise Refused(f"{folder.name} is an adapter, but: {error}") from None


def settings_path(path: str, base_path: str) -> str:
    """Where the configuration is: beside the adapter, with its tags, if somebody saved it there."""
    return path if os.path.isfile(os.path.join(path, "config.json")) else base_path


def held(missing: list[str], path: str) -> list[str]:
    """Of the weights that the base model lacks, those that the adapter has: the head, mostly."""
    from safetensors import safe_open

    file = os.path.join(path, _WEIGHTS[0])
    if not os.path.isfile(file):
        return missing  # pickled; what is lacking there PEFT says
    with safe_open(file, "pt") as weights:
        names = set(weights.keys())
    return [name for name in missing if f"base_model.model.{name}" in names]


def merge(model: nn.Module, path: str) -> nn.Module:
    """The model with the adapter in its weights, as `PeftModel.merge_and_unload` puts it there."""
    from peft import PeftModel

    merged: nn.Module = PeftModel.from_pretrained(model, path).merge_and_unload()
    return merged
