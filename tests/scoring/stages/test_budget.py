"""Budgets that are found, halved, and grow again."""

from __future__ import annotations

import pytest
import torch

from tokloss_ray.scoring.stages.budget import GROWTH, KEPT_FREE, PATIENCE, Budget, find_budget, is_out_of_memory


def fit(budget: Budget, times: int, room: float = float("inf")) -> list[int]:
    """Micro-batches as large as the budget allows in a memory for `room` tokens; those that did not fit."""
    failed = []
    for _ in range(times):
        size = budget.tokens
        if size > room:
            failed.append(size)
            budget.failed(size)
        else:
            budget.fitted(size)
    return failed


def test_halved_until_it_fits() -> None:
    budget = Budget(1000)
    assert fit(budget, 10, room=200) == [1000, 500, 250]
    assert budget.tokens == 125


def test_one_token_is_the_least() -> None:
    budget = Budget(3)
    fit(budget, 10, room=0)
    assert budget.tokens == 1


def test_grows_back_to_the_limit_and_not_beyond() -> None:
    budget = Budget(1000)
    fit(budget, 1, room=900)
    fit(budget, PATIENCE - 1)
    assert budget.tokens == 500
    fit(budget, 1)
    assert budget.tokens == 625
    fit(budget, 10 * PATIENCE)
    assert budget.tokens == budget.limit == 1000


def test_one_token_grows_too() -> None:
    budget = Budget(4)
    fit(budget, 3, room=1)
    assert budget.tokens == 1
    fit(budget, 4 * PATIENCE)
    assert budget.tokens == 4


def test_settles_where_memory_ends() -> None:
    """It comes close, falls back to what has fitted and not to half of it, and tries more and more rarely."""
    budget = Budget(10_000)
    failed = fit(budget, 100 * PATIENCE, room=6000)
    assert budget.tokens > 6000 / GROWTH**2
    assert len(failed) <= 8
    assert len(fit(budget, 100 * PATIENCE, room=6000)) <= 2


def test_small_micro_batches_prove_nothing() -> None:
    budget = Budget(1000)
    budget.failed(1000)
    for _ in range(10 * PATIENCE):
        budget.fitted(100)
    assert budget.tokens == 500


def test_a_failure_of_an_older_plan_counts_once() -> None:
    """Several micro-batches of the old size may be under way when the first one fails."""
    budget = Budget(1000)
    for _ in range(3):
        budget.failed(1000)
    assert budget.tokens == 500


@pytest.mark.parametrize("always", [0, 5_000_000])
@pytest.mark.parametrize("per_token", [100, 20_000])
def test_found_from_two_measurements(always: int, per_token: int) -> None:
    asked = []

    def measure(tokens: int) -> int:
        asked.append(tokens)
        return always + per_token * tokens

    room = 10**9
    found = find_budget(measure, room, most=10**9)
    assert len(asked) == 2
    assert always + per_token * found == pytest.approx(room * (1 - KEPT_FREE), rel=0.001)


def test_never_more_than_there_is_a_gain_from() -> None:
    assert find_budget(lambda tokens: tokens, 10**12, most=32_768) == 32_768
    assert find_budget(lambda tokens: 10**6, 10**12, most=32_768) == 32_768, "memory does not even grow"
    assert find_budget(lambda tokens: 0, 10**12, most=100) == 100
    assert find_budget(lambda tokens: tokens, 10**12, most=1) == 1


def test_memory_that_does_not_suffice_for_a_measurement() -> None:
    assert find_budget(lambda tokens: None, 10**9, most=32_768) == 1024
    assert find_budget(lambda tokens: None if tokens > 4096 else tokens, 10**9, most=32_768) == 2048


def test_what_has_been_measured_fits() -> None:
    """However little is left by the rule: the smaller of the two went through."""
    assert find_budget(lambda tokens: 100 * tokens, 1, most=32_768) == 2048


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("CUDA out of memory"), RuntimeError("std::bad_alloc")],
)
def test_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_not_out_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))
