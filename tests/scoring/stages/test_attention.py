"""Attention over packed sequences, against the formula of attention written out for each sequence."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tokloss_ray.scoring.stages import attention
from tokloss_ray.scoring.stages.attention import attend, has_varlen, packed_attention

LENGTHS = [40, 33, 33, 33, 9, 9, 3, 1, 1]
MASKS = [(causal, window) for causal in (False, True) for window in (0, 1, 8, 40)]


def made(width_of_v: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return torch.randn(tokens, 2, 16), torch.randn(tokens, 2, 16), torch.randn(tokens, 2, width_of_v), starts


def formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, causal: bool, window: int, scale: float
) -> torch.Tensor:
    parts = []
    for begin, end in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * scale
        for i in range(end - begin):
            for j in range(end - begin):
                if (window and abs(i - j) >= window) or (causal and j > i):
                    scores[:, i, j] = -torch.inf
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[begin:end]))
    return torch.cat(parts)


@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_each_sequence_attends_to_itself_alone(causal: bool, window: int) -> None:
    q, k, v, starts = made(width_of_v=24)
    wanted = formula(q, k, v, starts, causal, window, 0.3)
    torch.testing.assert_close(attend(q, k, v, starts, 128, causal, window, 0.3), wanted)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors() -> None:
    """What a GPU takes in float32; also where the places where sequences begin were not made in inference mode."""
    q, k, v, starts = made()
    wanted = formula(q, k, v, starts, False, 0, 0.3)
    with torch.inference_mode():
        call = attention._Call(q.clone(), k.clone(), v.clone(), starts, 128, False, 0, 0.3)
        got = attention._nested(call)
    torch.testing.assert_close(got, wanted)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def as_documented(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What torch says of `varlen_attn`: attends to so many tokens to the left and to the right, -1 being all."""
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    left, right = (size if size >= 0 else 10**6 for size in window_size)
    parts = []
    for begin, end in zip(cu_seq_q.tolist()[:-1], cu_seq_k.tolist()[1:], strict=True):
        away = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        scores = torch.einsum("qhd,khd->hqk", query[begin:end], key[begin:end]).float() * scale
        scores = scores.masked_fill((away > left) | (away < -right), -torch.inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1).to(value.dtype), value[begin:end]))
    return torch.cat(parts)


def stand_in(monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    module = ModuleType("torch.nn.attention.varlen")
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)


@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_variable_length_kernels_are_asked_for_the_same(
    causal: bool, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, varlen_attn=as_documented)
    q, k, v, starts = (x.bfloat16() if x.is_floating_point() else x for x in made())
    got = attend(q.as_subclass(OnGpu), k, v, starts, 64, causal, window, 0.3).as_subclass(torch.Tensor)
    wanted = formula(q.float(), k.float(), v.float(), starts, causal, window, 0.3)
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.05)


def test_which_kernel_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variable-length ones in half precision, where torch has them; else nested tensors; never a slow one for them."""
    for name in ("_varlen", "_nested", "_one_length_at_a_time"):
        monkeypatch.setattr(attention, name, lambda *_, name=name: name)
    q, k, v, starts = made()

    def taken(dtype: torch.dtype, window: int = 0, width: int = 16) -> Any:
        on_gpu = [x[..., :width].to(dtype).as_subclass(OnGpu) for x in (q, k, v)]
        return attend(*on_gpu, starts, 64, False, window, None)

    stand_in(monkeypatch, varlen_attn=as_documented)
    assert [taken(torch.bfloat16), taken(torch.float16, window=8), taken(torch.bfloat16, width=12)] == [
        "_varlen",
        "_varlen",
        "_nested",
    ]
    assert [taken(torch.float32), taken(torch.float32, window=8)] == ["_nested", "_one_length_at_a_time"]
    stand_in(monkeypatch)  # an older torch
    assert taken(torch.bfloat16) == "_nested"
    with pytest.raises(ValueError, match="no packed attention with a window"):
        taken(torch.bfloat16, window=8)
    stand_in(monkeypatch, varlen_attn=lambda query, key, value, cu_seq_q, is_causal=False: None)  # its first version
    assert not has_varlen()


def call(**given: Any) -> torch.Tensor:
    q, k, v, starts = made()
    arguments: dict[str, Any] = {"cu_seq_lens_q": starts, "max_length_q": 64, "attention_mask": None, "scaling": 0.3}
    query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
    return packed_attention(SimpleNamespace(), query, key, value, **arguments | given)[0]  # type: ignore[arg-type]


def test_as_transformers_calls_it() -> None:
    q, k, v, starts = made()
    assert call(is_causal=False).shape == (1, len(q), 2, 16)
    torch.testing.assert_close(call(is_causal=False)[0], formula(q, k, v, starts, False, 0, 0.3))
    torch.testing.assert_close(call(sliding_window=8)[0], formula(q, k, v, starts, True, 8, 0.3))  # causal unless told


def test_heads_that_share_keys() -> None:
    q, k, v, starts = made()
    one_head = [x[:, :1].transpose(0, 1)[None] for x in (k, v)]
    got, _ = packed_attention(
        SimpleNamespace(is_causal=False),  # type: ignore[arg-type]
        q.transpose(0, 1)[None],
        *one_head,
        None,
        scaling=0.3,
        cu_seq_lens_q=starts,
        max_length_q=64,
    )
    wanted = formula(q, k[:, :1].expand(-1, 2, -1), v[:, :1].expand(-1, 2, -1), starts, False, 0, 0.3)
    torch.testing.assert_close(got[0], wanted)


@pytest.mark.parametrize(
    "given",
    [
        {"cu_seq_lens_q": None},
        {"attention_mask": torch.ones(1, 1, 1, 1)},
        {"position_bias": torch.zeros(1)},
        {"softcap": 30.0},
    ],
)
def test_what_it_cannot_do_it_does_not(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="packed attention"):
        call(**given)


def test_one_operator_for_compilers() -> None:
    """It neither changes nor returns what it is given, and its shape is known without computing it."""
    torch.library.opcheck(
        attention._attend_op,
        (*made(width_of_v=24), 64, True, 8, None),
        test_utils=("test_schema", "test_faketensor"),
    )
