"""What the files and folders of an output are called."""

from __future__ import annotations

import re
from urllib.parse import quote

from tokloss_ray.schema import NULL_PARTITION

RUN, PLAN, SUCCESS, REPORT = "_run.json", "_plan.parquet", "_SUCCESS", "report.html"
CARD = "README.md"
"""For people, and for `datasets.load_dataset`."""
INPUTS = "_inputs.parquet"
"""The input files, with what changes when their content does."""
OF_ADDITION = re.compile(r"_(plan|inputs)-\d{3,}\.parquet")
"""The same of files that were added later."""
DAMAGED = "_damaged.json"
"""The shards that `verify` found damaged, for the next attempt to score again."""
LEASE = "_lease.json"
"""Which process is at work in the folder."""
COMMITS, ATTEMPTS, SCORES, ERRORS, MINING = "_commits", "_attempts", "scores", "errors", "mining"
FOLDERS = (COMMITS, ATTEMPTS, SCORES, ERRORS, MINING)
DATA_FILE = re.compile(r"(\d{6,}-\d{3,})-[0-9a-f]{6}\.parquet")
"""Names that this program gives to data files: shard and fingerprint."""
_SHARD = re.compile(r"(\d{6,})-(\d{3,})")

REVIEW = "review"
"""The folder of decisions. Not among `FOLDERS`, which starting over removes: it is a person's work, not the run's."""

MAX_FOLDER_NAME = 255
"""Bytes that file systems allow; kept on object storage too, so that results do not depend on where they are."""


def shard_name(unit: int, index: int) -> str:
    """`000017-003`: the fourth shard of unit 17."""
    return f"{unit:06d}-{index:03d}"


def shard_place(name: str) -> tuple[int, int] | None:
    """The unit and the number in it of a shard of this name; None if it is not a shard's."""
    match = _SHARD.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def partition_folder(column: str, value: object) -> str:
    """The name of a partition's folder."""
    return f"{quote(column, safe='')}={partition_value(value)}"


def partition_value(value: object) -> str:
    """A value as Hive writes it in a folder's name: percent-encoded; null and the empty string by their own name."""
    if value is None or value == "":
        return NULL_PARTITION
    if isinstance(value, bool):
        return str(value).lower()
    return quote(str(value), safe="")
