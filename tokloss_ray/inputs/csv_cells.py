"""Lists in the cells of a table: JSON, as Python prints them, or words with single spaces between."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_ITEM = r"""(?:'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+"|-?\d++|None)"""
_PRINTED = re.compile(rf"\[\s*(?:{_ITEM}(?:\s*,\s*{_ITEM})*+\s*,?\s*)?\]", re.DOTALL)
_SPACED = re.compile(rf"\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]", re.DOTALL)


def is_list(cell: str) -> bool:
    """Whether a cell is to be read as JSON or as Python prints lists."""
    return cell[:1] == "[" and cell[-1:] == "]"


def listed(cell: str) -> list[Any]:
    """The items of such a cell.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        # Not everything that Python evaluates: adjacent strings would become one word.
        if _PRINTED.fullmatch(cell) is None:
            hint = ": numpy printed it, without commas; write lists (tolist)" if _SPACED.fullmatch(cell) else ""
            raise ValueError(f"neither a list as JSON nor as Python prints it{hint}") from None
        found = ast.literal_eval(cell)
    if not isinstance(found, list):
        raise ValueError("not a list")
    return found


def spaced(cell: str) -> list[str]:
    """The words of a cell that single spaces separate.

    Raises:
        ValueError: there is more than one space, or one at an end: a word would be empty.
    """
    words = cell.split(" ")
    if "" in words:
        raise ValueError("words are not separated by single spaces")
    return words
