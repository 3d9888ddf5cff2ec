"""Model and tokenizer, resolved once by the driver: what the other stages need to know of them, without torch."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.model.adapter import base_of, settings_path
from tokloss_ray.model.store import (
    PICKLED_WEIGHTS,
    WEIGHTS,
    ModelFolder,
    check_finished,
    content_of,
    fetch_model,
    find_model,
)
from tokloss_ray.schema import IGN

# Position ids of these start after the padding id, so that many positions are out of reach. Their table of positions
# has a padding row, which is how tests find whether one is missing here; the actor looks, too (`stages/probe.py`).
POSITIONS_AFTER_PAD = {
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "data2vec-text",
    "longformer", "ibert", "luke", "mpnet", "esm", "layoutlmv3", "lilt", "markuplm",
}  # fmt: skip
_NO_LENGTH = 100_000
"""Tokenizers without a limit report an astronomic `model_max_length`; beyond this it says nothing."""
_DEFAULT_LENGTH = 512
_SETTINGS = ("config.json", "adapter_config.json", "*.index.json")
"""What results depend on beside the weights: the settings, an adapter's, and which file holds which weight."""
_CODE = ("*.py",)
_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.vocab", "*.tiktoken")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading its weights.

    Attributes:
        folder: where the model files are, for every node to find.
        tags: tag names by class id.
        embedding_rows: number of token ids the model has an embedding for.
        max_length: tokens a sequence may have, special tokens included.
        pad_token_id: id that fills padded positions.
        tokenizer_json: the tokenizer, as the `tokenizers` library serialises it.
        token_strings: Arrow string array, token string by id.
        content: SHA-256 that changes with the configuration, the weights and code of the model's own that is run.
        tokenizer_content: SHA-256 over the tokenizer, and code of its own that is run.
        layer_parameters: parameters of the layers, without embeddings, about; 0 where the settings do not tell.
    """

    folder: ModelFolder
    tags: tuple[str, ...]
    embedding_rows: int
    max_length: int
    pad_token_id: int
    tokenizer_json: str
    token_strings: pa.Array
    content: str
    tokenizer_content: str
    layer_parameters: int = 0
    warnings: tuple[str, ...] = ()


def resolve_model(config: ScoreConfig, folder: ModelFolder) -> ModelInfo:
    """Read the model's settings and its tokenizer and check that they are fit for the job.

    Raises:
        Refused: not found, not for token classification, unsafe weights, or a tokenizer of another model.
    """
    path = fetch_model(folder, small_only=True)
    base = base_of(folder, path)
    base_path = path if base is None else fetch_model(base, small_only=True)
    settings = _model_settings(folder, settings_path(path, base_path), config, head=base is None)
    if base is not None:
        _check_weights(base, base.name, config)
    tags = _tags(settings, config.model) if base is None else _adapter_tags(settings, config)
    embedding_rows = int(getattr(settings, "vocab_size", 0) or 0)
    tokenizer_path, tokenizer_code = path if _has_vocabulary(path) else base_path, ""
    if config.tokenizer:
        own = replace(find_model(config.tokenizer, None, "tokenizer"), counted=_CODE)
        tokenizer_path = fetch_model(own, small_only=True)
        if config.trust_remote_code and own.names(*_CODE):
            tokenizer_code = content_of(own, tokenizer_path)
    tokenizer = _tokenizer(tokenizer_path, config)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    warnings = _switch_sampling_off(backend)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values())
    if embedding_rows and largest >= embedding_rows:
        raise Refused(
            f"the tokenizer has ids up to {largest}, but the model has only {embedding_rows} embeddings: "
            f"they do not belong together; pass the right one with --tokenizer"
        )
    strings: list[str | None] = [None] * (largest + 1)
    for token, token_id in vocabulary.items():
        strings[token_id] = token
    tokenizer_json = backend.to_str()
    folder = replace(folder, counted=_counted(config))
    folder = replace(folder, content=content_of(folder, path))
    check_finished(folder)
    content = folder.content
    if base is not None:
        base = replace(base, counted=_counted(config))
        base = replace(base, content=content_of(base, base_path))
        folder = replace(folder, base=base)
        content = hashlib.sha256(f"{folder.content} {base.content}".encode()).hexdigest()
    return ModelInfo(
        folder=folder,
        tags=tags,
        embedding_rows=embedding_rows or largest + 1,
        max_length=_max_length(settings, tokenizer, config.max_length),
        pad_token_id=_pad_id(settings, tokenizer),
        tokenizer_json=tokenizer_json,
        token_strings=pa.array(strings, pa.string()),
        content=content,
        tokenizer_content=hashlib.sha256((tokenizer_json + tokenizer_code).encode()).hexdigest(),
        layer_parameters=_layer_parameters(settings),
        warnings=(*warnings, *_glued_words(tokenizer_json)),
    )


def _layer_parameters(settings: Any) -> int:
    """Those of attention and of the two layers after it, which nearly all of an encoder's work is for."""
    layers, width = (getattr(settings, name, None) or 0 for name in ("num_hidden_layers", "hidden_size"))
    inner = getattr(settings, "intermediate_size", None) or getattr(settings, "hidden_dim", None) or 4 * width
    try:
        return int(layers * (4 * width * width + 2 * width * inner))
    except TypeError:  # lists, of models whose layers differ
        return 0


def _counted(config: ScoreConfig) -> tuple[str, ...]:
    """The files of a model that results depend on; code that does not run is none of them."""
    pickled = PICKLED_WEIGHTS if config.allow_pickle else ()
    return (*_SETTINGS, *WEIGHTS, *pickled, *(_CODE if config.trust_remote_code else ()))


def _model_settings(folder: ModelFolder, path: str, config: ScoreConfig, head: bool) -> Any:
    """The model's configuration. head: it must be that of a model with a head for tagging."""
    from transformers import AutoConfig

    if not os.path.isfile(os.path.join(path, "config.json")):
        raise Refused(f"no model at {config.model}: the folder has no config.json")
    try:
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code, local_files_only=True)
    except Exception as error:  # whatever a broken configuration makes transformers stumble over
        hint = "; it has code of its own, which --trust-remote-code allows" if "trust_remote_code" in str(error) else ""
        raise Refused(f"cannot read the model's config.json in {config.model}: {_first_line(error)}{hint}") from None
    architectures = getattr(settings, "architectures", None) or []
    if head and any("crf" in name.lower() for name in architectures):
        raise Refused(
            f"{config.model} is a {architectures[0]}: the loss of a CRF is of whole sentences and not of tokens; use a "
            f"model with a softmax over the tags"
        )
    if head and architectures and not any("TokenClassification" in name for name in architectures):
        raise Refused(
            f"{config.model} is a {architectures[0]}, not a token-classification model: "
            f"fine-tune it for tagging first (AutoModelForTokenClassification)"
        )
    _check_weights(folder, config.model, config)
    return settings


def _check_weights(folder: ModelFolder, name: str, config: ScoreConfig) -> None:
    if folder.names(*WEIGHTS):
        return
    if not folder.names(*PICKLED_WEIGHTS):
        raise Refused(f"{name} has no weights (*.safetensors)")
    if not config.allow_pickle:
        raise Refused(
            f"{name} has no safetensors weights; pickled weights can run code: "
            f"convert them, or trust them with --allow-pickle"
        )


def _tags(settings: Any, name: str) -> tuple[str, ...]:
    id2label = {int(i): str(tag) for i, tag in settings.id2label.items()}
    if sorted(id2label) != list(range(len(id2label))):
        raise Refused(f"the id2label of {name} does not number its tags 0, 1, 2, ...")
    tags = tuple(id2label[i] for i in range(len(id2label)))
    if len(set(tags)) != len(tags):
        raise Refused(f"the id2label of {name} uses one name for two tags")
    if IGN in tags:
        raise Refused(f"{name} has a tag named {IGN}, which the output reserves for positions without a label")
    return tags


def _adapter_tags(settings: Any, config: ScoreConfig) -> tuple[str, ...]:
    """An adapter's folder has no names of tags, unless the configuration was saved there."""
    if config.tags is not None:
        return config.tags
    tags = _tags(settings, config.model)
    if all(tag.startswith("LABEL_") for tag in tags):
        raise Refused(
            f"the adapter in {config.model} does not name its tags: save the model's configuration there "
            f"(model.config.save_pretrained), or list them in order with --tags"
        )
    return tags


def _has_vocabulary(path: str) -> bool:
    return any(file for pattern in _VOCABULARIES for file in Path(path).glob(pattern))


def _tokenizer(path: str, config: ScoreConfig) -> Any:
    from transformers import AutoTokenizer

    if not _has_vocabulary(path):
        # transformers would make up an empty tokenizer, to which every word is unknown.
        raise Refused(
            f"no tokenizer in {config.tokenizer or config.model}: there is no tokenizer.json and no vocabulary file; "
            f"pass one with --tokenizer"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=config.trust_remote_code, local_files_only=True, use_fast=True
        )
    except Exception as error:  # ValueError, OSError, KeyError and the tokenizers library's bare Exception
        raise Refused(
            f"no usable tokenizer in {config.tokenizer or config.model}: {_first_line(error)}; "
            f"pass one with --tokenizer"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise Refused(f"the tokenizer in {config.tokenizer or config.model} is not a fast one (tokenizer.json)")
    return tokenizer


def _max_length(settings: Any, tokenizer: Any, asked: int | None) -> int:
    """Tokens a sequence may have: what the positions allow, what the tokenizer says, what the user asks."""
    positions = getattr(settings, "max_position_embeddings", None) or getattr(settings, "max_seq_len", None)
    if positions is not None and settings.model_type in POSITIONS_AFTER_PAD:
        positions -= (settings.pad_token_id or 0) + 1
    if positions is not None and positions <= 0:
        positions = None
    if asked is not None:
        if positions is not None and asked > positions:
            raise Refused(f"--max-length {asked} is more than the model's {positions} positions")
        return asked
    told = tokenizer.model_max_length
    limits = [limit for limit in (positions, told) if limit is not None and limit < _NO_LENGTH]
    return min(limits, default=_DEFAULT_LENGTH)


def _pad_id(settings: Any, tokenizer: Any) -> int:
    """Any id will do, as padding is masked; the tokenizer's is the one that models know."""
    for pad_id in (tokenizer.pad_token_id, getattr(settings, "pad_token_id", None)):
        if pad_id is not None:
            return int(pad_id)
    return 0


def _switch_sampling_off(backend: Any) -> tuple[str, ...]:
    """Training options that cut a word into other pieces each time: BPE's `dropout`, Unigram's `alpha`. Say so.

    Raises:
        Refused: one cannot be switched off.
    """
    told = []
    for option in ("dropout", "alpha"):
        value = getattr(backend.model, option, None)
        if value is None or (option == "dropout" and not value):
            continue
        setattr(backend.model, option, None)
        if getattr(backend.model, option) is not None:
            raise Refused(
                f"the tokenizer's {option} of {value:g} makes different tokens each time: save it without that option"
            )
        told.append(
            f"the tokenizer has {option} {value:g}, which is for training and makes different tokens each time: "
            f"it is switched off here"
        )
    return tuple(told)


def _glued_words(tokenizer_json: str) -> tuple[str, ...]:
    """Byte-level tokenizers saved without a prefix space run the words of a sentence together: say so."""
    pre = json.loads(tokenizer_json).get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if any(step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps):
        return (
            "the tokenizer was saved with add_prefix_space=false: words are encoded without the space before them, "
            "as transformers does with this tokenizer",
        )
    return ()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".:")
