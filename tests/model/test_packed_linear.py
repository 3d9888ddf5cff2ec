"""Packed linear layers: the same logits as PyTorch's own, for every family, or else PyTorch's own."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForTokenClassification
from transformers.activations import GELUActivation

from tests.support import inline, models
from tokloss_ray import ScoreConfig
from tokloss_ray.model import packed_linear
from tokloss_ray.model.packed_linear import PackedLinear, pack

TAGS = ["O", "B-PER", "I-PER"]
SENTENCES = [["Ada", "Lovelace", "wrote", "the", "first", "program"], ["Wien", "liegt", "an", "der", "Donau"]]
DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 on this CPU"),
    ),
]
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def logits(model: nn.Module, sequences: int = 3, length: int = 17) -> torch.Tensor:
    input_ids = torch.arange(sequences * length).reshape(sequences, length) % 200 + 4
    mask = torch.ones_like(input_ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        out = model(input_ids=input_ids, attention_mask=mask).logits
    return out[mask.bool()].float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_packed_model_gives_the_logits_of_the_plain_one(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = models.build(family, tmp_path, SENTENCES, TAGS)
    plain = AutoModelForTokenClassification.from_pretrained(folder, dtype=dtype).eval()
    packed = copy.deepcopy(plain)
    with torch.inference_mode():
        assert pack(packed, lambda model: logits(model, 2, 12))
    assert not any(type(module) is nn.Linear for module in packed.modules())
    expected = logits(plain)
    spread = expected.std().item()
    difference = (logits(packed) - expected).abs().max().item()
    # Rounding alone: a few units in the last place of float32, and of bfloat16's eight bits.
    assert difference < spread * (1e-5 if dtype == torch.float32 else 0.1)


class UsesTheWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(8, 8)
        self.asks = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.fine(x), self.asks.weight, self.asks.bias)


class NotItsActivation(nn.Module):
    """Looks like a feed-forward module whose activation follows `dense`, and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.intermediate_act_fn(x))


@pytest.mark.parametrize("kind", [UsesTheWeight, NotItsActivation])
def test_what_cannot_be_packed_stays_as_it_was(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(4, 8)
    with torch.inference_mode():
        before = model(x)
        assert not pack(model, lambda m: m(x))
        assert torch.equal(model(x), before)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_an_approximate_gelu_is_not_fused() -> None:
    torch.manual_seed(0)
    model = NotItsActivation()
    model.intermediate_act_fn = nn.GELU(approximate="tanh")
    x = torch.randn(4, 8)
    with torch.inference_mode():
        before = model(x)
        assert pack(model, lambda m: m(x))
        assert torch.allclose(model(x), before, atol=1e-6)
    assert isinstance(model.intermediate_act_fn, nn.GELU)


def test_float16_is_left_to_pytorch() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).half()
    assert not pack(model, lambda m: m(torch.ones(1, 8, dtype=torch.float16)))
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("gone", ["_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_an_operator_of_pytorchs_a_model_keeps_its_layers(
    gone: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are private: a version without one of them computes as PyTorch does."""
    model = AutoModelForTokenClassification.from_pretrained(
        models.build("bert", tmp_path, SENTENCES, TAGS), dtype=dtype
    )
    model.eval()
    before = logits(model)
    names = {"_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"} - {gone}
    left = SimpleNamespace(**{name: getattr(torch.ops.mkldnn, name) for name in names})
    monkeypatch.setattr(torch.ops, "mkldnn", left)
    packed = pack(model, logits)
    assert packed == (gone == "_is_mkldnn_bf16_supported" and dtype == torch.float32)
    assert packed == any(isinstance(module, PackedLinear) for module in model.modules())
    assert torch.allclose(logits(model), before, rtol=1e-4, atol=1e-4)


def test_a_job_without_private_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    model = models.build("bert", tmp_path / "model", SENTENCES, TAGS)
    rows = [{"tokens": words, "tags": ["O"] * len(words)} for words in SENTENCES]
    source = inline.write_jsonl(tmp_path / "in.jsonl", rows)
    done = inline.score_inline(ScoreConfig(model=str(model), input=(str(source),), output=str(tmp_path / "out")))
    assert done.totals.rows == len(SENTENCES)


def test_nothing_of_transformers_is_imported_for_gelu() -> None:
    """It may move there; and a run on a GPU, which needs no packed layers, would end with it."""
    assert not any("transformers" in name for name in vars(packed_linear) if not name.startswith("__"))
    assert packed_linear._is_gelu(GELUActivation())
    assert packed_linear._is_gelu(nn.GELU())
    assert not packed_linear._is_gelu(nn.GELU(approximate="tanh"))
    assert not packed_linear._is_gelu(nn.ReLU())
