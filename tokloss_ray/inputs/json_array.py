"""JSON files that are one array of objects, as Label Studio and many other tools export: object by object."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO

from tokloss_ray.inputs.lines import KEPT, MAX_RECORD
from tokloss_ray.storage.files import open_location, open_random

_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*[{\]]")
LOOKED_AT = 4096
_STEP = 1 << 20
_BETWEEN = re.compile(r"[\s,\ufeff]*")


@lru_cache(maxsize=256)
def is_array(path: str, version: str) -> bool:
    """Whether a file is an array of objects, not an object a line. `version` keeps changed files apart."""
    with open_random(*open_location(path)) as file:
        return begins_array(file.read(LOOKED_AT))


def may_be_array(path: str) -> bool:
    """Whether a file of this name, packed or not, may be an array."""
    return ".json" in (os.path.splitext(path.lower())[1], os.path.splitext(os.path.splitext(path.lower())[0])[1])


def begins_array(data: bytes) -> bool:
    """Whether the first bytes of a file are those of an array of objects."""
    return _BEGINS.match(data[:LOOKED_AT]) is not None


def objects_in(file: BinaryIO, stop: int = -1) -> Iterator[tuple[int, bytes, int]]:
    """The objects that begin before `stop` (-1: all), each with the offset of its first byte and its number of bytes.

    What is no JSON comes last, as it cannot be told where the next object begins; of more than MAX_RECORD bytes only
    the beginning.
    """
    decoder, reader = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, at, offset, step = "", 0, 0, _STEP
    opened = ended = False
    while True:
        gap = _BETWEEN.match(text, at)
        assert gap is not None  # it matches nothing, too
        offset += len(_bytes(gap[0]))
        at = gap.end()
        if not opened and text.startswith("[", at):
            opened, at, offset = True, at + 1, offset + 1
            continue
        if at < len(text):
            if text[at] == "]" or 0 <= stop <= offset:
                return
            try:
                _, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                end = 0
            if end:
                data = _bytes(text[at:end])
                yield offset, data, len(data)
                at, offset, step = end, offset + len(data), _STEP
                continue
        if ended or len(text) - at > MAX_RECORD:
            rest = _bytes(text[at:]) or b"[" * opened
            yield offset, rest if len(rest) <= MAX_RECORD else rest[:KEPT], len(rest)
            return
        read = file.read(step)
        ended = not read
        text, at, step = text[at:] + reader.decode(read, final=ended), 0, 2 * step


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
