"""What the documents say of the layout is so: every module they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_modules_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`", page.read_text(encoding="utf-8")))
    assert {
        path for path in named if not any((base / path).is_file() for base in (ROOT, ROOT / "tokloss_ray"))
    } == set()


def test_every_package_has_a_layer() -> None:
    layers = (ROOT / ".importlinter").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "tokloss_ray").glob("*/__init__.py")} - {"demo"}
    assert {name for name in packages if not re.search(rf"tokloss_ray\.{name}\b", layers)} == set()
