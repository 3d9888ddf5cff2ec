"""The fastest loops that we could write by hand for a GPU, over encoded rows: what the scorer is held to.

They do less than the job: no retries when memory runs out, no probabilities, nothing is put back in order.
Micro-batches are formed on the host while the device computes, copied without waiting, and losses and predictions stay
on the device until one copy at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification

from tokloss_ray import schema
from tokloss_ray.ragged import list_lengths, offsets_of, one_array
from tokloss_ray.scoring.stages import attention
from tokloss_ray.scoring.stages.batching import pad, plan_batches
from tokloss_ray.scoring.stages.packing import Packing, pack

Step = Callable[[dict[str, Any], torch.Tensor], torch.Tensor]


class Rows:
    """Encoded sequences as flat arrays."""

    def __init__(self, sequences: pa.Table) -> None:
        ids = one_array(sequences.column(schema.INPUT_IDS))
        self.ids = ids.flatten().to_numpy()
        self.labels = one_array(sequences.column(schema.LABEL_IDS)).flatten().to_numpy().astype(np.int64)
        self.lengths = list_lengths(ids)
        self.starts = offsets_of(self.lengths)

    @property
    def tokens(self) -> int:
        """Without padding."""
        return len(self.ids)


def load(model: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The model as the loops call it."""
    return AutoModelForTokenClassification.from_pretrained(model, dtype=dtype).eval().to(device)


def loss_and_best(logits_TC: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
    """float32 [2, tokens]."""
    loss = F.cross_entropy(logits_TC.float(), labels_T, reduction="none", ignore_index=schema.IGNORE_INDEX)
    return torch.stack([loss, logits_TC.argmax(-1).float()])


def make_step(model: Any, compiled: bool, backend: str) -> Step:
    """The model, loss and prediction; compiled for whatever sizes come, or not."""

    def step(inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        return loss_and_best(model(**inputs).logits.flatten(0, 1), labels)

    return torch.compile(step, dynamic=True, backend=backend) if compiled else step


def padded_loop(step: Step, rows: Rows, pad_id: int, budget: int, device: torch.device) -> float:
    """Sorted by length and padded; tokens per second."""
    loop = _Loop(device)
    for chosen in plan_batches(rows.lengths, budget):
        batch = pad(rows.ids, None, rows.starts[:-1], rows.lengths, chosen, pad_id)
        labels = np.full(batch.input_ids.size, schema.IGNORE_INDEX)
        labels[batch.where] = rows.labels[batch.at]
        loop.run(step, {"input_ids": batch.input_ids, "attention_mask": batch.attention}, labels)
    return rows.tokens / loop.seconds()


def packed_loop(model: Any, step: Step, rows: Rows, budget: int, device: torch.device) -> float:
    """Sorted by length and put end to end, without padding; tokens per second."""
    attention.switch(model, packed=True)
    loop = _Loop(device)
    for chosen in plan_batches(rows.lengths, budget, packed=True):
        made = pack(rows.ids, rows.starts[:-1], rows.lengths, chosen, Packing())
        inputs = {"input_ids": made.input_ids, "position_ids": made.position_ids, "cu_seq_lens_q": made.starts}
        loop.run(step, inputs, rows.labels[made.at], {"max_length_q": made.longest})
    attention.switch(model, packed=False)
    return rows.tokens / loop.seconds()


class _Loop:
    """Times micro-batches, from the first that is formed to the last result on the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept: list[torch.Tensor] = []
        self.begin = time.perf_counter()

    @torch.inference_mode()
    def run(self, step: Step, arrays: dict[str, np.ndarray], labels: np.ndarray, others: Any = None) -> None:
        inputs = {name: self._send(array) for name, array in arrays.items()}
        self.kept.append(step(inputs | (others or {}), self._send(labels)))

    def _send(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def seconds(self) -> float:
        torch.cat(self.kept, dim=1).cpu()
        return time.perf_counter() - self.begin
