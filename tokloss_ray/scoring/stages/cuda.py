"""A CUDA device as `device_queue.Device` describes one: streams, events and pinned memory, and nothing else of the job.

Three streams: copies to the device, the model, and copies back, so that each micro-batch overlaps its neighbours. Order
between them is by events, on the device; the host waits nowhere but in `result`. Pinned buffers are torch's own, which
keeps them for the next micro-batch as soon as the copy that uses one is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from tokloss_ray.scoring.stages.device_queue import Result

CONTEXT_BYTES = 600 << 20
"""About what CUDA itself takes of a GPU's memory in each process, which torch does not count."""
_LAUNCHING = threading.Lock()
"""Models that share a GPU in a process launch one after another. Their micro-batches are computed one after another
anyway, and what a launch has allocated and freed is there for the next one."""
_ALIGNED = 16
"""Bytes: every tensor begins at a multiple, as views of other types and vector loads ask for."""


def keep_to_share(gpus: float) -> float:
    """Let this process take no more of its GPU's memory than its part of the GPU; returns what part it may take.

    Actors on one GPU would else take it from each other: torch keeps what it has once taken, and the one that comes
    second halves its micro-batches for good.

    Args:
        gpus: what the actor has asked Ray for. A whole GPU or more is nobody else's, and 0 is a CPU.
    """
    if not 0 < gpus < 1:
        return 1.0
    _, total = torch.cuda.mem_get_info()
    share = max(gpus / 2, gpus - CONTEXT_BYTES / total)
    torch.cuda.set_per_process_memory_fraction(share)
    return share


def set_precision(tf32: bool) -> None:
    """Whether float32 products and convolutions on the device may be computed with 10 bits of mantissa, for speed."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


class CudaDevice:
    """The GPU of this process.

    Args:
        device: a torch device of type cuda.
        share: the part of its memory that this process may take.
    """

    def __init__(self, device: torch.device, share: float = 1.0) -> None:
        self.device, self.share = device, share
        self.compute = torch.cuda.default_stream(device)
        self.inward, self.outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.last = _timed()
        self.last.record(self.compute)

    def launch(self, forward: Callable[[Any], torch.Tensor], inputs: Any) -> _Launched:
        """Start a micro-batch.

        Args:
            forward: makes a tensor of the inputs on the device, on its current stream, and does not wait for it. Nobody
                writes to that tensor again: it is copied to the host later, while the next micro-batch is computed.
            inputs: a named tuple of tensors on the host, which `forward` gets on the device. Other values are passed as
                they are.

        Raises:
            RuntimeError, MemoryError: the call failed; it is over on the device, too, so that its memory is free.
        """
        begin, end, copied = _timed(), _timed(), torch.cuda.Event(blocking=True)
        try:
            arrived, on_device = self._upload(inputs)
            self.compute.wait_event(arrived)
            with _LAUNCHING:
                begin.record(self.compute)
                words = forward(on_device)
                end.record(self.compute)
            self.outward.wait_event(end)
            host = torch.empty(words.shape, dtype=words.dtype, pin_memory=True)
            with torch.cuda.stream(self.outward):
                host.copy_(words, non_blocking=True)
            words.record_stream(self.outward)
            copied.record(self.outward)
        except BaseException:
            torch.cuda.synchronize(self.device)
            raise
        launched = _Launched(host, self.last, begin, end, copied)
        self.last = end
        return launched

    def _upload(self, inputs: Any) -> tuple[torch.cuda.Event, Any]:
        """Tensors side by side in one pinned buffer, to the device in one copy; when it is there, and views of it."""
        tensors = [value.contiguous() for value in inputs if isinstance(value, torch.Tensor)]
        starts = _starts([tensor.nbytes for tensor in tensors])
        staged = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
        for tensor, start in zip(tensors, starts, strict=False):
            staged[start : start + tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))
        arrived = torch.cuda.Event()
        with torch.cuda.stream(self.inward):
            flat = staged.to(self.device, non_blocking=True)
        arrived.record(self.inward)
        # Its memory belongs to the stream of the copy, which must not reuse it while the model still reads it.
        flat.record_stream(self.compute)
        views = iter(
            flat[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in zip(tensors, starts, strict=False)
        )
        return arrived, type(inputs)._make(next(views) if isinstance(v, torch.Tensor) else v for v in inputs)

    def release(self) -> None:
        """Give blocks that are kept for later back to the device."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def room(self) -> int:
        """Bytes that this process can still allocate."""
        free, total = torch.cuda.mem_get_info(self.device)
        allocated = torch.cuda.memory_allocated(self.device)
        # What is kept for later is as good as free. Of a part of a GPU, no more than the part.
        free += torch.cuda.memory_reserved(self.device) - allocated
        return max(0, min(free, int(total * self.share) - allocated))

    def peak(self, call: Callable[[], Any]) -> int:
        """Bytes that a call allocates at its peak."""
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


class _Launched:
    """A micro-batch on its way: a pinned tensor that its scores are copied to, and when it began and ended."""

    def __init__(
        self,
        host: torch.Tensor,
        before: torch.cuda.Event,
        begin: torch.cuda.Event,
        end: torch.cuda.Event,
        copied: torch.cuda.Event,
    ) -> None:
        self.host, self.before, self.begin, self.end, self.copied = host, before, begin, end, copied

    def result(self) -> Result:
        """Wait for the copy; a blocking event leaves the core to others meanwhile."""
        self.copied.synchronize()
        waited, busy = self.before.elapsed_time(self.begin), self.begin.elapsed_time(self.end)
        return Result(self.host.numpy(), waited / 1000, busy / 1000)


def _timed() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _starts(sizes: list[int]) -> list[int]:
    """Where each of some tensors begins in a buffer, in bytes, and at last the buffer's size."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // _ALIGNED) * _ALIGNED)
    return starts
