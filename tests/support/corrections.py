"""What an annotator does to an exported file, done by a test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spacy
import spacy.tokens
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from tests.support import inline
from tokloss_ray import ScoreConfig
from tokloss_ray.exporting.regions import text_of

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
FORMATS = ("label-studio", "doccano", "prodigy", "spacy", "conll", "csv")
texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\t\n\r \"',;#\\=+-@_\u2028\u2029\x85\x0b\x00\u202e\u200b\ufeff\xa0👩‍💻'"),
    ),
    max_size=6,
)


def whole(pieces: Any) -> bytes:
    return b"".join(pieces)


def annotated(data: bytes, change: Callable[[list[dict], dict], None] = lambda regions, task: None) -> bytes:
    """As Label Studio exports tasks that somebody has worked on: the chosen prediction has become an annotation."""
    tasks = json.loads(data)
    for i, task in enumerate(tasks):
        regions = [{**region, "origin": "prediction"} for region in task["predictions"][0]["result"]]
        change(regions, task)
        about = {"id": i + 7, "was_cancelled": False, "completed_by": 1, "ground_truth": False}
        task |= {"id": i + 1, "annotations": [{**about, "result": regions}], "project": 1, "meta": {}}
    return json.dumps(tasks).encode()


def correct(file: Path, format: str, changes: dict[tuple[str, int], str]) -> None:
    """Do an annotator's work in an exported file."""
    if format == "csv":
        rows = list(csv.reader(io.StringIO(file.read_text("utf-8-sig"), newline="")))
        for row in rows[1:]:
            row[-1] = changes.get((row[0], int(row[3])), row[-1])
        with file.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows(rows)
    elif format == "conll":
        lines, name, index = [], "", 0
        for line in file.read_text().split("\n"):
            if line.startswith("# sent_id = "):
                name, index = line.split(" = ")[1], 0
            elif line and not line.startswith("#"):
                cells = line.split("\t")
                line = "\t".join([*cells[:-1], changes.get((name, index), cells[-1])])
                index += 1
            lines.append(line)
        file.write_text("\n".join(lines))
    elif format == "label-studio":

        def change(regions: list[dict], task: dict) -> None:
            regions[:] = [
                {"type": "labels", "value": {"start": start, "end": end, "text": text, "labels": [type_]}}
                for start, end, text, type_ in _regions(task["data"], changes)
            ]

        file.write_bytes(annotated(file.read_bytes(), change))
    elif format == "spacy":
        tokens, vocab = spacy.tokens, spacy.blank("xx").vocab
        docs = list(tokens.DocBin(store_user_data=True).from_bytes(file.read_bytes()).get_docs(vocab))
        for doc in docs:
            found = _regions(doc.user_data["tokloss"], changes)
            doc.ents = [doc.char_span(start, end, label=type_) for start, end, _, type_ in found]
        file.write_bytes(tokens.DocBin(docs=docs, store_user_data=True).to_bytes())
    else:
        tasks = [json.loads(line) for line in file.read_text().splitlines()]
        for task in tasks:
            found = _regions(task["tokloss"], changes)
            if format == "doccano":
                task["label"] = [[start, end, type_] for start, end, _, type_ in found]
            else:
                task["spans"] = [{"start": start, "end": end, "label": type_} for start, end, _, type_ in found]
                task["answer"] = "accept"
        file.write_text("\n".join(map(json.dumps, tasks)))


def _regions(fields: dict, changes: dict[tuple[str, int], str]) -> list[tuple[int, int, str, str]]:
    """The entities after the changes, as (start, end, text, type)."""
    tags = [changes.get((fields["example_id"], i), t) for i, t in enumerate(fields["labels"])]
    text, starts, ends = text_of(fields["words"])
    return [(starts[s], ends[e], text[starts[s] : ends[e]], t) for t, s, e in get_entities(tags)]


def annotated_if(file: Path, format: str) -> str:
    if format != "label-studio":
        return str(file)
    copy = file.with_suffix(".done")
    copy.write_bytes(annotated(file.read_bytes()))
    return str(copy)


def scored(folder: Path, tmp_path: Path, data: Path, **options: Any) -> str:
    output = str(tmp_path / "out")
    inline.score_inline(ScoreConfig(model=str(folder / "model"), input=(str(data),), output=output, **options))
    return output
