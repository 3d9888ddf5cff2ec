"""A device is kept supplied, by a host that gives each shard its own results and its own failures.

The device is a thread (`tests/support/stand_in_device.py`), and what it computes of a token is simple enough to be
known: twice its id, and its label.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.stand_in_device import BUSY, IDLE, StandInDevice
from tokloss_ray import schema
from tokloss_ray.scoring.stages.budget import PATIENCE, Budget
from tokloss_ray.scoring.stages.device_queue import UNDER_WAY, DeviceQueue, Spent
from tokloss_ray.scoring.stages.forward import DeviceBatch
from tokloss_ray.scoring.stages.loss import TokenScores, to_words
from tokloss_ray.scoring.stages.work import Work

PAD = 0


def forward(batch: DeviceBatch) -> torch.Tensor:
    ids = batch.input_ids.flatten()[batch.where]
    assert (ids != PAD).all()
    assert (batch.attention.flatten()[batch.where] == 1).all()
    zeros, labels = torch.zeros(len(ids)), batch.labels
    return to_words(
        TokenScores(
            loss=ids * 2.0,
            best=labels,
            best_prob=zeros,
            second=labels,
            second_prob=zeros,
            finite=torch.ones(len(ids)).bool(),
            entropy=None,
            probs=None,
        )
    )


def shard(*lengths: int, first: int = 1) -> pa.Table:
    """Sequences of so many tokens; no two tokens have the same id, and labels are ids modulo 7."""
    starts = first + np.cumsum([0, *lengths])
    ids = [list(range(start, start + n)) for start, n in zip(starts.tolist(), lengths, strict=False)]
    names = pa.array([f"{first}-{i}" for i in range(len(ids))])
    labels = [[i % 7 for i in row] for row in ids]
    return pa.table({schema.EXAMPLE_ID: names, schema.INPUT_IDS: ids, schema.LABEL_IDS: labels})


def work_on(sequences: pa.Table, budget: int) -> Work:
    work = Work(sequences, PAD)
    work.plan(budget, False)
    return work


def check(work: Work, unscored: tuple[int, ...] = ()) -> None:
    """Each token has its own scores, and no row a problem but those that could not be scored."""
    table = work.scored()
    rows = table.select([schema.INPUT_IDS, schema.LOSS, schema.PREDICTED_IDS, schema.PROBLEM]).to_pylist()
    for number, row in enumerate(rows):
        if number in unscored:
            assert row[schema.PROBLEM] == "out_of_memory"
        else:
            assert row[schema.LOSS] == [2.0 * i for i in row[schema.INPUT_IDS]]
            assert row[schema.PREDICTED_IDS] == [i % 7 for i in row[schema.INPUT_IDS]]


@pytest.fixture
def start(threads: ThreadPoolExecutor) -> Iterator[Callable[..., DeviceQueue]]:
    """Makes queues, and ends them after the test, before it is waited for threads that call them."""
    made: list[DeviceQueue] = []

    def make(device: StandInDevice, budget: int | Budget, run: Callable[..., torch.Tensor] = forward) -> DeviceQueue:
        budget = Budget(budget) if isinstance(budget, int) else budget
        made.append(DeviceQueue(device, run, budget))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_several_shards_at_once(start: Callable[..., DeviceQueue], threads: ThreadPoolExecutor) -> None:
    queue = start(StandInDevice(), 40)
    random.seed(3)
    works = [
        work_on(shard(*random.choices(range(1, 30), k=random.randint(0, 60)), first=1 + 10_000 * i), 40)
        for i in range(12)
    ]
    for spent in threads.map(queue.score, works):
        assert spent.busy % BUSY == 0
    for work in works:
        check(work)
        assert work.padded >= len(work.ids)


def test_a_device_slower_than_the_host_never_waits(
    start: Callable[..., DeviceQueue], threads: ThreadPoolExecutor
) -> None:
    """While it computes one micro-batch the next ones are on it, those of the next shard, too; but no more than few."""
    device = StandInDevice(held=True)
    queue = start(device, 10)
    works = [work_on(shard(*[10] * 6), 10), work_on(shard(*[10] * 5, first=1000), 10)]
    spent: list[Future[Spent]] = []
    for number, work in enumerate(works):
        spent.append(threads.submit(queue.score, work))
        device.wait_for_tries(UNDER_WAY)  # so that the second shard comes after the first
        assert len(device.tried) == UNDER_WAY, number
    for done in range(1, 12):
        device.let()
        device.wait_for_tries(min(11, done + UNDER_WAY))
    first, second = (future.result(timeout=60) for future in spent)
    assert device.most == UNDER_WAY
    assert first == Spent(waited=IDLE, busy=6 * BUSY)
    assert second == Spent(waited=0, busy=5 * BUSY)
    order = [int(inputs.input_ids.max()) for inputs in device.tried]
    assert order == sorted(order), "the shard that came first is scored first"
    for work in works:
        check(work)


def test_waits_are_counted(start: Callable[..., DeviceQueue]) -> None:
    """One shard after another leaves the device without work between them."""
    queue = start(StandInDevice(held=False), 100)
    for number in range(3):
        assert queue.score(work_on(shard(9, first=1 + 100 * number), 100)) == Spent(waited=IDLE, busy=BUSY)


def in_launch(bad: int) -> tuple[StandInDevice, Callable[..., torch.Tensor]]:
    """The model's code raises for the token `bad`."""

    class Raises(StandInDevice):
        def launch(self, forward, inputs):  # type: ignore[no-untyped-def]
            if (inputs.input_ids == bad).any():
                raise RuntimeError("could not execute a primitive")
            return super().launch(forward, inputs)

    return Raises(), forward


def in_result(bad: int) -> tuple[StandInDevice, Callable[..., torch.Tensor]]:
    """The device fails on the token `bad`, long after the launch."""
    return StandInDevice(fails=lambda inputs: bool((inputs.input_ids == bad).any())), forward


def in_answer(bad: int) -> tuple[StandInDevice, Callable[..., torch.Tensor]]:
    """The model answers something else for the token `bad`."""
    return StandInDevice(), lambda inputs: forward(inputs)[: -1 if (inputs.input_ids == bad).any() else None]


@pytest.mark.parametrize("kind", [in_launch, in_result, in_answer])
def test_a_failure_is_of_its_shard_alone(
    kind: Callable[[int], tuple[StandInDevice, Callable[..., torch.Tensor]]],
    start: Callable[..., DeviceQueue],
    threads: ThreadPoolExecutor,
) -> None:
    device, run = kind(2005)
    queue = start(device, 20, run)
    works = [work_on(shard(*[9] * 30, first=1 + 1000 * i), 20) for i in range(5)]
    futures = [threads.submit(queue.score, work) for work in works]
    for number, future in enumerate(futures):
        if number == 2:
            with pytest.raises((RuntimeError, ValueError)):
                future.result(timeout=60)
        else:
            future.result(timeout=60)
            check(works[number])
    again = work_on(shard(5, 6, first=9000), 20)
    queue.score(again)
    check(again)


def test_a_mistake_of_ours_leaves_nobody_waiting(
    start: Callable[..., DeviceQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Work, budget: int) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(Work, "next", broken)
    queue = start(StandInDevice(), 20)
    for _ in range(2):
        with pytest.raises(AssertionError, match="a bug"):
            queue.score(work_on(shard(5, 6), 20))


def test_out_of_memory_beside_others_is_tried_alone(
    start: Callable[..., DeviceQueue], threads: ThreadPoolExecutor
) -> None:
    """Four micro-batches of 50 tokens, a memory for 100: none is too large by itself, and none is split."""
    device = StandInDevice(room=100, held=True)
    queue = start(device, 50)
    work = work_on(shard(*[50] * 4), 50)
    future = threads.submit(queue.score, work)
    device.wait_for_tries(3)
    device.let(4)
    future.result(timeout=60)
    check(work)
    assert device.out_of_memory
    assert device.released == len(device.out_of_memory)
    assert (work.splits, work.too_big, queue.budget.tokens) == (0, [], 50)


def test_out_of_memory_halves(start: Callable[..., DeviceQueue], threads: ThreadPoolExecutor) -> None:
    """Micro-batches of 80 tokens in a memory for 50; a sequence of 60 never fits, and the rest is scored."""
    device = StandInDevice(room=50)
    queue = start(device, 80)
    works = [work_on(shard(60, *[8] * 30), 80), work_on(shard(*[20] * 12, first=1000), 80)]
    for future in [threads.submit(queue.score, work) for work in works]:
        future.result(timeout=60)
    check(works[0], unscored=(0,))
    assert works[0].too_big == [0]
    check(works[1])
    assert queue.budget.tokens <= 50
    assert sum(work.splits for work in works) >= 1


def test_a_budget_comes_back(start: Callable[..., DeviceQueue]) -> None:
    """Memory that another had for a while: the budget is halved, and later what it was."""
    device = StandInDevice(room=40)
    queue = start(device, Budget(64))
    queue.score(work_on(shard(*[8] * 16), 64))
    assert queue.budget.tokens <= 32
    device.memory = float("inf")
    for number in range(20):
        budget = queue.budget.tokens
        work = work_on(shard(*[8] * PATIENCE * (budget // 8), first=1 + 1000 * number), budget)
        queue.score(work)
        check(work)
    assert queue.budget.tokens == 64


def test_noted_micro_batches_are_alone(start: Callable[..., DeviceQueue], threads: ThreadPoolExecutor) -> None:
    """What a worker is doing when it dies is what was noted last."""
    device = StandInDevice()
    queue = start(device, 20)
    noted: list[tuple[int, int, list[int]]] = []

    def note(rows: np.ndarray) -> None:
        noted.append((len(device.tried), device.under_way, rows.tolist()))

    work = work_on(shard(*[9] * 9), 20)
    queue.score(work, note)
    check(work)
    assert [(tried, under_way) for tried, under_way, _ in noted] == [(n, 0) for n in range(5)]
    assert sorted(row for _, _, rows in noted for row in rows) == list(range(9))


def test_a_failing_note_fails_the_shard(start: Callable[..., DeviceQueue]) -> None:
    def note(rows: np.ndarray) -> None:
        raise OSError("the disk is full")

    queue = start(StandInDevice(), 20)
    with pytest.raises(OSError, match="full"):
        queue.score(work_on(shard(5, 6), 20), note)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens(seed: int, start: Callable[..., DeviceQueue], threads: ThreadPoolExecutor) -> None:
    """Random shards, memory and failures: a shard that does not fail is right, and every call ends."""
    rng = random.Random(seed)
    bad = {1 + 10_000 * i + 3 for i in range(8) if rng.random() < 0.3}
    device = StandInDevice(
        room=rng.choice([40, 90, 200, float("inf")]),
        fails=lambda inputs: bool(np.isin(inputs.input_ids.numpy(), list(bad)).any()),
    )
    budget = rng.choice([1, 30, 100, 500])
    queue = start(device, budget)
    lengths = [[rng.randint(1, 60) for _ in range(rng.randint(1, 40))] for _ in range(8)]
    lengths = [[4, *some] for some in lengths]
    works = [work_on(shard(*some, first=1 + 10_000 * i), budget) for i, some in enumerate(lengths)]
    futures = [threads.submit(queue.score, work) for work in works]
    for number, (future, work) in enumerate(zip(futures, works, strict=True)):
        if 1 + 10_000 * number + 3 in bad:
            with pytest.raises(RuntimeError, match="illegal"):
                future.result(timeout=60)
        else:
            future.result(timeout=60)
            check(work, unscored=tuple(i for i, n in enumerate(lengths[number]) if n > device.memory))
    assert device.most <= UNDER_WAY
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokloss") and not thread.daemon]
