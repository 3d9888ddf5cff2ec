"""JSON files that notice when a byte of them changes: the first key is a checksum over everything behind it."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

_PREFIX = b'{"check": "'
_DIGITS = 16


class DamagedError(ValueError):
    """The bytes are not those that were written."""


def sealed(content: dict[str, Any], indent: int | None = None) -> bytes:
    """A JSON object as bytes, with the checksum in front. `content` must not be empty."""
    rest = b'", ' + json.dumps(content, ensure_ascii=False, indent=indent).encode()[1:]
    return _PREFIX + _check(rest) + rest


def is_sealed(data: bytes) -> bool:
    """Whether the bytes begin as `sealed` writes them; earlier versions wrote plain JSON."""
    return data.startswith(_PREFIX)


def unsealed(data: bytes, strict: bool = False) -> dict[str, Any]:
    """The object that `sealed` was given; unless `strict`, plain JSON is taken as it is.

    Raises:
        DamagedError: the checksum is missing or does not match, or it is no JSON object.
    """
    begin = len(_PREFIX)
    if strict and not is_sealed(data):
        raise DamagedError("it has no checksum")
    if is_sealed(data) and data[begin : begin + _DIGITS] != _check(data[begin + _DIGITS :]):
        raise DamagedError("its checksum does not match")
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DamagedError("it is not a JSON object")
    content.pop("check", None)
    return content


def _check(rest: bytes) -> bytes:
    return sha256(rest).hexdigest()[:_DIGITS].encode()
