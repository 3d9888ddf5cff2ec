"""What is done with a micro-batch on the device: through the model, and to what is kept of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tokloss_ray.errors import first_sentence
from tokloss_ray.scoring.stages import attention
from tokloss_ray.scoring.stages.compiling import Compiled
from tokloss_ray.scoring.stages.loss import WORDS, score_tokens, to_words
from tokloss_ray.scoring.stages.packing import Pack


class DeviceBatch(NamedTuple):
    """A padded micro-batch on the device, as the model takes it.

    Attributes:
        input_ids: int64 [batch, sequence], padded on the right.
        attention: int64 [batch, sequence], 0 on padding, and where a row's own mask says so. None masks nothing.
        where: int64 [tokens], flat positions in the batch of the rows' tokens.
        labels: int64 [tokens], of the same tokens.
    """

    input_ids: torch.Tensor
    attention: torch.Tensor | None
    where: torch.Tensor
    labels: torch.Tensor


class PackedBatch(NamedTuple):
    """A micro-batch without padding: its sequences end to end.

    Attributes:
        input_ids, position_ids: int64 [1, tokens].
        starts: int32 [sequences + 1], where each sequence begins, and the number of tokens.
        longest: tokens of the longest sequence, or more.
        labels: int64 [tokens].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    starts: torch.Tensor
    longest: int
    labels: torch.Tensor


def on_host(pack: Pack, labels: np.ndarray) -> PackedBatch:
    """A pack as tensors, with the labels of its tokens, int64 [tokens]."""
    ids, positions, starts = (torch.from_numpy(array) for array in (pack.input_ids, pack.position_ids, pack.starts))
    return PackedBatch(ids, positions, starts, pack.longest, torch.from_numpy(labels))


def on_device(batch: DeviceBatch | PackedBatch, device: torch.device) -> DeviceBatch | PackedBatch:
    """A micro-batch that is on the host on a device."""
    return type(batch)(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in batch))  # type: ignore[arg-type]


def logits_of(model: nn.Module, batch: DeviceBatch | PackedBatch) -> torch.Tensor:
    """Logits [tokens, classes] of the tokens of a micro-batch, without padding."""
    if isinstance(batch, PackedBatch):
        inputs = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "cu_seq_lens_q": batch.starts,
            "cu_seq_lens_k": batch.starts,
            "max_length_q": batch.longest,
            "max_length_k": batch.longest,
        }
        return model(**inputs).logits[0]
    logits_BLC = model(input_ids=batch.input_ids, attention_mask=batch.attention).logits
    # By position: indexing by a mask would wait for the device to count it.
    return logits_BLC.flatten(0, 1).index_select(0, batch.where)


class Forward:
    """From a micro-batch on the device to the scores of its tokens, also there: nothing in it waits for the device.

    Args:
        model: on the device, in eval mode.
        keep_probs: whether the probabilities of all classes are kept; keep_entropy: whether their entropy is.
    """

    def __init__(self, model: nn.Module, keep_probs: bool = False, keep_entropy: bool = False) -> None:
        self.model: Any = model
        self.keep_probs, self.keep_entropy = keep_probs, keep_entropy
        self._packed = False
        self._compiled: Compiled | None = None

    @torch.inference_mode()
    def __call__(self, batch: DeviceBatch | PackedBatch) -> torch.Tensor:
        """The tokens' scores, in the order of the micro-batch, as one tensor for the way to the host (`loss.to_words`).

        Micro-batches of both kinds may take turns, but not at the same time.

        Raises:
            RuntimeError, MemoryError: memory ran out, among others; the call may then be repeated with less.
        """
        self._switch(batch)
        return self._step(batch) if self._compiled is None else self._compiled(batch)

    @torch.inference_mode()
    def compile(self, examples: Sequence[DeviceBatch | PackedBatch], classes: int) -> str:
        """Compile the work on a micro-batch; where that fails, it goes on as it is.

        Args:
            examples: at least two micro-batches of the kind that most will be of, with no size in common.
            classes: of the model.

        Returns:
            "yes", or "no: " and the reason.
        """
        self._switch(examples[0])
        exact = {parameter.dtype for parameter in self.model.parameters()} <= {torch.float32}
        try:
            width = WORDS + self.keep_entropy + classes * self.keep_probs
            self._compiled = Compiled(self._step, examples, width, exact)
        except Exception as error:  # a compiler raises what it likes
            return f"no: {first_sentence(error)}"
        return "yes"

    def _step(self, batch: DeviceBatch | PackedBatch) -> torch.Tensor:
        scores = score_tokens(logits_of(self.model, batch), batch.labels, self.keep_probs, self.keep_entropy)
        return to_words(scores)

    def _switch(self, batch: DeviceBatch | PackedBatch) -> None:
        """Let the model call the attention for this kind of micro-batch."""
        if (packed := isinstance(batch, PackedBatch)) != self._packed:
            attention.switch(self.model, packed)
            self._packed = packed
