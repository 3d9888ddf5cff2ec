"""What is missing, going by the commit records."""

from __future__ import annotations

from tests.support.records import a_record
from tokloss_ray.output.records import missing_shards


def test_missing_shards() -> None:
    assert missing_shards([0, 1], []) == [(0, "000000"), (1, "000001")]
    assert missing_shards([0], [a_record(0, 0, True)]) == []
    assert missing_shards([0], [a_record(0, 0), a_record(0, 2, True)]) == [(0, "000000-001")]
    assert missing_shards([3], [a_record(3, 0), a_record(3, 1)]) == [(3, "000003 after 001")]
