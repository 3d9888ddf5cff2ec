"""What annotators do in Label Studio, read back as tags."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.corrections import TAGS, annotated, whole
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.label_studio import read_tasks, tasks_json, text_of
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.sentence_spans import tag_set_of


def test_offsets_count_code_points_of_the_text() -> None:
    words = ["👩‍💻", "Bob", "", "\n", "a\tb"]
    text, starts, ends = text_of(words)
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == ["👩‍💻", "Bob", "␣", "␊", "a␉b"]


@pytest.mark.parametrize("utf16", [False, True])
def test_regions_of_label_studio_become_tags(utf16: bool) -> None:
    words = ["😀", "Anna", "Bell", "in", "New", "York"]
    sentence = Sentence("x", "f", 3, words, ["O", "B-PER", "O", "O", "I-LOC", "I-LOC"], ["O"] * 6, [0.5] * 6, [0.5] * 6)

    def change(regions: list[dict], task: dict) -> None:
        text = task["data"]["text"]
        start = text.index("Anna")
        regions[0]["value"] |= {"start": start, "end": start + 7, "text": text[start : start + 7]}  # cuts into Bell
        if utf16:
            for region in regions:
                region["value"]["start"] += 1
                region["value"]["end"] += 1

    data = annotated(whole(tasks_json([sentence], tag_set_of(tuple(TAGS)))), change)
    (found,) = read_tasks(data)
    assert found.changes == {2: ("O", "I-PER")}  # and the untouched I-LOC I-LOC stays as it was written
    mini = [
        {**task["data"], "id": 1, "annotation_id": 5, "label": [r["value"] for r in task["annotations"][0]["result"]]}
        for task in json.loads(data)
    ]
    assert list(read_tasks(json.dumps(mini).encode())) == [found]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r, t: r.append(r[0]), "overlap in the word"),
        (lambda r, t: r[0]["value"].update(labels=[]), "0 labels"),
        (lambda r, t: r[0]["value"].update(start=1000, end=1001, text=None), "no word"),
        (lambda r, t: t["data"].pop("words"), "task 1 has no"),
    ],
)
def test_what_no_tags_can_be_made_of_is_refused(change: Any, says: str) -> None:
    sentence = Sentence("x", "f", 3, ["Anna"], ["B-PER"], ["O"], [0.5], [0.5])
    with pytest.raises(Refused, match=says):
        list(read_tasks(annotated(whole(tasks_json([sentence], tag_set_of(tuple(TAGS)))), change)))


def test_annotators_who_disagree_are_refused_and_skipped_tasks_are_left() -> None:
    sentence = Sentence("x", "f", 3, ["Anna"], ["B-PER"], ["O"], [0.5], [0.5])
    tasks = json.loads(annotated(whole(tasks_json([sentence], tag_set_of(tuple(TAGS))))))
    tasks[0]["annotations"].append({"result": [], "was_cancelled": True})
    assert [c.changes for c in read_tasks(json.dumps(tasks).encode())] == [{}]
    tasks[0]["annotations"][1]["was_cancelled"] = False
    with pytest.raises(Refused, match="disagree"):
        list(read_tasks(json.dumps(tasks).encode()))
    tasks[0]["annotations"] = []
    assert list(read_tasks(json.dumps(tasks).encode())) == [Correction("x", "f", 3)]
