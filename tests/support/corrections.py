"""What an annotator does to an exported file, done by a test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from tests.support import inline
from tokloss_ray import ScoreConfig
from tokloss_ray.exporting.regions import text_of

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
FORMATS = ("label-studio", "conll", "csv")
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
    else:

        def change(regions: list[dict], task: dict) -> None:
            data = task["data"]
            tags = [changes.get((data["example_id"], i), t) for i, t in enumerate(data["labels"])]
            text, starts, ends = text_of(data["words"])
            regions[:] = [
                {
                    "type": "labels",
                    "value": {"start": starts[s], "end": ends[e], "text": text[starts[s] : ends[e]], "labels": [t]},
                }
                for t, s, e in get_entities(tags)
            ]

        file.write_bytes(annotated(file.read_bytes(), change))


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
