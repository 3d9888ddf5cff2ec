"""Any string as a cell of CoNLL columns: without white space, as backslash escapes (docs/export.md lists them)."""

from __future__ import annotations

import re
import unicodedata

NONE = "_"
"""The cell of what is not there."""
HEADER = "# global.columns = "
"""How the line begins that names the columns, in CoNLL-U Plus."""
OWN_PREFIX = "TOKLOSS:"
"""How the names of columns begin that `tokloss export` writes; cells of such files are escaped."""
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r", " ": "\\s", "\\": "\\\\"}
_LONG = {escape[1]: char for char, escape in _SHORT.items()} | {"#": "#", "_": NONE, "e": ""}
_ESCAPE = re.compile(r"\\(u[0-9a-f]{4}|U[0-9a-f]{8}|.)", re.DOTALL)


def cell(text: str) -> str:
    """A string without white space that `uncell` turns back."""
    escaped = "".join(map(_escaped, text)) or "\\e"
    return f"\\{escaped}" if escaped.startswith("#") else escaped


def _escaped(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isspace() or unicodedata.category(char) in ("Cc", "Zl", "Zp", "Zs") or char == "\ufeff":
        return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"
    return char


def uncell(text: str) -> str:
    """The string that `cell` was given.

    Raises:
        ValueError: an escape that there is not.
    """

    def char(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in _LONG:
            raise ValueError(f"unknown escape: \\{code}")
        return _LONG[code]

    return _ESCAPE.sub(char, text)
