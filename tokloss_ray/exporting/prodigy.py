"""Prodigy: tasks for `ner.manual` and other recipes on spans, and what `prodigy db-out` writes back.

https://prodi.gy/docs/api-interfaces#spans has the format: offsets in code points, tokens by number, the last included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.json_lines import first_keys, read_lines, write_lines
from tokloss_ray.exporting.regions import Region, correction_of, regions_of, text_of
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import TagSet


def task_of(sentence: Sentence, tag_set: TagSet) -> dict[str, Any]:
    """One task: text, words as tokens, and the entities that annotators start from."""
    text, starts, ends = shown = text_of(sentence.words)
    tokens = [
        {"text": text[start:end], "start": start, "end": end, "id": i, "ws": end < len(text)}
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    spans = [
        {
            "start": region.start,
            "end": region.end,
            "token_start": span.start,
            "token_end": span.end - 1,
            "label": region.type,
        }
        for span, region in regions_of(shown, sentence.corrected, tag_set)
    ]
    meta = {"id": sentence.example_id, "total_loss": round(sentence.total_loss, 3)}
    return {"text": text, "tokens": tokens, "spans": spans, "meta": meta}


def read_prodigy(data: bytes) -> Iterator[Correction]:
    """What was saved. Tasks that were rejected or ignored change nothing.

    Raises:
        Refused: not such a file, or spans that do not fit the words.
    """
    for task, fields in read_lines(data):
        answers = [_regions(task, str(fields["example_id"]))] if task.get("answer", "accept") == "accept" else []
        yield correction_of(fields, answers, "Prodigy")


def _regions(task: dict[str, Any], name: str) -> list[Region]:
    try:
        return [Region(int(s["start"]), int(s["end"]), str(s["label"])) for s in task.get("spans") or []]
    except (KeyError, TypeError, ValueError):
        raise Refused(f"{name} has a span without start, end or label: fix it in Prodigy") from None


PRODIGY = ExportFormat(
    name="prodigy",
    write=lambda sentences, tag_set, loss: write_lines(sentences, tag_set, task_of),
    read=read_prodigy,
    recognises=lambda data: bool(first_keys(data) & {"spans", "tokens", "answer"}),
    next_step="Annotate it: prodigy ner.manual NAME blank:xx {file} --label LABELS. Save prodigy db-out NAME, then:",
)
