"""The CUDA device as far as it goes without one: which call is made on which stream, in what order, with what bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

from tokloss_ray.scoring.stages import cuda
from tokloss_ray.scoring.stages.cuda import CudaDevice, set_precision

CPU = torch.device("cpu")


class Inputs(NamedTuple):
    ids: torch.Tensor
    longest: int
    starts: torch.Tensor
    flags: torch.Tensor


INPUTS = Inputs(
    torch.arange(15).reshape(3, 5)[:, :3],  # not contiguous, and 72 bytes: the next one has to be moved up
    7,
    torch.tensor([0, 2, 5], dtype=torch.int32),
    torch.tensor([True, False, True]),
)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CUDA. Its clock ticks a millisecond with each event that is recorded."""
    said: list[str] = []
    names = iter(["in", "out"])
    clock = iter(range(1000))

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: Event) -> None:
            said.append(f"{self.name} waits for {event.on}")

    class Event:
        on = ""

        def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
            self.timed, self.blocking = enable_timing, blocking

        def record(self, stream: Stream) -> None:
            self.at, self.on = next(clock), stream.name
            said.append(f"event on {stream.name}")

        def synchronize(self) -> None:
            assert self.blocking, "it would keep a core busy"
            said.append(f"host waits for {self.on}")

        def elapsed_time(self, other: Event) -> float:
            assert self.timed
            assert other.timed
            return float(other.at - self.at)

    compute = Stream("compute")
    current = [compute]

    @contextmanager
    def stream(one: Stream) -> Iterator[None]:
        current.append(one)
        yield
        current.pop()

    def copy(method: Callable[..., Any], what: str) -> Callable[..., Any]:
        def logged(self: torch.Tensor, *args: Any, non_blocking: bool = False) -> Any:
            if non_blocking:
                said.append(f"{what} on {current[-1].name}")
            return method(self, *args)

        return logged

    def used_on(self: torch.Tensor, one: Stream) -> None:
        said.append(f"kept for {one.name}")

    empty = torch.empty
    for name, fake in {
        "Stream": lambda device: Stream(next(names)),
        "Event": Event,
        "default_stream": lambda device: compute,
        "stream": stream,
        "synchronize": lambda device: said.append("synchronize"),
        "empty_cache": lambda: said.append("empty cache"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **kind: empty(*size, **kind))
    monkeypatch.setattr(torch.Tensor, "record_stream", used_on)
    monkeypatch.setattr(torch.Tensor, "to", copy(torch.Tensor.to, "to the device"))
    monkeypatch.setattr(torch.Tensor, "copy_", copy(torch.Tensor.copy_, "to the host"))
    return said


def test_a_micro_batch_goes_through(log: list[str]) -> None:
    device = CudaDevice(CPU)
    log.clear()
    got: list[Inputs] = []

    def forward(inputs: Inputs) -> torch.Tensor:
        log.append("forward")
        got.append(inputs)
        return inputs.ids.flatten().int() * 2

    launched = device.launch(forward, INPUTS)
    assert log == [
        "to the device on in", "event on in", "kept for compute", "compute waits for in",
        "event on compute", "forward", "event on compute",
        "out waits for compute", "to the host on out", "kept for out", "event on out",
    ]  # fmt: skip
    log.clear()
    result = launched.result()
    assert log == ["host waits for out"]
    assert result.words.tolist() == [2 * i for i in INPUTS.ids.flatten().tolist()]
    (inputs,) = got
    assert isinstance(inputs, Inputs)
    assert inputs.longest == 7
    for there, here in zip(inputs, INPUTS, strict=True):
        if isinstance(here, torch.Tensor):
            assert isinstance(there, torch.Tensor)
            assert there.dtype == here.dtype
            assert torch.equal(there, here)
            assert there.data_ptr() % 16 == inputs.ids.data_ptr() % 16


def test_waits_and_work_are_between_events(log: list[str]) -> None:
    """The events of one micro-batch after another: in, begin, end, out, in, begin, end, out."""
    device = CudaDevice(CPU)
    results = [device.launch(lambda inputs: inputs.starts, INPUTS).result() for _ in range(3)]
    assert [(r.waited, r.busy) for r in results] == [(0.002, 0.001), (0.003, 0.001), (0.003, 0.001)]


def test_a_failed_launch_is_over_when_it_raises(log: list[str]) -> None:
    device = CudaDevice(CPU)

    def forward(inputs: Inputs) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        device.launch(forward, INPUTS)
    assert log[-1] == "synchronize"
    device.release()
    assert log[-2:] == ["synchronize", "empty cache"]
    # The time that the failed one took is counted as waiting.
    assert device.launch(lambda inputs: inputs.starts, INPUTS).result().waited == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("free", "share", "room"),
    [(50, 1.0, 50 + 30 - 20), (50, 0.4, 40 - 20), (5, 0.4, 5 + 30 - 20), (50, 0.1, 0)],
    ids=["whole", "its part", "others have it", "beyond its part"],
)
def test_room(free: int, share: float, room: int, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 bytes this process uses 20 and keeps 10 for later."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    assert CudaDevice(CPU, share).room() == room


def test_peak(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 75 if "called" in log else 20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: log.append("reset"))
    device = CudaDevice(CPU)
    log.clear()
    assert device.peak(lambda: log.append("called")) == 55
    assert log == ["synchronize", "reset", "called", "synchronize"]


def test_precision() -> None:
    """float32 means float32, also in convolutions, for which torch's own default is TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for tf32 in (True, False):
            set_precision(tf32)
            assert torch.backends.cuda.matmul.allow_tf32 is tf32
            assert torch.backends.cudnn.allow_tf32 is tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_buffers() -> None:
    assert cuda._starts([]) == [0]
    assert cuda._starts([1, 16, 17, 0, 8]) == [0, 16, 32, 64, 64, 80]
