"""A tiny model of every architecture behind `AutoModelForTokenClassification`, and what the job makes of it.

The architectures are transformers' own list. Weights are as after training: no bias is zero, no norm's weight is one,
and the padding token has an embedding like any other, so that padding that leaks into a sentence shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from tests.support import models, reference
from tests.support.inline import Inline, Row, score_inline, write_jsonl
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import TokLossError
from tokloss_ray.schema import PACKED, PADDED

ARCHITECTURES = tuple(sorted(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES))
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
POSITIONS = 96
PAD = 3
"""Not 0: where positions are counted from behind the padding id, several are out of reach."""
LIMIT = 1e-4
"""Largest difference of a loss, relative to one more than the loss, that is still exact."""

_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "ffn_hidden_size", "d_ff", "d_inner", "n_inner", "hidden_dim"), 64
    ),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "encoder_ffn_dim", "output_dim"), 32),
    **dict.fromkeys(("d_kv", "d_head", "head_dim", "kv_lora_rank", "q_lora_rank", "v_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), 2),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "full_attention_interval"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("sliding_window", "window_size", "local_attention"), 8),
    "first_k_dense_replace": 1,
    "initializer_range": 0.2,
}
"""Settings that make a model tiny, wherever its configuration has them."""

_OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"head_dim": 8},
    "axk1": {"head_dim": 8},
    "axk2": {"head_dim": 8},
    "mistral4": {"head_dim": 16},
    "esm": {"mask_token_id": 4, "token_dropout": True},
    "funnel": {"block_sizes": [1, 1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
    "markuplm": {"max_depth": 4, "xpath_unit_hidden_size": 4},
    "ministral": {"head_dim": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 1},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen3_5": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "roc_bert": {
        "pronunciation_vocab_size": 32,
        "shape_vocab_size": 32,
        "shape_embed_dim": 16,
        "pronunciation_embed_dim": 16,
    },
    "xmod": {"default_language": "en_XX"},
}
"""Settings of single architectures, without which they cannot be tiny or do not hold together."""

VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "big_bird, block-sparse": ("big_bird", {"block_size": 4, "num_random_blocks": 1}),
    "nystromformer, 32 landmarks": ("nystromformer", {"num_landmarks": 32, "segment_means_seq_len": 64}),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
            },
        },
    ),
    "yoso, random hashing": ("yoso", {"use_expectation": False, "use_fast_hash": False}),
    "yoso, convolution": ("yoso", {"conv_window": 5}),
}
"""Settings of an architecture that change how it treats padding, order or length."""


def make_tokenizer(folder: Path, sentences: Sequence[Sequence[str]]) -> Path:
    """One tokenizer for all models, which knows no length limit; its padding id is `PAD`."""
    tokenizer = models.FAMILIES["bert"][0]([" ".join(words) for words in sentences])
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens[0], tokens[PAD] = tokens[PAD], tokens[0]
    type(tokenizer)(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=False).save_pretrained(folder)
    return folder


def build(architecture: str, folder: Path, tokenizer: Path, **settings: Any) -> Path:
    """Write a tiny model without a tokenizer. Raises whatever transformers raises where it cannot be."""
    vocabulary = transformers.AutoTokenizer.from_pretrained(tokenizer)
    ids = {f"{name}_token_id": getattr(vocabulary, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    config = tiny_config(
        architecture,
        vocab_size=len(vocabulary),
        pad_token_id=PAD,
        bos_token_id=ids["cls_token_id"],
        eos_token_id=ids["sep_token_id"],
        **settings,
    )
    config.id2label = dict(enumerate(TAGS))
    config.label2id = {tag: i for i, tag in enumerate(TAGS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32).eval()
        _live(model)
    _spread_logits(model, len(vocabulary))
    model.save_pretrained(folder)
    return folder


def tiny_config(architecture: str, **own: Any) -> Any:
    """The configuration of a tiny model: `_SMALL` settings, what the architecture needs, and `own`."""
    config = _tiny(type(CONFIG_MAPPING[architecture]()), **_OWN.get(architecture, {}) | own)
    if architecture == "qwen3_5":  # its language model is a part
        config.text_config.layer_types = _OWN["qwen3_5"]["layer_types"]
    return config


def _tiny(kind: type, **own: Any) -> Any:
    """A small configuration: `_SMALL` as far as it has these settings, in its parts, too, then its own."""
    usual = kind()
    settings = {}
    for name, value in _SMALL.items():
        fixed = isinstance(getattr(kind, name, None), property) or name in getattr(kind, "attribute_map", {})
        if not fixed and isinstance(getattr(usual, name, None), (int, float)):
            settings[name] = value
    if kind.model_type == "funnel":  # it refuses to be told
        settings.pop("num_hidden_layers", None)
    parts = {name: part for name in kind.sub_configs or {} if (part := getattr(usual, name, None)) is not None}
    shared = {name: own[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    for name, part in parts.items():
        settings[name] = _tiny(type(part), **shared).to_dict()
    return kind(**settings | own)


def _live(model: nn.Module) -> None:
    """Move every weight from where its initialisation left it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.2 if parameter.dim() > 1 else 0.1))


def _spread_logits(model: Any, vocabulary: int) -> None:
    """Scale and shift the classifier, so that losses run from near 0 to about 10; else all are log(classes)."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(TAGS)]
    ids = torch.randint(PAD + 2, vocabulary, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        except Exception:  # it is the job's to say what it does with such a model
            return
        scale = models.LOGIT_SPREAD / logits.flatten(0, -2).std(dim=0)
        heads[-1].weight.mul_(scale[:, None])
        if heads[-1].bias is not None:
            heads[-1].bias.sub_(logits.flatten(0, -2).mean(dim=0)).mul_(scale)


class Outcome(NamedTuple):
    """What the job made of a model.

    Attributes:
        kind: exact, equal-length, refused, or not made.
        padded: largest difference of a loss where sentences are padded in batches whatever the model is.
        scored: the same of the job as it is.
        packed: the same where sequences stand end to end; None if they are not, as the model would not stand it.
        why: the sentence of a refusal, or why no model could be made.
    """

    kind: str
    padded: float | None
    scored: float | None
    packed: float | None
    why: str


def outcome(name: str, folder: Path, tokenizer: Path, rows: list[Row]) -> Outcome:
    """Build an architecture, or one of the `VARIATIONS`, and score sentences by the job and one at a time."""
    architecture, settings = VARIATIONS.get(name, (name, {}))
    try:
        model = build(architecture, folder / "model", tokenizer, **settings)
    except Exception as error:  # whatever it is, the table says it
        return Outcome("not made", None, None, None, _first_line(error))
    source = write_jsonl(folder / "in.jsonl", rows)

    def run(batching: str | None, packing: str = "off") -> Inline:
        return score_inline(
            ScoreConfig(
                model=str(model),
                tokenizer=str(tokenizer),
                input=str(source),
                output=str(folder / f"out-{batching}-{packing}"),
                id_column="id",
                tags=list(TAGS),
                max_error_rate=0.5,
                packing=packing,  # type: ignore[arg-type]
            ),
            batching=batching,
        )

    try:
        done = run(None)
    except TokLossError as error:
        return Outcome("refused", None, None, None, str(error).replace(str(model), "MODEL"))
    bad = {row["example_id"]: row["reason"] for row in done.errors}
    assert set(bad.values()) <= {"too_short"}
    assert {row["example_id"] for row in done.rows} | set(bad) == {row["id"] for row in rows}
    scored = largest_difference(model, done.rows)
    if done.totals.batching == PADDED:
        packed = run(None, packing="on")
        difference = largest_difference(model, packed.rows) if packed.totals.batching == PACKED else None
        return Outcome("exact", scored, scored, difference, "")
    padded = largest_difference(model, [row for row in run(PADDED).rows if row["example_id"] not in bad])
    return Outcome(done.totals.batching or "", padded, scored, None, "")


def largest_difference(model_path: Path, scored: list[Row]) -> float:
    """Of a loss of the job to that of the same row, or window, alone, relative to one more than the loss."""
    model = AutoModelForTokenClassification.from_pretrained(model_path, dtype=torch.float32).eval()
    worst = 0.0
    for row in scored:
        labels = [reference.IGNORE_INDEX if tag == reference.IGN else TAGS.index(tag) for tag in row["labels"]]
        want = reference.reference_encoded(model, row["input_ids"], labels)
        got, wanted = np.array(row["loss"]), np.array(want["loss"])
        worst = max(worst, float((np.abs(got - wanted) / (1 + np.abs(wanted))).max()))
    return worst


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).split("\n") if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def all_names() -> Iterator[str]:
    """Every architecture, each followed by its variations."""
    for architecture in ARCHITECTURES:
        yield architecture
        yield from (name for name, (of, _) in VARIATIONS.items() if of == architecture)
