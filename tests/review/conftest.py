"""Outputs to review."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.review.pages import Page
from tests.support import mining_outputs
from tokloss_ray.mining.mine import mine
from tokloss_ray.review.session import Review


@pytest.fixture(scope="session")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 sentences of the demo in several shards, under the demo's model, and the tables of mine."""
    folder = tmp_path_factory.mktemp("review")
    genre = ["news" if i % 3 else "web" for i in range(400)]
    source = mining_outputs.demo_sentences(folder, 0, 400, genre=genre)
    output = mining_outputs.score_demo(folder, source, keep=("genre",), shard_tokens=2048)
    mine(str(output))
    return output


@pytest.fixture
def output(mined: Path, tmp_path: Path) -> Path:
    """A copy that a test may write decisions into."""
    return Path(shutil.copytree(mined, tmp_path / "out"))


@pytest.fixture
def review(output: Path) -> Iterator[Callable[..., Review]]:
    """Begins a review by somebody, and ends it with the test."""
    begun: list[Review] = []

    def begin(reviewer: str = "anna", of: str | Path | None = None, audit_share: float = 0.0) -> Review:
        begun.append(Review(str(of or output), reviewer, audit_share=audit_share))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


@pytest.fixture
def opened(browser: Any, review: Callable[..., Review]) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def open_page(reviewer: str = "anna", of: Path | None = None, **options: Any) -> Page:
        pages.append(Page(browser, review(reviewer, of), **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
