"""Per-token cross-entropy, predictions and the two best probabilities, from logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from tokloss_ray.schema import IGNORE_INDEX


class TokenScores(NamedTuple):
    """One entry per token. `second` and `second_prob` are -1 and NaN for a model of one class.

    Attributes:
        loss: float32 [tokens], cross-entropy; exactly 0.0 where ignored.
        best, second: int64 [tokens], the class with the largest logit and the runner-up.
        best_prob, second_prob: float32 [tokens].
        finite: bool [tokens], whether all logits are.
        probs: float32 [tokens, classes], or None.
    """

    loss: torch.Tensor
    best: torch.Tensor
    best_prob: torch.Tensor
    second: torch.Tensor
    second_prob: torch.Tensor
    finite: torch.Tensor
    probs: torch.Tensor | None


def score_tokens(logits_TC: torch.Tensor, labels_T: torch.Tensor, keep_probs: bool = False) -> TokenScores:
    """Score tokens whose padding is already gone; softmax and loss are in float32 whatever the model's dtype."""
    logits_TC = logits_TC.float()
    log_probs_TC = F.log_softmax(logits_TC, dim=-1)
    loss_T = F.nll_loss(log_probs_TC, labels_T, reduction="none", ignore_index=IGNORE_INDEX)
    best_T = logits_TC.argmax(dim=-1)
    best_log_T = log_probs_TC.gather(1, best_T[:, None])[:, 0]
    if logits_TC.shape[1] > 1:
        others_TC = log_probs_TC.scatter(1, best_T[:, None], -torch.inf)
        second_log_T, second_T = others_TC.max(dim=-1)
    else:
        second_log_T, second_T = torch.full_like(best_log_T, torch.nan), torch.full_like(best_T, -1)
    return TokenScores(
        loss=loss_T,
        best=best_T,
        best_prob=best_log_T.exp(),
        second=second_T,
        second_prob=second_log_T.exp(),
        finite=torch.isfinite(logits_TC).all(dim=-1),
        probs=log_probs_TC.exp() if keep_probs else None,
    )
