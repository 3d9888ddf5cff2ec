"""doccano: JSON Lines to import for sequence labelling, and its JSONL exports back.

https://doccano.github.io/doccano/tutorial/ describes the import, with offsets in code points.
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
    """One line: the text, and the entities that annotators start from."""
    shown = text_of(sentence.words)
    return {
        "text": shown.text,
        "label": [[r.start, r.end, r.type] for _, r in regions_of(shown, sentence.corrected, tag_set)],
        "predicted": [[r.start, r.end, r.type] for _, r in regions_of(shown, sentence.predicted, tag_set)],
        "total_loss": round(sentence.total_loss, 6),
    }


def read_doccano(data: bytes) -> Iterator[Correction]:
    """What an export says; every line counts, since doccano does not say which of them somebody has looked at.

    Raises:
        Refused: not such a file, or regions that do not fit the words.
    """
    for task, fields in read_lines(data):
        yield correction_of(fields, [_regions(task, str(fields["example_id"]))], "doccano")


def _regions(task: dict[str, Any], name: str) -> list[Region]:
    """Of a project with relations, entities are objects."""
    try:
        if "entities" in task:
            return [Region(int(e["start_offset"]), int(e["end_offset"]), str(e["label"])) for e in task["entities"]]
        found = task["label"] if "label" in task else task["labels"]
        return [Region(int(start), int(end), str(type_)) for start, end, type_ in found]
    except (KeyError, TypeError, ValueError):
        raise Refused(f"{name} has no list of [start, end, label]: export the project as JSONL") from None


DOCCANO = ExportFormat(
    name="doccano",
    write=lambda sentences, tag_set, loss: write_lines(sentences, tag_set, task_of),
    read=read_doccano,
    recognises=lambda data: bool(first_keys(data) & {"label", "labels", "entities"}),
    next_step="Import it as JSONL into a project for sequence labelling. After annotating, export it as JSONL, then:",
)
