"""The ranks are listed once; the help of the command, which must not load numpy, and the documentation name all."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tokloss_ray.cli.mine import mine
from tokloss_ray.mining.ranks.label_scores import DEFAULT, RANKS

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("rank", RANKS)
def test_help_and_documentation_name_each_rank(rank: str) -> None:
    option = get_args(get_type_hints(mine, include_extras=True)["rank"])[1]
    assert rank in option.help
    assert f"`{rank}`" in (DOCS / "label_issues.md").read_text()


def test_the_default_of_the_command_is_the_default_rank() -> None:
    assert inspect.signature(mine).parameters["rank"].default == DEFAULT == next(iter(RANKS))
