"""Per-token cross-entropy, predictions and the two best probabilities, from logits, and their way to the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
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
        entropy: float32 [tokens], of the classes' probabilities in nats, or None.
        probs: float32 [tokens, classes], or None.
    """

    loss: torch.Tensor
    best: torch.Tensor
    best_prob: torch.Tensor
    second: torch.Tensor
    second_prob: torch.Tensor
    finite: torch.Tensor
    entropy: torch.Tensor | None
    probs: torch.Tensor | None


class HostScores(NamedTuple):
    """The same on the host: int32 where `TokenScores` has int64; entropies are [tokens, 1]. Those and probabilities are
    [tokens, 0] if none are kept.
    """

    loss: np.ndarray
    best: np.ndarray
    best_prob: np.ndarray
    second: np.ndarray
    second_prob: np.ndarray
    finite: np.ndarray
    entropy: np.ndarray
    probs: np.ndarray


WORDS = 6
"""Of a token on its way to the host, without entropy and probabilities."""


def score_tokens(
    logits_TC: torch.Tensor, labels_T: torch.Tensor, keep_probs: bool = False, keep_entropy: bool = False
) -> TokenScores:
    """Score tokens whose padding is already gone; softmax and loss are in float32 whatever the model's dtype."""
    # On a GPU the softmax reads low precision and widens it in registers: no copy of the logits in float32 is made.
    log_probs_TC = F.log_softmax(logits_TC, dim=-1, dtype=torch.float32)
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
        entropy=torch.special.entr(log_probs_TC.exp()).sum(dim=-1) if keep_entropy else None,
        probs=log_probs_TC.exp() if keep_probs else None,
    )


def to_words(scores: TokenScores) -> torch.Tensor:
    """Everything that is kept of some tokens as one tensor, so that one copy brings it to the host.

    Returns:
        int32 [tokens * (6 + classes)], one field after the other; floats with the bits they have; classes are 0 without
        probabilities, and entropies are one field more.
    """
    fields = [field.flatten() for field in scores if field is not None]
    return torch.cat([field.view(torch.int32) if field.is_floating_point() else field.int() for field in fields])


def from_words(words: np.ndarray, tokens: int, classes: int, entropies: int = 0) -> HostScores:
    """The fields of what `to_words` has made of so many tokens, as views; `classes` is 0 without probabilities,
    `entropies` 1 with entropies.
    """
    loss, best, best_prob, second, second_prob, finite = words[: tokens * 6].reshape(6, tokens)
    return HostScores(
        loss=loss.view(np.float32),
        best=best,
        best_prob=best_prob.view(np.float32),
        second=second,
        second_prob=second_prob.view(np.float32),
        finite=finite,
        entropy=words[tokens * 6 : tokens * (6 + entropies)].reshape(tokens, entropies).view(np.float32),
        probs=words[tokens * (6 + entropies) :].reshape(tokens, classes).view(np.float32),
    )


def scattered(
    parts: Iterable[tuple[np.ndarray, HostScores]], tokens: int, classes: int, entropies: int = 0
) -> HostScores:
    """Scores of `tokens` tokens from those of parts, each with their positions [tokens]; zeros where there are none."""
    whole = HostScores(
        loss=np.zeros(tokens, np.float32),
        best=np.zeros(tokens, np.int32),
        best_prob=np.zeros(tokens, np.float32),
        second=np.zeros(tokens, np.int32),
        second_prob=np.zeros(tokens, np.float32),
        finite=np.zeros(tokens, bool),
        entropy=np.zeros((tokens, entropies), np.float32),
        probs=np.zeros((tokens, classes), np.float32),
    )
    for at, part in parts:
        for out, values in zip(whole, part, strict=True):
            out[at] = values
    return whole
