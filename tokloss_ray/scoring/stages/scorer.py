"""The model actor: holds a token-classification model and scores one shard at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed
from tokloss_ray.faults import armed, fault_point
from tokloss_ray.model.packed_linear import pack
from tokloss_ray.model.store import check_unchanged, fetch_model
from tokloss_ray.ragged import any_per_row, list_array, list_lengths, offsets_of, one_array
from tokloss_ray.schema import EQUAL_LENGTH
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.batching import MicroBatch, pad, plan_batches
from tokloss_ray.scoring.stages.forward import DeviceBatch, Forward
from tokloss_ray.scoring.stages.journal import Journal
from tokloss_ray.scoring.stages.loss import from_words, scattered
from tokloss_ray.scoring.stages.probe import Probe, find_batching

MAX_STREAMS = 8
"""Python runs one stream at a time between their products; more than this would wait for each other there."""

CONTEXT_BYTES = 600 << 20
"""About what CUDA itself takes of a GPU's memory in each process, which torch does not count."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "_STATUS_ALLOC_FAILED")
"""How CUDA, torch's allocator on Linux and macOS, the same on Windows, C++ and NVIDIA's libraries say it."""


def keep_to_share(gpus: float) -> None:
    """Let this process take no more of its GPU's memory than its part of the GPU.

    Actors on one GPU would else take it from each other: torch keeps what it has once taken, and the one that comes
    second halves its micro-batches for good.

    Args:
        gpus: what the actor has asked Ray for. A whole GPU or more is nobody else's, and 0 is a CPU.
    """
    if 0 < gpus < 1:
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(max(gpus / 2, gpus - CONTEXT_BYTES / total))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or on the CPU, for which torch has a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


class _Work:
    """One shard while it is scored: its ragged arrays, the micro-batches that are left, and what came of the others."""

    def __init__(self, sequences: pa.Table, budget: int, equal_length: bool) -> None:
        self.sequences = sequences
        column = one_array(sequences.column(schema.INPUT_IDS))
        self.lengths = list_lengths(column)
        self.offsets = offsets_of(self.lengths)
        self.ids = column.flatten().to_numpy()
        self.mask: np.ndarray | None = None
        if schema.ATTENTION_MASK in sequences.column_names:
            self.mask = one_array(sequences.column(schema.ATTENTION_MASK)).flatten().to_numpy()
        labels = one_array(sequences.column(schema.LABEL_IDS)).flatten().to_numpy()
        self.labels_T = torch.from_numpy(labels.astype(np.int64))
        self.batches = plan_batches(self.lengths, budget, equal_length)[::-1]
        self.scored: list[tuple[np.ndarray, torch.Tensor, int]] = []
        self.too_big: list[int] = []
        self.too_short: list[int] = []
        self.splits = 0
        self.lock = threading.Lock()

    def names(self, rows: np.ndarray) -> str:
        """Ids of some sequences, for fault points."""
        return " ".join(f"{self.sequences.column(schema.EXAMPLE_ID)[i]}." for i in rows.tolist()) if armed() else ""

    @property
    def padded(self) -> int:
        """Padded tokens of the micro-batches that were scored."""
        return sum(size for _, _, size in self.scored)

    def next(self, budget: int) -> np.ndarray | None:
        """The sequences of the next micro-batch; one that was planned before memory ran out is cut to the budget."""
        with self.lock:
            if not self.batches:
                return None
            rows = self.batches.pop()
            fitting = max(1, budget // int(self.lengths[rows[0]]))
            if len(rows) > fitting:
                self.batches.append(rows[fitting:])
            return rows[:fitting]


class Scorer:
    """A loaded model on one device.

    Args:
        job: what to load and how to score.
        threads: CPU threads the model may use; None leaves torch's own setting.
        device: torch device, such as cuda or cpu.

    Raises:
        JobFailed: the model cannot be loaded, its weights have no token-classification head, or its answers cannot be
            repeated.
    """

    def __init__(self, job: Job, threads: int | None = None, device: str = "cpu") -> None:
        self.job = job
        self.device = torch.device(device)
        self.budget = job.batch_tokens
        cpu = self.device.type == "cpu"
        if cpu:
            threads = threads or torch.get_num_threads()
        else:
            torch.backends.cudnn.allow_tf32 = False  # convolutions in float32 mean float32
        if threads:
            torch.set_num_threads(threads)
        self.model = load_model(job).to(self.device).eval()
        probe = Probe(job, self.device)
        self.batching, self.shortest, shared = find_batching(self.model, probe, lambda: load_model(job))
        self.streams = 1
        if cpu:
            pack(self.model, probe.padded)
            # Threads that share one product wait for each other at its end, and all for one that lost its core for a
            # moment. Streams that each compute a micro-batch of their own do not, where the model keeps nothing of one.
            self.streams = min(threads or 1, MAX_STREAMS) if shared else 1
            threads = (threads or 1) // self.streams
            torch.set_num_threads(threads)
        self.forward = Forward(self.model, job.keep_probs)
        self.pool = ThreadPoolExecutor(self.streams, initializer=torch.set_num_threads, initargs=(threads or 1,))

    def score(self, sequences: pa.Table, journal: Journal | None = None) -> tuple[pa.Table, dict[str, Any]]:
        """Add predictions and losses to the sequences of a shard.

        With a journal carefully: with half the budget, one micro-batch after another, each noted before.

        Returns the table with predicted_ids, loss, predicted_prob, second_ids, second_prob (and probs), lists as long
        as input_ids, and problem, which is null or the reason why a sequence could not be scored; and the figures
        padded_tokens, batch_tokens, batching, memory_splits (micro-batches that were halved) and seconds.
        """
        begin = time.perf_counter()
        budget = self.budget if journal is None else max(1, self.job.batch_tokens // 2)
        equal_length = self.batching == EQUAL_LENGTH
        work = _Work(sequences, budget, equal_length)
        if journal is not None:
            work.batches = journal.batches(work.lengths, budget, equal_length)[::-1]
            work.too_big += journal.poison
            self._stream(work, lambda rows: journal.write(rows.tolist()))
            journal.write([])
        elif self.streams == 1:
            self._stream(work)
        else:
            for done in [self.pool.submit(self._stream, work) for _ in range(self.streams)]:
                done.result()
        table = self._gather(sequences, work)
        budget = min(budget, self.budget)
        figures = {"padded_tokens": work.padded, "batch_tokens": budget, "batching": self.batching}
        figures["memory_splits"] = work.splits
        return table, figures | {"seconds": time.perf_counter() - begin}

    def _stream(self, work: _Work, note: Callable[[np.ndarray], None] = lambda rows: None) -> None:
        """Score micro-batches until none is left; several streams may take from the same work."""
        while (rows := work.next(self.budget)) is not None:
            if work.lengths[rows[0]] < self.shortest:
                work.too_short += rows.tolist()
                continue
            note(rows)
            fault_point("score.batch", work.names(rows))
            batch = pad(work.ids, work.mask, work.offsets, work.lengths, rows, self.job.pad_token_id)
            scores = self._forward(batch, work.labels_T)
            if scores is not None:
                work.scored.append((batch.at, scores, batch.attention.size))
            elif len(rows) > 1:
                # Half of it, and no larger batch from here on: what did not fit once will not fit later.
                self.budget = min(self.budget, max(1, batch.attention.size // 2))
                with work.lock:
                    work.splits += 1
                    work.batches.append(rows)
            else:
                work.too_big.append(int(rows[0]))

    def _forward(self, batch: MicroBatch, labels_T: torch.Tensor) -> torch.Tensor | None:
        """Scores of one micro-batch, still on the device so that nothing waits for it; None if memory ran out."""
        try:
            on_device = DeviceBatch(
                input_ids=self._to_device(torch.from_numpy(batch.input_ids)),
                attention=self._to_device(torch.from_numpy(batch.attention)),
                where=self._to_device(torch.from_numpy(batch.where)),
                labels=self._to_device(labels_T[torch.from_numpy(batch.at)]),
            )
            return self.forward(on_device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _gather(self, sequences: pa.Table, work: _Work) -> pa.Table:
        """Put the scores of all micro-batches back in the order of the shard; the only wait for the device."""
        scored, offsets = work.scored, work.offsets
        classes = len(self.job.tags) if self.job.keep_probs else 0
        parts = ((at, from_words(words.cpu().numpy(), len(at), classes)) for at, words, _ in scored)
        scores = scattered(parts, int(offsets[-1]), classes)
        reason = np.full(len(offsets) - 1, None, dtype=object)
        reason[any_per_row(~scores.finite, offsets)] = "non_finite"
        reason[work.too_big] = "out_of_memory"
        reason[work.too_short] = "too_short"
        no_second = scores.second < 0
        made = {
            schema.PREDICTED_IDS: scores.best,
            schema.LOSS: scores.loss,
            schema.PREDICTED_PROB: scores.best_prob,
            schema.SECOND_IDS: pa.array(scores.second, mask=no_second),
            schema.SECOND_PROB: pa.array(scores.second_prob, mask=no_second),
        }
        for name, values in made.items():
            sequences = sequences.append_column(name, list_array(values, offsets))
        if self.job.keep_probs:
            inner = list_array(scores.probs.reshape(-1), np.arange(len(scores.loss) + 1) * classes)
            sequences = sequences.append_column(schema.PROBS, list_array(inner, offsets))
        return sequences.append_column(schema.PROBLEM, pa.array(reason, pa.string()))


def load_model(job: Job) -> torch.nn.Module:
    """The model in the job's dtype, from local files only.

    Raises:
        JobFailed: with the cause in one sentence.
    """
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    path = fetch_model(job.model)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModelForTokenClassification.from_pretrained(
            path,
            dtype=getattr(torch, job.dtype),
            local_files_only=True,
            use_safetensors=None if job.allow_pickle else True,
            trust_remote_code=job.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and torch raise what they like here
        cause = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise JobFailed(f"cannot load the model in {job.model.name}: {cause}") from error
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # they were windows on the file, which somebody may write to
    check_unchanged(job.model)
    missing = sorted(report["missing_keys"])
    if missing:
        raise JobFailed(
            f"the weights in {job.model.name} lack {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": it would be filled with random numbers; use a model fine-tuned for token classification"
        )
    if model.config.num_labels != len(job.tags):
        raise JobFailed(
            f"the model has {model.config.num_labels} classes, but its configuration has {len(job.tags)} tags"
        )
    return model
