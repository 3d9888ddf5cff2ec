"""The model actor's work: a loaded model on one device, which scores shards."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tokloss_ray import schema
from tokloss_ray.faults import fault_point
from tokloss_ray.model.packed_linear import pack
from tokloss_ray.schema import EQUAL_LENGTH, PACKED, PADDED
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.budget import Budget, find_budget, is_out_of_memory
from tokloss_ray.scoring.stages.compiling import pays
from tokloss_ray.scoring.stages.cuda import CudaDevice, keep_to_share, set_precision
from tokloss_ray.scoring.stages.device_queue import DeviceQueue, Spent
from tokloss_ray.scoring.stages.forward import Forward, on_device
from tokloss_ray.scoring.stages.journal import Journal
from tokloss_ray.scoring.stages.loading import load_model
from tokloss_ray.scoring.stages.packing import Packing
from tokloss_ray.scoring.stages.packing_probe import find_packing
from tokloss_ray.scoring.stages.probe import LONG, Probe, find_batching, needs_mask
from tokloss_ray.scoring.stages.work import Prepared, Work
from tokloss_ray.threads import in_context

MAX_STREAMS = 8
"""Python runs one stream at a time between their products; more than this would wait for each other there."""
MEASURED_LENGTH = 512
"""Tokens of the sequences with which a GPU's budget is found: as long as most models allow, where attention that keeps
its scores takes the most memory."""


class Scorer:
    """A loaded model on one device. On a GPU, several threads may score a shard each at the same time.

    Args:
        job: what to load and how to score.
        threads: CPU threads the model may use; None leaves torch's own setting.
        gpus: GPUs of this process, or the part of one; 0 computes on the CPU.

    Raises:
        JobFailed: the model cannot be loaded, its weights have no token-classification head, or its answers cannot be
            repeated.
    """

    def __init__(self, job: Job, threads: int | None = None, gpus: float = 0.0) -> None:
        self.job = job
        self.device = torch.device("cuda" if gpus else "cpu")
        if gpus:
            share = keep_to_share(gpus)
            set_precision(job.tf32)
            # On the host torch only copies. Threads that share a copy wait for each other, on cores that others need.
            threads = 1
        else:
            threads = threads or torch.get_num_threads()
        torch.set_num_threads(threads)
        self.model = load_model(job).to(self.device).eval()
        probe = Probe(job, self.device)
        self.batching, self.shortest, shared = find_batching(self.model, probe, lambda: load_model(job))
        self.packing: Packing | None = None
        if self.batching == PADDED and (job.packing == "on" or (job.packing == "auto" and gpus)):
            self.packing = find_packing(self.model, probe)
        if self.packing is not None:
            self.batching = PACKED
        self.forward = Forward(self.model, job.keep_probs, job.keep_entropy)
        self.compiled: str | None = None
        if job.compile == "on" or (job.compile == "auto" and gpus and pays(self.model, job.tokens_each)):
            self.compiled = self._compile(probe)
        # A compiled model has its mask built in, and on a CPU to look for padding in it costs nothing.
        unmasked = gpus and self.packing is None and self.compiled != "yes"
        self.maskless = bool(unmasked) and not needs_mask(self.model, probe)
        self.budget = Budget(job.batch_tokens)
        self.queue: DeviceQueue | None = None
        self.streams = 1
        if gpus:
            device = CudaDevice(self.device, share)
            if job.find_budget:
                self.budget = Budget(self._budget_of(device, probe))
            self.queue = DeviceQueue(device, self.forward, self.budget)
        else:
            if self.compiled != "yes":  # a compiler has layers of its own
                pack(self.model, probe.padded)
            # Threads that share one product wait for each other at its end, and all for one that lost its core for a
            # moment. Streams that each compute a micro-batch of their own do not, where the model keeps nothing of one.
            self.streams = min(threads, MAX_STREAMS) if shared and self.compiled != "yes" else 1
            threads //= self.streams
            torch.set_num_threads(threads)
            self.pool = ThreadPoolExecutor(self.streams, initializer=torch.set_num_threads, initargs=(threads,))
        self.idle_since = time.perf_counter()

    def score(self, sequences: pa.Table, journal: Journal | None = None) -> tuple[pa.Table, dict[str, Any]]:
        """Add predictions and losses to the sequences of a shard.

        With a journal carefully: with half the budget, one micro-batch after another, each noted before.

        Returns the table with predicted_ids, loss, predicted_prob, second_ids, second_prob (entropy, probs), lists as
        long as input_ids, and problem, which is null or the reason why a sequence could not be scored; and the figures
        padded_tokens, batch_tokens, batching, compiled, memory_splits (micro-batches that were halved) and seconds:
        score, for which the device computed, and wait, for which it had nothing to do before and between.
        """
        classes = len(self.job.tags) * self.job.keep_probs
        entropies = int(self.job.keep_entropy)
        pad_id, shortest = self.job.pad_token_id, self.shortest
        work = Work(sequences, pad_id, shortest, classes, self.packing, entropies, self.maskless)
        budget, equal_length = self.budget.tokens, self.batching == EQUAL_LENGTH
        if journal is None:
            work.plan(budget, equal_length)
            spent = self._score(work)
        else:
            budget = max(1, self.budget.limit // 2)
            work.take(journal.batches(work.lengths, budget, equal_length))
            work.too_big += journal.poison
            spent = self._score(work, lambda rows: journal.write(rows.tolist()))
            journal.write([])
        figures: dict[str, Any] = {"padded_tokens": work.padded, "batch_tokens": min(budget, self.budget.tokens)}
        batching = PADDED if self.batching == PACKED and work.packing is None else self.batching
        figures |= {"batching": batching, "compiled": self.compiled, "memory_splits": work.splits}
        return work.scored(), figures | {"seconds": {"wait": round(spent.waited, 6), "score": round(spent.busy, 6)}}

    def _score(self, work: Work, note: Callable[[np.ndarray], None] | None = None) -> Spent:
        """Score all micro-batches of a shard; `note` is told of each before, and then they come one by one."""
        if self.queue is not None:
            return self.queue.score(work, in_context(note) if note else None)
        begin = time.perf_counter()
        waited = begin - self.idle_since
        if note is not None or self.streams == 1:
            self._stream(work, note or (lambda rows: None))
        else:
            for done in [self.pool.submit(self._stream, work) for _ in range(self.streams)]:
                done.result()
        self.idle_since = time.perf_counter()
        return Spent(waited, self.idle_since - begin)

    def _stream(self, work: Work, note: Callable[[np.ndarray], None] = lambda rows: None) -> None:
        """Score micro-batches on the CPU until none is left; several streams may take from the same work."""
        while (rows := work.next(self.budget.tokens)) is not None:
            note(rows)
            fault_point("score.batch", work.names(rows))
            batch = work.prepare(rows)
            words = self._on_cpu(batch)
            if words is not None:
                work.keep(batch, words)
                self.budget.fitted(batch.size)
                continue
            if len(rows) > 1:
                self.budget.failed(batch.size)
            work.not_fitting(rows)

    def _on_cpu(self, batch: Prepared) -> np.ndarray | None:
        """The scores of one micro-batch; None if memory ran out."""
        try:
            return self.forward(batch.inputs).numpy()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _compile(self, probe: Probe) -> str:
        """Compile what is done with a micro-batch, if that can be: yes, or no and why."""
        packed = self.packing is not None
        lengths = ((33, 18, 9), (LONG, 33, 18, 9, 3)) if packed else ((33,) * 3, (LONG,) * 5)
        examples = []
        for of_one in lengths:
            work = self._made_up([probe.row(length, seed) for seed, length in enumerate(of_one)])
            examples.append(on_device(work.prepare(np.arange(len(of_one))).inputs, self.device))
        return self.forward.compile(examples, len(self.job.tags))

    def _made_up(self, rows: list[np.ndarray]) -> Work:
        lists = pa.array(rows, pa.list_(pa.int32()))
        table = pa.table({schema.INPUT_IDS: lists, schema.LABEL_IDS: lists})
        work = Work(table, self.job.pad_token_id, packing=self.packing)
        work.labels %= len(self.job.tags)
        return work

    def _budget_of(self, device: CudaDevice, probe: Probe) -> int:
        """Padded tokens of a micro-batch for which this GPU's memory suffices."""

        def measure(tokens: int) -> int | None:
            length = min(MEASURED_LENGTH, self.job.max_length)
            rows = [probe.row(length, seed) for seed in range(max(1, tokens // length))]
            inputs = self._made_up(rows).prepare(np.arange(len(rows))).inputs
            try:
                return device.peak(lambda: device.launch(self.forward, inputs).result())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            device.release()
            return None

        measure(MEASURED_LENGTH)  # libraries take memory of their own at the first call
        return find_budget(measure, device.room(), self.job.batch_tokens)
