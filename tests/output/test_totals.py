"""Totals over commit records: the same digits in whatever order and parts they are added."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import a_record
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.totals import Tally, total
from tokloss_ray.schema import EQUAL_LENGTH, PACKED, PADDED

COMPILED = (None, "yes", "no: b", "no: a", "yes")
FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


def with_losses(number: int, losses: dict[str, tuple[int, float]]) -> CommitRecord:
    sums = dict.fromkeys(("rows", "scored_rows", "sequences", "tokens", "padded_tokens"), number)
    none = dict.fromkeys(("error_rows", "labels", "dropped_words", "storage_retries", "memory_splits"), 0)
    more = {"errors": {"empty": number, "malformed": 1}, "seconds": {"score": 0.5}, "loss_by_tag": losses}
    batching = {
        "batch_tokens": 100 + number,
        "batching": (PACKED, PADDED, EQUAL_LENGTH, None)[number % 4],
    }
    return a_record(0, number, **sums, **none, **more, **batching, compiled=COMPILED[number % 5])


@given(st.lists(st.tuples(st.sampled_from("AB"), FLOATS), min_size=1, max_size=12), st.randoms())
def test_order_and_parts_do_not_matter(losses: list[tuple[str, float]], rng: random.Random) -> None:
    records = [with_losses(number, {tag: (1, loss)}) for number, (tag, loss) in enumerate(losses)]
    whole = total(records)
    rng.shuffle(records)
    cut = rng.randrange(len(records) + 1)
    one, other = Tally(), Tally()
    for position, record in enumerate(records):
        (one if position < cut else other).add(record)
    one.merge(other)
    assert repr(one.totals()) == repr(whole), "the order of the keys counts too: it is that of _SUCCESS"
    for tag, (count, loss) in whole.loss_by_tag.items():
        of_tag = [value for name, value in losses if name == tag]
        assert (count, loss) == (len(of_tag), float(sum(map(Fraction, of_tag))))
        assert loss == math.fsum(of_tag)


def test_what_is_not_a_sum() -> None:
    totals = total(with_losses(number, {}) for number in (3, 1, 2))
    assert (totals.shards, totals.rows, totals.batch_tokens, totals.batching) == (3, 6, 101, EQUAL_LENGTH)
    assert totals.errors == {"empty": 6, "malformed": 3}


def test_wait_of_the_devices() -> None:
    """A share of all their time, not a mean of shares; records of earlier versions have no waits."""
    first_shard, second_shard = with_losses(1, {}), with_losses(2, {})
    seconds = {"wait": 1.0, "score": 9.0}, {"score": 30.0}
    shards = [replace(shard, seconds=s) for shard, s in zip((first_shard, second_shard), seconds, strict=True)]
    both, first, second = Tally(), Tally(), Tally()
    for record, tally in zip(shards, (first, second), strict=True):
        both.add(record)
        tally.add(record)
    first.merge(second)
    assert both.totals().device_wait == first.totals().device_wait == 1 / 40
    assert Tally().totals().device_wait is None
