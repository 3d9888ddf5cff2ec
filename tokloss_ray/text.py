"""Text from a corpus, made safe to look at."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # zero-width joiners belong to the spelling of many languages, and to emoji


def visible(text: str) -> str:
    """Text with control, bidirectional and other invisible characters written as \\uXXXX; one line.

    A terminal obeys control characters, and bidirectional ones reorder what stands around them.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and character not in _JOINERS:
        code = ord(character)
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character
