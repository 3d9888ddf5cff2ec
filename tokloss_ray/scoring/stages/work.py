"""One shard while it is scored: which micro-batches are left, how one is formed, and what came of the others."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from tokloss_ray import schema
from tokloss_ray.faults import armed
from tokloss_ray.ragged import any_per_row, list_array, list_lengths, offsets_of, one_array
from tokloss_ray.scoring.stages.batching import fitting, pad, plan_batches
from tokloss_ray.scoring.stages.forward import DeviceBatch, PackedBatch, on_host
from tokloss_ray.scoring.stages.loss import from_words, scattered
from tokloss_ray.scoring.stages.packing import Packing, pack


class Prepared(NamedTuple):
    """A micro-batch that is ready for the model.

    Attributes:
        rows: the sequences' numbers in the shard, [batch].
        at: flat positions in the shard of their tokens, [tokens].
        size: tokens, with padding.
        inputs: what the model gets, still on the host.
    """

    rows: np.ndarray
    at: np.ndarray
    size: int
    inputs: DeviceBatch | PackedBatch


class Work:
    """The ragged arrays of a shard, its micro-batches and its results. Several threads may take from it and add to it.

    Args:
        sequences: the shard's.
        pad_id: token id of padding.
        shortest: tokens of the shortest sequence that the model answers.
        classes: whose probabilities are kept; 0 keeps none.
        packing: how the model takes sequences end to end; None pads them.
        entropies: 1 keeps them.
        maskless: whether the model gets no mask where nothing is padded.

    Attributes:
        packing: the same; None if a sequence has a mask of its own, which packed ones cannot have.
    """

    def __init__(
        self,
        sequences: pa.Table,
        pad_id: int,
        shortest: int = 1,
        classes: int = 0,
        packing: Packing | None = None,
        entropies: int = 0,
        maskless: bool = False,
    ) -> None:
        self.sequences, self.pad_id, self.shortest = sequences, pad_id, shortest
        self.classes, self.entropies, self.maskless = classes, entropies, maskless
        column = one_array(sequences.column(schema.INPUT_IDS))
        self.lengths = list_lengths(column)
        self.offsets = offsets_of(self.lengths)
        self.ids = column.flatten().to_numpy()
        self.mask: np.ndarray | None = None
        if schema.ATTENTION_MASK in sequences.column_names:
            self.mask = one_array(sequences.column(schema.ATTENTION_MASK)).flatten().to_numpy()
        self.packing = packing if self.mask is None or self.mask.all() else None
        labels = one_array(sequences.column(schema.LABEL_IDS)).flatten().to_numpy()
        self.labels = labels.astype(np.int64)
        self.scores = scattered((), int(self.offsets[-1]), classes, entropies)
        self.too_short = np.flatnonzero(self.lengths < shortest)
        self.too_big: list[int] = []
        self.padded = 0
        self.splits = 0
        self._batches: list[np.ndarray] = []
        self._lock = threading.Lock()

    def plan(self, budget: int, equal_length: bool) -> None:
        """Cut the shard into micro-batches."""
        self.take(plan_batches(self.lengths, budget, equal_length, self.packing is not None))

    def take(self, batches: list[np.ndarray]) -> None:
        """Micro-batches that were made elsewhere, in the order in which they are to be scored."""
        if len(self.too_short):
            batches = [rest for rows in batches if len(rest := rows[self.lengths[rows] >= self.shortest])]
        self._batches = batches[::-1]

    def names(self, rows: np.ndarray) -> str:
        """Ids of some sequences, for fault points."""
        return " ".join(f"{self.sequences.column(schema.EXAMPLE_ID)[i]}." for i in rows.tolist()) if armed() else ""

    @property
    def left(self) -> bool:
        """Whether a micro-batch is left."""
        return bool(self._batches)

    def next(self, budget: int) -> np.ndarray | None:
        """The sequences of the next micro-batch; one that was planned before memory ran out is cut to the budget."""
        with self._lock:
            if not self._batches:
                return None
            rows = self._batches.pop()
            count = fitting(self.lengths[rows], budget, self.packing is not None)
            if len(rows) > count:
                self._batches.append(rows[count:])
            return rows[:count]

    def prepare(self, rows: np.ndarray) -> Prepared:
        """Put some sequences end to end, or pad them."""
        if self.packing is not None:
            made = pack(self.ids, self.offsets, self.lengths, rows, self.packing)
            return Prepared(rows, made.at, len(made.at), on_host(made, self.labels[made.at]))
        batch = pad(self.ids, self.mask, self.offsets, self.lengths, rows, self.pad_id)
        arrays = batch.input_ids, batch.attention, batch.where, self.labels[batch.at]
        inputs = DeviceBatch(*map(torch.from_numpy, arrays))
        if self.maskless and batch.attention.all():
            inputs = inputs._replace(attention=None)
        return Prepared(rows, batch.at, batch.attention.size, inputs)

    def keep(self, batch: Prepared, words: np.ndarray) -> None:
        """Put the scores of a micro-batch (`loss.to_words`) where its sequences are in the shard."""
        scores = from_words(words, len(batch.at), self.classes, self.entropies)
        for whole, part in zip(self.scores, scores, strict=True):
            whole[batch.at] = part
        with self._lock:
            self.padded += batch.size

    def not_fitting(self, rows: np.ndarray) -> None:
        """Sequences for which memory does not suffice: half of them are tried next, or one alone is given up."""
        with self._lock:
            if len(rows) > 1:
                self.splits += 1
                self._batches.append(rows)
            else:
                self.too_big.append(int(rows[0]))

    def scored(self) -> pa.Table:
        """The shard with the columns that `Scorer.score` adds, once nothing is left."""
        scores, offsets, table = self.scores, self.offsets, self.sequences
        reason = np.full(len(offsets) - 1, None, dtype=object)
        reason[any_per_row(~scores.finite, offsets)] = "non_finite"
        reason[self.too_big] = "out_of_memory"
        reason[self.too_short] = "too_short"
        no_second = scores.second < 0
        made = {
            schema.PREDICTED_IDS: scores.best,
            schema.LOSS: scores.loss,
            schema.PREDICTED_PROB: scores.best_prob,
            schema.SECOND_IDS: pa.array(scores.second, mask=no_second),
            schema.SECOND_PROB: pa.array(scores.second_prob, mask=no_second),
        }
        if self.entropies:
            made[schema.ENTROPY] = scores.entropy[:, 0]
        for name, values in made.items():
            table = table.append_column(name, list_array(values, offsets))
        if self.classes:
            inner = list_array(scores.probs.reshape(-1), np.arange(len(scores.loss) + 1) * self.classes)
            table = table.append_column(schema.PROBS, list_array(inner, offsets))
        return table.append_column(schema.PROBLEM, pa.array(reason, pa.string()))
