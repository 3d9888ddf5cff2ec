"""Sentences as JSON Lines for annotation tools, each with what it takes to make tags of its regions again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.regions import fields_of, is_ours
from tokloss_ray.exporting.sentences import Sentence
from tokloss_ray.tags.schemes import TagSet

OURS = "tokloss"
"""The key that holds the fields of `fields_of`. Annotation tools carry keys that they do not know along."""


def write_lines(
    sentences: Iterable[Sentence], tag_set: TagSet, task_of: Callable[[Sentence, TagSet], dict[str, Any]]
) -> Iterator[bytes]:
    """One line a sentence: its task, and our fields."""
    for sentence in sentences:
        line = task_of(sentence, tag_set) | {OURS: fields_of(sentence, tag_set)}
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def read_lines(data: bytes) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each line as (task, our fields), wherever the tool has put these.

    Raises:
        Refused: a line is not JSON, or has no such fields.
    """
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            task = json.loads(line)
        except (ValueError, RecursionError):
            raise Refused(f"line {number} is not valid JSON") from None
        fields = _ours(task)
        if fields is None:
            raise Refused(f"line {number} has no field {OURS}: export it with tokloss export")
        yield task, fields


def _ours(task: Any) -> dict[str, Any] | None:
    if not isinstance(task, dict):
        return None
    meta = task.get("meta")
    places = (task.get(OURS), meta.get(OURS) if isinstance(meta, dict) else None)
    return next((fields for fields in places if is_ours(fields)), None)


def first_keys(data: bytes) -> set[str]:
    """The keys of the first line, if it is an object; none otherwise."""
    try:
        first = json.loads(io.BytesIO(data).readline())
    except (ValueError, RecursionError):
        return set()
    return set(first) if isinstance(first, dict) else set()
