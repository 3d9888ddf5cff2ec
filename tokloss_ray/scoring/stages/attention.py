"""Attention over sequences that stand end to end in one row: no padding, and none attends to another.

transformers calls the attention of most of its models by a registered name, with what the caller gave the model beside
the ids: here, where each sequence begins. `packed_attention` is such a function; `switch` sets its name in a model. A
model that does not ask for the function, keeps from it where sequences begin, or needs more of its attention than it
has, fails or answers otherwise, and the probe sees it (`packing_probe.py`).

Kernels: `torch.nn.attention.varlen` (flash attention; CUDA, half precision) and nested tensors (flash or
memory-efficient attention; CUDA, any precision) compute no padding. Everywhere else sequences of one length are put
through torch's usual attention together.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

NAME = "tokloss_packed"
_HALF = (torch.float16, torch.bfloat16)
_UNKNOWN = ("position_bias", "softcap", "s_aux")
"""What some models ask of their attention and this one does not have."""


def switch(model: Any, packed: bool) -> None:
    """Let a model of transformers call the attention for packed sequences, or its own again.

    Raises:
        Exception: it has no such thing, or does not allow it.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    now = model.config._attn_implementation
    if packed and now != NAME:
        model.own_attention = now
        model.set_attn_implementation(NAME)
    elif not packed and now == NAME:
        model.set_attn_implementation(model.own_attention)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, of one row of packed sequences.

    Args:
        query, key, value: [1, heads, tokens, width]; key and value may have fewer heads, each for several of the query.
        sliding_window: a token attends to those less than so many tokens away.
        cu_seq_lens_q: int32 [sequences + 1], where each sequence begins, and where the last ends.
        max_length_q: tokens of the longest sequence, or more.

    Returns:
        [1, tokens, heads, width] and no weights.

    Raises:
        ValueError: the model asks for something else, or does not say where sequences begin.
    """
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None or len(query) != 1:
        raise ValueError("packed attention was called without the places where sequences begin, or with a mask")
    for name in _UNKNOWN:
        if others.get(name) is not None:
            raise ValueError(f"packed attention has no {name}")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    # One operator for a compiler, which would otherwise follow it into kernels and loops over sequences.
    call = _attend_op if torch.compiler.is_compiling() else attend
    return call(q_THD, k_THD, v_THD, cu_seq_lens_q, max_length_q, is_causal, sliding_window or 0, scaling)[None], None


class _Call(NamedTuple):
    """What `attend` is called with, for its kernels."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    starts: torch.Tensor
    longest: int
    causal: bool
    window: int
    scale: float | None


def attend(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    causal: bool,
    window: int,
    scale: float | None,
) -> torch.Tensor:
    """Attention within each sequence, by the fastest kernel that is there: [tokens, heads, width of v].

    starts: int32 [sequences + 1]. window: a token attends to those less than so many tokens away; 0 to all.

    Raises:
        ValueError: no kernel for it would be faster than padding.
    """
    call = _Call(q_THD, k_THD, v_THD, starts, longest, causal, window, scale)
    if not q_THD.is_cuda:
        return _one_length_at_a_time(call)
    half, width = q_THD.dtype in _HALF, q_THD.shape[-1]
    if half and width == v_THD.shape[-1] and width % 8 == 0 and width <= 256 and has_varlen():
        return _varlen(call)
    if not window:
        return _nested(call)
    if half:
        raise ValueError("this version of torch has no packed attention with a window")
    return _one_length_at_a_time(call)


def has_varlen() -> bool:
    """Whether torch has attention for packed sequences with all that is asked of it, which it got bit by bit."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)


def _varlen(call: _Call) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Tokens to the left and to the right that one attends to; -1 is all.
    left = call.window - 1 if call.window else -1
    size = left, 0 if call.causal else left
    starts, longest = call.starts, call.longest
    out = varlen_attn(call.q, call.k, call.v, starts, starts, longest, longest, scale=call.scale, window_size=size)
    assert isinstance(out, torch.Tensor)  # what else it can give was not asked for
    return out.contiguous()


def _nested(call: _Call) -> torch.Tensor:
    # Nested tensors take tensors of inference alone or none of them: a copy made here is of the same kind as the rest.
    # Told how long sequences are, they need not ask the device.
    starts = call.starts.clone()
    jagged = torch.nested.nested_tensor_from_jagged
    q_NHLD, k_NHLD, v_NHLD = (
        jagged(x.contiguous(), starts, min_seqlen=1, max_seqlen=call.longest).transpose(1, 2)
        for x in (call.q, call.k, call.v)
    )
    out = F.scaled_dot_product_attention(q_NHLD, k_NHLD, v_NHLD, is_causal=call.causal, scale=call.scale)
    return out.transpose(1, 2).values().contiguous()


def _one_length_at_a_time(call: _Call) -> torch.Tensor:
    q, k, v, starts, _, causal, window, scale = call
    out = q.new_empty(*q.shape[:2], v.shape[2])
    for begin, end, length in _runs(starts.tolist()):
        q_NHLD, k_NHLD, v_NHLD = (x[begin:end].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
        band = None
        if 0 < window < length:
            away = torch.arange(length, device=q.device)
            away = away[:, None] - away
            band = (away < window) & (away >= 0 if causal else away > -window)
        done = F.scaled_dot_product_attention(
            q_NHLD, k_NHLD, v_NHLD, attn_mask=band, is_causal=causal and band is None, scale=scale
        )
        out[begin:end] = done.transpose(1, 2).flatten(0, 1)
    return out


def _runs(starts: list[int]) -> Iterator[tuple[int, int, int]]:
    """Where neighbouring sequences of one length begin and end, and their length; empty ones are left out."""
    begin, length = starts[0], 0
    for at, stop in itertools.pairwise(starts):
        if stop - at != length:
            if length:
                yield begin, at, length
            begin, length = at, stop - at
    if length:
        yield begin, starts[-1], length


@torch.library.custom_op("tokloss::attend", mutates_args=())
def _attend_op(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    causal: bool,
    window: int,
    scale: float | None,
) -> torch.Tensor:
    return attend(q_THD, k_THD, v_THD, starts, longest, causal, window, scale)


@_attend_op.register_fake
def _(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    causal: bool,
    window: int,
    scale: float | None,
) -> torch.Tensor:
    return q_THD.new_empty(*q_THD.shape[:2], v_THD.shape[2])
