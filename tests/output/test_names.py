"""What folders and files of an output are called."""

from __future__ import annotations

import pytest

from tokloss_ray.output.names import partition_value


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
