"""What is done with a micro-batch on the device: through the model, and to what is kept of each token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from tokloss_ray.scoring.stages.loss import score_tokens, to_words


class DeviceBatch(NamedTuple):
    """A micro-batch on the device, as the model takes it.

    Attributes:
        input_ids: int64 [batch, sequence], padded on the right.
        attention: int64 [batch, sequence], 0 on padding, and where a row's own mask says so.
        where: int64 [tokens], flat positions in the batch of the rows' tokens.
        labels: int64 [tokens], of the same tokens.
    """

    input_ids: torch.Tensor
    attention: torch.Tensor
    where: torch.Tensor
    labels: torch.Tensor


class Forward:
    """From a micro-batch on the device to the scores of its tokens, also there: nothing in it waits for the device.

    Args:
        model: on the device, in eval mode.
        keep_probs: whether the probabilities of all classes are kept.
    """

    def __init__(self, model: nn.Module, keep_probs: bool = False) -> None:
        self.model, self.keep_probs = model, keep_probs

    @torch.inference_mode()
    def __call__(self, batch: DeviceBatch) -> torch.Tensor:
        """The tokens' scores, in the order of `where`, as one tensor for the way to the host (`loss.to_words`).

        Raises:
            RuntimeError, MemoryError: memory ran out, among others; the call may then be repeated with less.
        """
        logits_BLC = self.model(input_ids=batch.input_ids, attention_mask=batch.attention).logits
        # By position: indexing by a mask would wait for the device to count it.
        logits_TC = logits_BLC.flatten(0, 1).index_select(0, batch.where)
        return to_words(score_tokens(logits_TC, batch.labels, self.keep_probs))
