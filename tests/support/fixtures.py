"""Fixtures around a tiny model, for tests that score a few rows or have them refused.

They are known in all tests, each made once, or anew for each test where a test may change it. What they need is
imported when they are used: a test that needs neither torch nor Ray shall not wait for them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.inline import Inline


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's Chromium, for the pages."""
    if CHROMIUM is None:
        # .ci/run installs it and says so: there its absence is a failure.
        assert not os.environ.get("NEEDS_CHROMIUM"), "no Chromium to open pages in: apt-get install chromium"
        pytest.skip("no Chromium to open pages in: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import models
    from tests.support.tiny import MAX_LENGTH, SENTENCES, TAGS

    return models.build("bert", tmp_path_factory.mktemp("model"), SENTENCES, TAGS, max_length=MAX_LENGTH)


@pytest.fixture(scope="session")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer adds no special tokens."""
    from tests.support import models
    from tests.support.tiny import MAX_LENGTH, SENTENCES, TAGS

    folder = tmp_path_factory.mktemp("bare")
    return models.build("bert", folder, SENTENCES, TAGS, max_length=MAX_LENGTH, special_tokens=False)


@pytest.fixture
def model_copy(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Input with nothing wrong."""
    from tests.support.inline import write_jsonl
    from tests.support.tiny import row

    return write_jsonl(tmp_path / "good.jsonl", [row("Anna", "wohnt", tags=["B-PER", "O"], lang="de")] * 3)


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., Inline]:
    """Score some input, into a new folder each time."""
    from tests.support.inline import score_inline
    from tokloss_ray import ScoreConfig

    count = iter(range(100))

    def run_one(source: Path | str | list[str], *, using: Path = model, wrap: Any = None, **options: Any) -> Inline:
        source = [str(s) for s in source] if isinstance(source, list) else str(source)
        output = tmp_path / f"out{next(count)}"
        return score_inline(ScoreConfig(model=str(using), input=source, output=str(output), **options), wrap)

    return run_one


@pytest.fixture
def refused(model: Path, good: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a job that must be refused before any work, and return the sentence."""
    from tokloss_ray import score
    from tokloss_ray.config import make_config
    from tokloss_ray.errors import Refused

    def run(**settings: Any) -> str:
        defaults: dict[str, Any] = {"model": str(model), "input": str(good), "output": str(tmp_path / "out")}
        there = sorted(tmp_path.rglob("*"))
        with pytest.raises(Refused) as caught:
            score(make_config(defaults | {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}))
        assert caught.value.exit_code == 2
        assert sorted(tmp_path.rglob("*")) == there, "something was written"
        message = str(caught.value)
        assert "\n" not in message
        return message

    return run
