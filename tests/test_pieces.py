"""The pure functions, each against a plain way to get the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import a_record
from tokloss_ray.config import ScoreConfig, make_config
from tokloss_ray.errors import Refused
from tokloss_ray.output.names import partition_value
from tokloss_ray.output.records import missing_shards
from tokloss_ray.ragged import any_per_row, offsets_of, positions, sum_per_row
from tokloss_ray.scoring.finish import _rate_above
from tokloss_ray.scoring.on_ray.hardware import RESERVED_CPUS, Hardware, plan_actors
from tokloss_ray.scoring.stages.batching import pad, plan_batches
from tokloss_ray.scoring.stages.loss import score_tokens
from tokloss_ray.scoring.stages.windows import window_owners, window_starts

lengths_of_rows = st.lists(st.integers(1, 60), max_size=40)


@given(lengths_of_rows, st.integers(1, 200))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(np.array(lengths, dtype=np.int64), budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert longest * len(batch) <= budget or len(batch) == 1
    sizes = [max(lengths[i] for i in batch) for batch in batches]
    assert sizes == sorted(sizes, reverse=True)


@given(lengths_of_rows.filter(bool), st.data())
def test_padding_and_the_way_back(lengths: list[int], data: st.DataObject) -> None:
    lengths_N = np.array(lengths, dtype=np.int64)
    starts = offsets_of(lengths_N)
    flat = np.arange(100, 100 + starts[-1], dtype=np.int32)
    own_mask = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(flat), max_size=len(flat))), dtype=np.int8)
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True, min_size=1)))
    batch = pad(flat, own_mask, starts, lengths_N, rows, pad_id=7)
    for i, row in enumerate(rows):
        n = lengths[row]
        expected = flat[starts[row] : starts[row + 1]].tolist()
        assert batch.input_ids[i, :n].tolist() == expected
        assert (batch.input_ids[i, n:] == 7).all()
        assert batch.attention[i].tolist() == own_mask[starts[row] : starts[row + 1]].tolist() + [0] * (
            batch.attention.shape[1] - n
        )
    assert batch.input_ids.reshape(-1)[batch.where].tolist() == flat[batch.at].tolist()
    assert sorted(batch.at.tolist()) == sorted(p for r in rows for p in range(starts[r], starts[r + 1]))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=20))
def test_positions(runs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([run[i] for run in runs], dtype=np.int64) for i in (0, 1))
    assert positions(starts, lengths).tolist() == [s + i for s, n in runs for i in range(n)]


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=20))
def test_sums_per_row(rows: list[list[bool]]) -> None:
    offsets = offsets_of(np.array([len(row) for row in rows], dtype=np.int64))
    flat = np.array([flag for row in rows for flag in row], dtype=bool)
    assert sum_per_row(flat, offsets).tolist() == [sum(row) for row in rows]
    assert any_per_row(flat, offsets).tolist() == [any(row) for row in rows]


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_windows_cover_everything_and_overlap(n: int, capacity: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    begins = window_starts(n, capacity, overlap)
    ends = [min(begin + capacity, n) for begin in begins]
    assert begins[0] == 0
    assert ends[-1] == n
    for end, following in zip(ends, begins[1:], strict=False):
        assert end - following == overlap
    assert all(end < n for end in ends[:-1]), "a window past the end"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(4, 30), st.data())
def test_each_word_has_the_window_with_most_context(words: list[int], capacity: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    unit = np.repeat(np.arange(len(words)), words)
    begins = window_starts(len(unit), capacity, overlap)
    owners = window_owners(unit, begins, capacity, len(unit))
    for word in range(len(words)):
        at = np.flatnonzero(unit == word)
        best, best_context = -1, (-1, False)
        for k, begin in enumerate(begins):
            end = min(begin + capacity, len(unit))
            if begin <= at[0] < end:
                context = (min(at[0] - begin, max(end - 1 - at[-1], 0)), at[-1] < end)
                if context > best_context:
                    best, best_context = k, context
        assert set(owners[at].tolist()) == {best}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_cross_entropy_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits_TC = (torch.randn(200, 5) * 6).to(dtype)
    labels_T = torch.randint(0, 5, (200,))
    labels_T[::3] = -100
    scores = score_tokens(logits_TC, labels_T, keep_probs=True)
    wide = logits_TC.double()
    expected = torch.nn.functional.cross_entropy(wide, labels_T, reduction="none")
    torch.testing.assert_close(scores.loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert (scores.loss[::3] == 0.0).all()
    probs = wide.softmax(-1)
    top = probs.topk(2, dim=-1)
    torch.testing.assert_close(scores.best_prob.double(), top.values[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.second_prob.double(), top.values[:, 1], rtol=1e-5, atol=1e-6)
    assert (scores.best == logits_TC.float().argmax(-1)).all()
    assert scores.probs is not None
    torch.testing.assert_close(scores.probs.double(), probs, rtol=1e-5, atol=1e-6)
    assert scores.loss.dtype == torch.float32


def test_one_class_has_no_second() -> None:
    scores = score_tokens(torch.zeros(3, 1), torch.tensor([0, 0, -100]))
    assert scores.second.tolist() == [-1, -1, -1]
    assert scores.loss.tolist() == [0.0, 0.0, 0.0]


def test_missing_shards() -> None:
    assert missing_shards([0, 1], []) == [(0, "000000"), (1, "000001")]
    assert missing_shards([0], [a_record(0, 0, True)]) == []
    assert missing_shards([0], [a_record(0, 0), a_record(0, 2, True)]) == [(0, "000000-001")]
    assert missing_shards([3], [a_record(3, 0), a_record(3, 1)]) == [(3, "000003 after 001")]


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_the_rate_that_is_advised_is_enough(bad: int, more: int) -> None:
    rate = bad / (bad + more)
    assert rate <= float(_rate_above(rate)) <= 1


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("de", "de"),
        ("a/b", "a%2Fb"),
        ("..", ".."),
        ("50 %", "50%20%25"),
        ("ü", "%C3%BC"),
        (None, "__HIVE_DEFAULT_PARTITION__"),
        ("", "__HIVE_DEFAULT_PARTITION__"),
        (7, "7"),
        (True, "true"),
    ],
)
def test_partition_values(value: object, folder: str) -> None:
    assert partition_value(value) == folder


def test_actors_by_hardware() -> None:
    config = ScoreConfig(model="m", input="i", output="o")

    def actors(cpus: tuple[float, ...], gpus: tuple[float, ...], grows: bool = False, **changes: object) -> tuple:
        made = plan_actors(config.model_copy(update=changes), Hardware(cpus, gpus, grows))
        return made.low, made.high, made.num_gpus, made.threads

    assert actors((8.0,), (0.0,)) == (1, 1, 0, 8)
    assert actors((8.0, 8.0), (0.0, 0.0)) == (2, 2, 0, 8)
    assert actors((8.0,), (0.0,), actors=(2, 4)) == (2, 4, 0, 2)
    assert actors((0.0, 8.0, 8.0), (0.0, 0.0, 0.0)) == (2, 2, 0, 8)
    assert actors((16.0, 16.0, 4.0), (4.0, 2.0, 0.0)) == (6, 6, 1.0, None)
    assert actors((16.0,), (2.0,), gpus_per_actor=0.5) == (4, 4, 0.5, None)
    assert actors((16.0,), (2.0,), gpus_per_actor=0) == (1, 1, 0, 16)
    for count in (1, 16, 64, 300):  # however many there are, encode and commit have what they need
        made = plan_actors(config.model_copy(update={"actors": (count, count)}), Hardware((2.0,), (0.0,)))
        assert 0 < made.num_cpus * count <= 2 - RESERVED_CPUS
    with pytest.raises(Refused, match="too few CPUs"):
        actors((0.5,), (0.0,))
    with pytest.raises(Refused, match="no node has enough GPUs"):
        actors((16.0,), (2.0,), gpus_per_actor=4)
    with pytest.raises(Refused, match="no node has enough GPUs"):
        actors((16.0,), (0.0,), gpus_per_actor=1, actors=(1, 2))
    with pytest.raises(Refused, match="--actors 3 does not fit"):
        actors((16.0,), (2.0,), actors=(3, 3))
    # Nodes that join later: actors beyond the first ones wait for them, and threads are those of one node.
    assert actors((4.0, 4.0), (0.0, 0.0), grows=True, actors=(2, 8)) == (2, 8, 0, 4)
    assert actors((4.0,), (0.0,), grows=True, actors=(1, 8), gpus_per_actor=1) == (1, 8, 1, None)
    with pytest.raises(Refused, match="say also --actors"):
        actors((4.0,), (0.0,), grows=True, gpus_per_actor=1)
    with pytest.raises(Refused, match="no node with CPUs"):
        actors((0.0,), (0.0,))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"actors": "two"}, "--actors: expected N or MIN,MAX"),
        ({"actors": "3,2"}, "--actors"),
        ({"max_error_rate": 2}, "--max-error-rate"),
        ({"dtype": "float8"}, "--dtype"),
        ({"keep": ["loss"]}, "loss: reserved column name"),
        ({"add_column": ["novalue"]}, "--add-column: expected NAME=VALUE"),
        ({"tags": "A,A"}, "duplicate name"),
        ({"colour": 1}, "--colour is not a setting"),
        ({"input": []}, "--input: give at least one input"),
    ],
)
def test_settings_that_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        make_config({"model": "m", "input": "i", "output": "o"} | settings)
    assert "\n" not in str(caught.value)


def test_settings_from_text() -> None:
    config = make_config(
        {
            "model": "m",
            "input": "i",
            "output": "o",
            "actors": "2,4",
            "tags": "O,B-X",
            "add_column": ["a=b=c"],
            "keep": "x,y",
        }
    )
    assert config.actors == (2, 4)
    assert config.tags == ("O", "B-X")
    assert config.add_column == {"a": "b=c"}
    assert config.keep == ("x", "y")
    with pytest.raises(Refused, match="--output is required"):
        make_config({"model": "m", "input": "i"})
