"""Label Studio: tasks to import, the labelling configuration that goes with them, and its JSON exports back.

A task's `data` holds the words as they are, and `text`, what the annotator sees: the words joined by spaces. Offsets
count code points of `text`, as Label Studio does. In `text` line breaks and other control characters are drawn as one
visible character each, for browsers change them and offsets would no longer fit; words of nothing visible are drawn as
well, so that they can be selected.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import quoteattr

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import OUTSIDE, TagSet
from tokloss_ray.tags.sentence_spans import Span, retag, spans_of, tag_set_in, types_of

FROM_NAME, TO_NAME = "label", "text"
_BLANK, _CONTROL = "␣", 0x2400
_DATA = ("text", "words", "labels", "tags", "scheme", "example_id", "source", "source_row")


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
    text, starts, ends = text_of(sentence.words)

    def results(tags: Sequence[str | None], name: str, scored: bool) -> list[dict[str, Any]]:
        found = []
        for i, span in enumerate(spans_of(tags, tag_set)):
            start, end = starts[span.start], ends[span.end - 1]
            value = {"start": start, "end": end, "text": text[start:end], "labels": [span.type]}
            region: dict[str, Any] = {
                "id": f"{name}-{i}",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "type": "labels",
                "value": value,
            }
            if scored:
                region["score"] = _mean([p for p in sentence.probs[span.start : span.end] if p is not None])
            found.append(region)
        return found

    probs = [p for p in sentence.probs if p is not None]
    decided = sentence.decided
    review = [] if decided is None else [{"model_version": "review", "result": results(decided, "review", False)}]
    return {
        "data": {
            "text": text,
            "words": sentence.words,
            "labels": sentence.labels,
            "tags": list(tag_set.tags),
            "scheme": tag_set.scheme,
            "example_id": sentence.example_id,
            "source": sentence.source,
            "source_row": sentence.source_row,
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


def text_of(words: Sequence[str]) -> tuple[str, list[int], list[int]]:
    """What the annotator sees, and where each word begins and ends in it, in code points."""
    shown = [_visible(word) for word in words]
    starts, ends, position = [], [], 0
    for word in shown:
        starts.append(position)
        ends.append(position + len(word))
        position = ends[-1] + 1
    return " ".join(shown), starts, ends


def _visible(word: str) -> str:
    drawn = "".join(_drawn(char) for char in word)
    if all(char.isspace() or unicodedata.category(char) in ("Cf", "Cn") for char in drawn):
        return _BLANK * max(1, len(word))
    return drawn


def _drawn(char: str) -> str:
    if ord(char) < 0x20:
        return chr(_CONTROL + ord(char))
    return "\ufffd" if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char


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
        if not _is_ours(fields):
            raise Refused(f"task {number} has no {', '.join(_DATA)}: export it with tokloss export")
        yield _correction(fields, _annotations(task))


def _is_ours(fields: dict[str, Any]) -> bool:
    lists = all(isinstance(fields.get(name), list) for name in ("words", "labels", "tags"))
    return lists and all(name in fields for name in _DATA) and len(fields["words"]) == len(fields["labels"])


def _annotations(task: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The regions of each annotation that counts. In JSON-MIN they stand beside the data, without a cover."""
    if not isinstance(task.get("data"), dict):
        regions = task.get(FROM_NAME) or []
        return [[{"value": value} for value in regions]] if "annotation_id" in task or regions else []
    kept = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    return [[r for r in a.get("result") or [] if r.get("type", "labels") == "labels"] for a in kept]


def _correction(fields: dict[str, Any], annotations: list[list[dict[str, Any]]]) -> Correction:
    labels: list[str | None] = fields["labels"]
    key = str(fields["example_id"]), str(fields["source"]), int(fields["source_row"])
    correction = Correction(*key, dict(enumerate(fields["words"])))
    tag_set = tag_set_in(tuple(fields["tags"]), fields["scheme"])
    answers = [retag(labels, _spans(fields, regions, correction.name), tag_set) for regions in annotations]
    if not answers:
        return Correction(*key)
    if any(answer != answers[0] for answer in answers):
        raise Refused(f"the annotations of {correction.name} disagree: keep one of them in Label Studio")
    for i, (old, new) in enumerate(zip(labels, answers[0], strict=True)):
        if new != old:
            correction.changes[i] = (old, new or OUTSIDE)
    return correction


def _spans(fields: dict[str, Any], regions: list[dict[str, Any]], name: str) -> list[Span]:
    """The entities that the regions of one annotation mark: all words that a region touches."""
    text, starts, ends = text_of(fields["words"])
    spans: list[Span] = []
    for region in regions:
        value = region["value"]
        start, end = _code_points(text, value)
        types = value.get("labels") or []
        touched = [i for i in range(len(starts)) if starts[i] < end and start < ends[i]]
        if len(types) != 1 or not touched:
            what = "no word" if len(types) == 1 else f"{len(types)} labels"
            raise Refused(f"a region of {name} at {start} to {end} has {what}: fix it in Label Studio")
        spans.append(Span(touched[0], touched[-1] + 1, types[0]))
    spans.sort()
    for left, right in pairwise(spans):
        if right.start < left.end:
            word = fields["words"][right.start]
            raise Refused(f"two regions of {name} overlap in the word {word!r}: a word can have only one tag")
    return spans


def _code_points(text: str, value: dict[str, Any]) -> tuple[int, int]:
    """Start and end of a region. Some versions of Label Studio count UTF-16 units, as the region's text tells."""
    start, end, marked = int(value["start"]), int(value["end"]), value.get("text")
    if marked is None or text[start:end] == marked:
        return start, end
    units = text.encode("utf-16-le")
    if units[2 * start : 2 * end].decode("utf-16-le", "replace") == marked:
        before = units[: 2 * start].decode("utf-16-le", "replace")
        return len(before), len(before) + len(marked)
    return start, end


LABEL_STUDIO = ExportFormat(
    name="label-studio",
    write=lambda sentences, tag_set, loss: tasks_json(sentences, tag_set),
    read=read_tasks,
    begins=(b"[", b"{"),
    beside=labelling_config,
    next_step="The labelling interface is in {file}.xml. After annotating, export the project as JSON, then:",
)
