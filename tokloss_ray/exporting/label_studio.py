"""Label Studio: tasks to import, the labelling configuration that goes with them, and its JSON exports back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.regions import FIELDS, Region, correction_of, fields_of, is_ours, regions_of, text_of
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import TagSet
from tokloss_ray.tags.sentence_spans import types_of

FROM_NAME, TO_NAME = "label", "text"
_DATA = ("text", *FIELDS)


def labelling_config(tag_set: TagSet) -> str:
    """The XML that a project needs to show the tasks: paste it under Settings, Labeling Interface, Code."""
    types = "".join(f"    <Label value={quoteattr(type_)}/>\n" for type_ in types_of(tag_set))
    return (
        f'<View>\n  <Labels name="{FROM_NAME}" toName="{TO_NAME}">\n{types}  </Labels>\n'
        f'  <Text name="{TO_NAME}" value="$text" granularity="word"/>\n</View>\n'
    )


def tasks_json(sentences: Iterable[Sentence], tag_set: TagSet) -> Iterator[bytes]:
    """The tasks as one JSON array, piece by piece."""
    separator = "[\n"
    for sentence in sentences:
        yield (separator + json.dumps(task_of(sentence, tag_set), ensure_ascii=False)).encode()
        separator = ",\n"
    yield b"\n]\n" if separator != "[\n" else b"[]\n"


def task_of(sentence: Sentence, tag_set: TagSet) -> dict[str, Any]:
    """One task: the sentence, and its entities by the labels, by the model and by reviewers, all as predictions.

    The model's entities have a score, the mean probability of their words; the sentence's is that of its least certain
    word.
    """
    shown = text_of(sentence.words)

    def results(tags: Sequence[str | None], name: str, scored: bool) -> list[dict[str, Any]]:
        found = []
        for i, (span, region) in enumerate(regions_of(shown, tags, tag_set)):
            value = {"start": region.start, "end": region.end, "text": region.text, "labels": [region.type]}
            result: dict[str, Any] = {
                "id": f"{name}-{i}",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "type": "labels",
                "value": value,
            }
            if scored:
                result["score"] = _mean([p for p in sentence.probs[span.start : span.end] if p is not None])
            found.append(result)
        return found

    probs = [p for p in sentence.probs if p is not None]
    decided = sentence.decided
    review = [] if decided is None else [{"model_version": "review", "result": results(decided, "review", False)}]
    return {
        "data": {
            "text": shown.text,
            **fields_of(sentence, tag_set),
            "total_loss": round(sentence.total_loss, 6),
        },
        "predictions": [
            {"model_version": "labels", "result": results(sentence.labels, "labels", False)},
            {
                "model_version": "model",
                "score": round(min(probs, default=0.0), 6),
                "result": results(sentence.predicted, "model", True),
            },
            *review,
        ],
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 6)


def read_tasks(data: bytes) -> Iterator[Correction]:
    """What a JSON or JSON-MIN export says, one correction a task that has an annotation.

    A task with several annotations counts if they agree; those that were skipped or cancelled do not count.

    Raises:
        Refused: not such a file, or a task whose regions do not fit its words.
    """
    try:
        tasks = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("it is not valid JSON") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise Refused("it is not a list of tasks")
    for number, task in enumerate(tasks, start=1):
        fields = task["data"] if isinstance(task.get("data"), dict) else task
        if not is_ours(fields) or "text" not in fields:
            raise Refused(f"task {number} has no {', '.join(_DATA)}: export it with tokloss export")
        name = str(fields["example_id"])
        answers = [[_region(r["value"], name) for r in regions] for regions in _annotations(task)]
        yield correction_of(fields, answers, "Label Studio")


def _annotations(task: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The regions of each annotation that counts. In JSON-MIN they stand beside the data, without a cover."""
    if not isinstance(task.get("data"), dict):
        regions = task.get(FROM_NAME) or []
        return [[{"value": value} for value in regions]] if "annotation_id" in task or regions else []
    kept = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    return [[r for r in a.get("result") or [] if r.get("type", "labels") == "labels"] for a in kept]


def _region(value: dict[str, Any], name: str) -> Region:
    start, end, types = int(value["start"]), int(value["end"]), value.get("labels") or []
    if len(types) != 1:
        raise Refused(f"a region of {name} at {start} to {end} has {len(types)} labels: fix it in Label Studio")
    return Region(start, end, types[0], value.get("text"))


LABEL_STUDIO = ExportFormat(
    name="label-studio",
    write=lambda sentences, tag_set, loss: tasks_json(sentences, tag_set),
    read=read_tasks,
    recognises=lambda data: data.startswith(b"["),
    beside=labelling_config,
    next_step="The labelling interface is in {file}.xml. After annotating, export the project as JSON, then:",
)
