"""Commit records that say no more than a test needs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tokloss_ray.output.names import shard_name
from tokloss_ray.output.record import CommitRecord


def a_record(unit: int, index: int, last: bool = False, **known: Any) -> CommitRecord:
    """The record of one shard; fields that are not given are None."""
    place = {"unit": unit, "index": index, "shard": shard_name(unit, index), "last": last}
    return CommitRecord(**{field.name: None for field in fields(CommitRecord)} | place | known)
