"""Linear layers as oneDNN computes them fastest on CPUs: weights laid out once, the activation fused into the product.

PyTorch sends float32 products to MKL, which is half as fast as oneDNN on some CPUs, and lays bfloat16 weights out anew
at every call. The operators used here are those that torch.compile emits for CPUs (`torch._inductor.mkldnn_ir`); called
directly they need no compiler on the machine and no compilation for each shape. PyTorch does not promise to keep them:
where one is missing, or answers otherwise, the model keeps PyTorch's own layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

PACKED_DTYPES = (torch.float32, torch.bfloat16)
_FUSED = (("dense", "intermediate_act_fn"), ("lin1", "activation"))
"""Attributes of feed-forward modules whose activation follows the linear layer at once (BERT's kin; DistilBERT)."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


class PackedLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own layout; `gelu` is applied to the product while it is in cache."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = "gelu" if gelu else "none"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")


def pack(model: nn.Module, probe: Callable[[nn.Module], torch.Tensor]) -> bool:
    """Replace the linear layers of a model on a CPU by packed ones; whether that was done.

    `probe` runs the model on a little input. Where the packed model fails at it, or differs from the plain one by more
    than rounding, or the CPU lacks what it takes, the model is left as it was.
    """
    dtype = next(model.parameters()).dtype
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not _computes_bfloat16():
        return False
    expected = probe(model)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        _replace(model, replaced)
        same = torch.allclose(probe(model), expected, rtol=_TOLERANCE[dtype], atol=_TOLERANCE[dtype], equal_nan=True)
    except Exception:  # a model that asks more of a layer than to be called fails as it likes
        same = False
    if not same:
        for parent, name, module in reversed(replaced):
            setattr(parent, name, module)
    return same


def _replace(model: nn.Module, replaced: list[tuple[nn.Module, str, nn.Module]]) -> None:
    def put(parent: nn.Module, name: str, module: nn.Module) -> None:
        replaced.append((parent, name, getattr(parent, name)))
        setattr(parent, name, module)

    for parent in list(model.modules()):
        for linear, activation in _FUSED:
            # Subclasses may do more than their base does.
            if type(getattr(parent, linear, None)) is nn.Linear and _is_gelu(getattr(parent, activation, None)):
                put(parent, linear, PackedLinear(getattr(parent, linear), gelu=True))
                put(parent, activation, nn.Identity())
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                put(parent, name, PackedLinear(child))


def _computes_bfloat16() -> bool:
    """Whether oneDNN has products in bfloat16 for this CPU, as far as PyTorch tells."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def _is_gelu(module: object) -> bool:
    """Whether it is the exact GELU, not one of its approximations; that of transformers, which may move, by name."""
    if type(module) is nn.GELU:
        return module.approximate == "none"
    return type(module).__name__ == "GELUActivation" and type(module).__module__.startswith("transformers.")
