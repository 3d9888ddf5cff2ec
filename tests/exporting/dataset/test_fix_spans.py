"""Corrected tags become spans again, in the shape that the dataset has, and no other span changes."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, write_jsonl
from tests.support.spans import SPANS, TEXT
from tokloss_ray import apply_fixes, export
from tokloss_ray.errors import Refused

Run = Callable[..., Inline]
Tags = list[str]


def corrected(found: Inline, file: Path, new: dict[int, Tags]) -> str:
    """The output as a corrected CSV: rows, by their number, with other tags."""
    export(found.plan.job.output, str(file), "csv", overwrite=True)
    rows = list(csv.DictReader(io.StringIO(file.read_text("utf-8-sig"), newline="")))
    numbers = {row["source_row"]: i for i, row in enumerate({row["source_row"]: row for row in rows}.values())}
    for row in rows:
        tags = new.get(numbers[row["source_row"]])
        if tags is not None:
            row["corrected"] = tags[int(row["word_index"])]
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


def labels_of(found: Inline) -> list[Tags]:
    return [[label for label in row["labels"] if label != "IGN"] for row in found.rows]


OLD = ["O", "B-PER", "O", "B-LOC"]
NEWS: list[Tags] = [
    ["O", "B-PER", "O", "O"],
    ["O", "O", "O", "B-LOC"],
    ["O", "B-PER", "B-PER", "I-PER"],
    ["B-PER", "B-PER", "O", "B-LOC"],
    ["O", "B-PER", "O", "B-PER"],
    ["O", "O", "O", "O"],
    ["B-PER", "I-PER", "I-PER", "I-PER"],
]


def raw(row: dict[str, Any]) -> list[Any]:
    """The spans of a row, whatever its shape."""
    if "annotations" in row:
        chosen = next(a for a in row["annotations"] if not a.get("was_cancelled"))
        return [region for region in chosen["result"] if "labels" in region["value"]]
    return next(row[name] for name in ("entities", "ents", "spans", "label", "ner") if name in row)


@pytest.mark.parametrize("shape", SPANS)
@pytest.mark.parametrize("layout", ["lines", "array"])
def test_every_shape(run: Run, tmp_path: Path, shape: str, layout: str) -> None:
    """Scored again, the new file has the new tags; a span that was right is the same to the last field, and so is
    everything else."""
    rows = [copy.deepcopy(SPANS[shape]) for _ in (*NEWS, None)]
    file = tmp_path / "in.json"
    if layout == "lines":
        write_jsonl(file, rows)
    else:
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    found = run(file)
    assert labels_of(found) == [OLD] * len(rows)
    fixes = corrected(found, tmp_path / "fix.csv", dict(enumerate(NEWS)))
    done = apply_fixes(fixes, str(file), str(tmp_path / "new.json"))
    assert (done.rows_changed, done.files_changed) == (len(NEWS), 1)
    assert labels_of(run(tmp_path / "new.json")) == [*NEWS, OLD]
    text = (tmp_path / "new.json").read_text(encoding="utf-8")
    new = json.loads(text) if layout == "array" else [json.loads(line) for line in text.splitlines()]
    assert new[-1] == rows[-1]
    person, place = sorted(raw(rows[0]), key=lambda s: "PER" not in str(s))
    assert raw(new[0]) == [person]
    assert raw(new[1]) == [place]
    assert person in raw(new[2])
    assert person in raw(new[3])
    assert place in raw(new[3])
    assert all(len(raw(a)) == len([t for t in tags if t[0] == "B"]) for a, tags in zip(new, NEWS, strict=False))
    for row in (*new, *rows):
        raw(row).clear()
        for annotation in row.get("annotations", ()):
            annotation["result"] = [r for r in annotation["result"] if "labels" not in r["value"]]
    assert new == rows


def test_new_spans_are_written_like_others(run: Run, tmp_path: Path) -> None:
    def fixed(shape: str, tags: Tags) -> Any:
        file = write_jsonl(tmp_path / f"{shape}.jsonl", [SPANS[shape]])
        fixes = corrected(run(file), tmp_path / "fix.csv", {0: tags})
        apply_fixes(fixes, str(file), str(tmp_path / f"{shape}-new.jsonl"))
        return raw(json.loads((tmp_path / f"{shape}-new.jsonl").read_text()))

    tags = ["O", "B-PER", "B-LOC", "I-LOC"]
    assert fixed("spacy", tags) == [[4, 8, "PER"], [9, 15, "LOC"]]
    assert fixed("gliner", tags) == [[1, 1, "PER"], [2, 3, "LOC"]]
    assert fixed("prodigy", tags)[1] == {"start": 9, "end": 15, "token_start": 2, "token_end": 3, "label": "LOC"}
    assert fixed("doccano with relations", tags)[1] == {"id": 9, "label": "LOC", "start_offset": 9, "end_offset": 15}
    region = fixed("label studio", tags)[1]
    assert region["value"] == {"start": 9, "end": 15, "text": "in Ulm", "labels": ["LOC"]}
    assert (region["from_name"], region["to_name"], region["type"]) == ("label", "text", "labels")
    assert fixed("label studio, utf-16", tags)[1]["value"] == {
        "start": 11,
        "end": 17,
        "text": "in Ulm",
        "labels": ["LOC"],
    }


TYPE = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("note", pa.string())]))
LISTS = pa.struct([("end", pa.list_(pa.int64())), ("label", pa.list_(pa.string())), ("start", pa.list_(pa.int64()))])


@pytest.mark.parametrize("kind", ["list of structs", "struct of lists"])
def test_parquet(run: Run, tmp_path: Path, kind: str) -> None:
    spans: Any = [
        {"start": 4, "end": 8, "label": "PER", "note": "a"},
        {"start": 12, "end": 15, "label": "LOC", "note": "b"},
    ]
    if kind == "struct of lists":
        spans = {"start": [4, 12], "end": [8, 15], "label": ["PER", "LOC"]}
    of = TYPE if kind == "list of structs" else LISTS
    table = pa.table({"id": ["x"] * 3, "text": [TEXT] * 3, "entities": pa.array([spans] * 3, of), "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    fixes = corrected(run(tmp_path / "in.parquet"), tmp_path / "fix.csv", {1: ["O", "B-PER", "B-LOC", "I-LOC"]})
    apply_fixes(fixes, str(tmp_path / "in.parquet"), str(tmp_path / "new.parquet"))
    new = pq.read_table(tmp_path / "new.parquet")
    assert new.schema.equals(table.schema)
    assert new.drop_columns("entities").equals(table.drop_columns("entities"))
    wanted = copy.deepcopy(spans)
    if kind == "struct of lists":
        wanted["start"][1] = 9
    else:
        wanted[1] |= {"start": 9, "note": None}
    assert new.column("entities").to_pylist() == [spans, wanted, spans]


def test_labels_keep_the_name_that_the_data_has(run: Run, tmp_path: Path) -> None:
    rows = [{"text": "Ulm", "entities": []}, {"text": "Anna in Ulm", "entities": [[0, 4, "person"], [8, 11, "city"]]}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    mapped = {"person": "PER", "city": "LOC"}
    found = run(file, label_map=mapped)
    fixes = corrected(found, tmp_path / "fix.csv", {0: ["B-LOC"], 1: ["O", "O", "B-PER"]})
    apply_fixes(fixes, str(file), str(tmp_path / "new.jsonl"), label_map=mapped)
    new = [json.loads(line)["entities"] for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert new == [[[0, 3, "city"]], [[8, 11, "person"]]]


def test_widened_spans_that_did_not_change_keep_their_offsets(run: Run, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": "Annas Ulm", "entities": [[0, 4, "PER"], [6, 8, "LOC"]]}])
    fixes = corrected(run(file, widen_spans=True), tmp_path / "fix.csv", {0: ["B-PER", "B-PER"]})
    apply_fixes(fixes, str(file), str(tmp_path / "new.jsonl"), widen_spans=True)
    assert json.loads((tmp_path / "new.jsonl").read_text())["entities"] == [[0, 4, "PER"], [6, 9, "PER"]]
    with pytest.raises(Refused, match="cuts the word"):
        apply_fixes(fixes, str(file), str(tmp_path / "again.jsonl"))


def test_refused(run: Run, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [SPANS["spacy"]] * 2)
    fixes = corrected(run(file), tmp_path / "fix.csv", {1: ["O", "B-MISC", "O", "O"]})
    with pytest.raises(Refused, match="gets the tag B-MISC, which no word has yet"):
        apply_fixes(fixes, str(file), str(tmp_path / "new.jsonl"))
    assert apply_fixes(fixes, str(file), str(tmp_path / "new.jsonl"), tags=("B-MISC",)).words_changed == 2
    fixes = corrected(run(file), tmp_path / "fix.csv", {1: ["O", "B-LOC", "O", "O"]})
    write_jsonl(file, [SPANS["spacy"], SPANS["spacy"] | {"entities": []}])
    with pytest.raises(Refused, match="was exported as B-PER but is O in the dataset"):
        apply_fixes(fixes, str(file), str(tmp_path / "again.jsonl"))
    with pytest.raises(Refused, match="score it with another --words"):
        apply_fixes(fixes, str(file), str(tmp_path / "again.jsonl"), words="model")
    nested = write_jsonl(tmp_path / "nested.jsonl", [{"text": TEXT, "gold": {"spans": SPANS["spacy"]["entities"]}}])
    with pytest.raises(Refused, match=r"column gold\.spans is a field of another one"):
        apply_fixes(fixes, str(nested), str(tmp_path / "again.jsonl"), spans_column="gold.spans")
