"""The same text with the same two spans in the shape of each tool."""

from __future__ import annotations

from typing import Any

TEXT = "👩\u200d👧 Anna in Ulm"
SPANS: dict[str, dict[str, Any]] = {
    "spacy": {"text": TEXT, "entities": [[4, 8, "PER"], [12, 15, "LOC"]]},
    "doccano": {"id": 1, "text": TEXT, "label": [[4, 8, "PER"], [12, 15, "LOC"]]},
    "doccano with relations": {
        "id": 1,
        "text": TEXT,
        "entities": [
            {"id": 7, "label": "LOC", "start_offset": 12, "end_offset": 15},
            {"id": 8, "label": "PER", "start_offset": 4, "end_offset": 8},
        ],
        "relations": [],
    },
    "prodigy": {
        "text": TEXT,
        "tokens": [
            {"text": "👩\u200d👧", "start": 0, "end": 3, "id": 0},
            {"text": "Anna", "start": 4, "end": 8, "id": 1},
            {"text": "in", "start": 9, "end": 11, "id": 2},
            {"text": "Ulm", "start": 12, "end": 15, "id": 3},
        ],
        "spans": [
            {"start": 4, "end": 8, "token_start": 1, "token_end": 1, "label": "PER"},
            {"start": 12, "end": 15, "token_start": 3, "token_end": 3, "label": "LOC"},
        ],
        "answer": "accept",
    },
    "spacy json": {
        "text": TEXT,
        "ents": [{"start": 4, "end": 8, "label": "PER"}, {"start": 12, "end": 15, "label": "LOC"}],
        "tokens": [{"id": i, "start": a, "end": b} for i, (a, b) in enumerate([(0, 3), (4, 8), (9, 11), (12, 15)])],
    },
    "label studio": {
        "id": 1,
        "data": {"text": TEXT},
        "annotations": [
            {"was_cancelled": True, "result": []},
            {
                "result": [
                    {"type": "choices", "value": {"choices": ["news"]}},
                    {"type": "labels", "value": {"start": 4, "end": 8, "text": "Anna", "labels": ["PER"]}},
                    {"type": "labels", "value": {"start": 12, "end": 15, "text": "Ulm", "labels": ["LOC"]}},
                ]
            },
        ],
    },
    "label studio, utf-16": {
        "data": {"text": TEXT},
        "annotations": [
            {
                "result": [
                    {"value": {"start": 6, "end": 10, "text": "Anna", "labels": ["PER"]}},
                    {"value": {"start": 14, "end": 17, "text": "Ulm", "labels": ["LOC"]}},
                ]
            }
        ],
    },
    "label studio, min": {
        "text": TEXT,
        "label": [
            {"start": 4, "end": 8, "text": "Anna", "labels": ["PER"]},
            {"start": 12, "end": 15, "text": "Ulm", "labels": ["LOC"]},
        ],
    },
    "gliner": {"tokenized_text": ["👩\u200d👧", "Anna", "in", "Ulm"], "ner": [[1, 1, "PER"], [3, 3, "LOC"]]},
}
