"""Several runs from one set of settings: which may have a value for each, and where each run writes."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EACH = ("model", "output", "revision", "tokenizer", "labels_column")
"""What runs in one pass may differ in. On the command line and in a file these may have several values, one for each
run; a single value is for all of them."""


def one_each(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each run, where those in `EACH` may have several values.

    Raises:
        ValueError: they differ in number, or two runs would write to one folder.
    """
    given = {
        name: [str(v) if isinstance(v, Path) else v for v in (value if isinstance(value, (list, tuple)) else [value])]
        for name in EACH
        if (value := settings.get(name)) not in (None, [], ())
    }
    count = max((len(values) for values in given.values()), default=1)
    wrong = next((name for name, values in given.items() if len(values) not in (1, count)), None)
    if wrong is not None:
        most = next(name for name, values in given.items() if len(values) == count)
        raise ValueError(f"{wrong}: {len(given[wrong])} values, but {most} has {count}; give one for all, or one each")
    if count > 1 and len(given.get("output", [])) == 1 and "model" in given:
        names = [_folder_name(str(model)) for model in given["model"]] * (count // len(given["model"]))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"output: two runs would write to {given['output'][0]}/{twice}; give one output for each")
        given["output"] = [f"{str(given['output'][0]).rstrip('/')}/{name}" for name in names]
    rest = {name: value for name, value in settings.items() if name not in given}
    return [rest | {name: values[i % len(values)] for name, values in given.items()} for i in range(count)]


def _folder_name(model: str) -> str:
    """`step-100` of runs/step-100, `ner` of the Hub's org/ner."""
    name = posixpath.basename(model.rstrip("/"))
    return name if name not in ("", ".", "..", "~") else os.path.basename(os.path.abspath(os.path.expanduser(model)))
