"""Losses and probabilities, against torch's own in float64."""

from __future__ import annotations

import pytest
import torch

from tokloss_ray.scoring.stages.loss import score_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_cross_entropy_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits_TC = (torch.randn(200, 5) * 6).to(dtype)
    labels_T = torch.randint(0, 5, (200,))
    labels_T[::3] = -100
    scores = score_tokens(logits_TC, labels_T, keep_probs=True)
    wide = logits_TC.double()
    expected = torch.nn.functional.cross_entropy(wide, labels_T, reduction="none")
    torch.testing.assert_close(scores.loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert (scores.loss[::3] == 0.0).all()
    probs = wide.softmax(-1)
    top = probs.topk(2, dim=-1)
    torch.testing.assert_close(scores.best_prob.double(), top.values[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.second_prob.double(), top.values[:, 1], rtol=1e-5, atol=1e-6)
    assert (scores.best == logits_TC.float().argmax(-1)).all()
    assert scores.probs is not None
    torch.testing.assert_close(scores.probs.double(), probs, rtol=1e-5, atol=1e-6)
    assert scores.loss.dtype == torch.float32


def test_one_class_has_no_second() -> None:
    scores = score_tokens(torch.zeros(3, 1), torch.tensor([0, 0, -100]))
    assert scores.second.tolist() == [-1, -1, -1]
    assert scores.loss.tolist() == [0.0, 0.0, 0.0]
