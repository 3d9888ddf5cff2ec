"""What is missing, going by the commit records."""

from __future__ import annotations

from tests.support.records import a_record
from tokloss_ray.output.done import Done


def test_missing_shards() -> None:
    assert Done([]).missing([0, 1]) == [(0, "000000"), (1, "000001")]
    assert Done([a_record(0, 0, True)]).missing([0]) == []
    assert Done([a_record(0, 0), a_record(0, 2, True)]).missing([0]) == [(0, "000000-001")]
    assert Done([a_record(3, 0), a_record(3, 1)]).missing([3]) == [(3, "000003 after 001")]
