"""The examples of docs/data.md are files that hold the two sentences it speaks of."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.inline import Inline
from tokloss_ray.inputs.formats import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- file: (\S+?)(?:, (.*?))? -->\n```\w*\n(.*?)```", PAGE, re.DOTALL)
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
WANTED = [
    (["Anna", "wohnt", "in", "Ulm"], ["B-PER", "O", "O", "B-LOC"]),
    (["Otto", "Braun", "nicht"], ["B-PER", "I-PER", "O"]),
]
UNLABELLED = {"text.jsonl": [[], []], "half.jsonl": [[], ["B-PER", "O"]]}
"""The labels of examples that have not all of them."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page."""
    (tmp_path / "page").mkdir()
    monkeypatch.chdir(tmp_path / "page")
    names: dict[str, object] = {}
    for number, code in enumerate(CODE):
        exec(compile(code, f"data.md:{number}", "exec"), names)
    for name, _, text in EXAMPLES:
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path / "page"


def test_examples_hold_the_two_sentences(run: Callable[..., Inline], folder: Path) -> None:
    options = {name: settings.split() for name, settings, _ in EXAMPLES}
    names = sorted(path.name for path in folder.iterdir())
    assert {".parquet", ".feather", ".arrow", ".jsonl", ".conll"} <= {Path(name).suffix for name in names}
    for name in names:
        words = [word for word in options.get(name, []) if word != "--no-labels"]
        pairs = [(words[i].removeprefix("--").replace("-", "_"), words[i + 1]) for i in range(0, len(words), 2)]
        settings: dict[str, Any] = dict(pairs)
        if "label_map" in settings:  # may be repeated
            settings["label_map"] = [value for key, value in pairs if key == "label_map"]
        settings |= {"labels": "--no-labels" not in options.get(name, [])}
        rows = run(folder / name, **settings).rows
        found = [(row["words"], [label for label in row["labels"] if label != "IGN"]) for row in rows]
        labels = UNLABELLED.get(name, [labels for _, labels in WANTED])
        assert [words for words, _ in found] == [words for words, _ in WANTED], name
        assert [labels for _, labels in found] == labels, name


def test_every_ending_is_on_the_page() -> None:
    for format_ in FORMATS:
        for ending in (*format_.suffixes, *format_.named_suffixes):
            assert f"`{ending}`" in PAGE, ending
