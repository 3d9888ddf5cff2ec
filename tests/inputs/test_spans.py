"""Words and tags that are made of text and labelled spans: as a plain loop makes them, in every shape of spans."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.inline import Inline, write_jsonl
from tests.support.spans import SPANS, TEXT
from tests.support.tiny import TAGS
from tokloss_ray.errors import Refused
from tokloss_ray.inputs.format import RawChunk
from tokloss_ray.inputs.jsonl import checked, json_table
from tokloss_ray.inputs.span_columns import MADE_TAGS, MADE_WORDS
from tokloss_ray.inputs.spans import to_words
from tokloss_ray.inputs.text_words import PUNCTUATION, WHITESPACE
from tokloss_ray.inputs.unit import Columns, SpanColumns

Run = Callable[..., Inline]
IOBES = ("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
IOB2 = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def made(rows: list[dict[str, Any]], tags: tuple[str, ...] = IOB2, **settings_: Any) -> RawChunk:
    """Rows of text and spans as the readers hand them on."""
    columns = Columns(MADE_WORDS, MADE_TAGS, spans=SpanColumns("text", "spans", **settings_))
    ready = [checked(columns, row) for row in rows]
    assert all(problem == ("", "") for _, problem in ready)
    table = json_table(columns, [row for row, _ in ready], pa.string())
    rules = SimpleNamespace(columns=columns, tags=tags, tokenizer_json="")
    return to_words(rules, RawChunk(table, np.arange(len(rows)), []))


def plainly(text: str, spans: list[list[Any]], way: str, widen: bool) -> list[str] | str:
    """The tags of a row, or the reason why it is refused: one word and one span after the other."""
    words = made([{"text": text, "spans": []}], words=way).table
    if not words.num_rows:
        return "empty"
    starts, ends = words.column("word_starts")[0].as_py(), words.column("word_ends")[0].as_py()
    covered = [
        [i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < end and start < b]
        for start, end, _ in spans
    ]
    for (start, end, _), inside in zip(spans, covered, strict=True):
        if not 0 <= start < end <= len(text) or not inside:
            return "wrong_span"
    for (start, end, _), inside in zip(spans, covered, strict=True):
        if not widen and (starts[inside[0]] < start or ends[inside[-1]] > end):
            return "span_cuts_word"
    if any(a[-1] >= b[0] for a, b in pairwise(sorted(covered))):
        return "overlapping_spans"
    tags = ["O"] * len(starts)
    for (_, _, label), inside in zip(spans, covered, strict=True):
        for i in inside:
            tags[i] = ("B-" if i == inside[0] else "I-") + label
    return tags


characters = st.sampled_from("ab., \u0301👍東\r\n")
span = st.tuples(st.integers(-1, 9), st.integers(-1, 9), st.sampled_from(["PER", "LOC"])).map(list)
row = st.tuples(st.text(characters, max_size=8), st.lists(span, max_size=3))


@given(st.lists(row, max_size=5), st.sampled_from([PUNCTUATION, WHITESPACE]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_tags_and_reasons_are_those_of_a_plain_loop(rows: list[Any], way: str, widen: bool) -> None:
    found = made([{"text": text, "spans": spans} for text, spans in rows], words=way, widen=widen)
    tags = dict(zip(found.source_rows.tolist(), found.table.column(MADE_TAGS).to_pylist(), strict=True))
    reasons = {record["source_row"]: record["reason"] for record in found.broken}
    assert {**tags, **reasons} == {i: plainly(*row, way, widen) for i, row in enumerate(rows)}


def tags_of(text: str, spans: list[Any], tags: tuple[str, ...] = IOB2, **settings_: Any) -> list[str]:
    return made([{"text": text, "spans": spans}], tags, **settings_).table.column(MADE_TAGS)[0].as_py()


def test_tags_are_written_as_the_model_writes_them() -> None:
    spans = [[0, 10, "PER"], [11, 14, "LOC"]]
    assert tags_of("Otto Braun Ulm x", spans, IOBES) == ["B-PER", "E-PER", "S-LOC", "O"]
    assert tags_of("Otto Braun Ulm x", spans, ("PER", "LOC", "O")) == ["PER", "PER", "LOC", "O"]
    # Of a type that lacks a tag, a word that needs it gets none of the others.
    lacking = ("O", "B-PER", "S-LOC", "B-LOC", "E-LOC")
    assert tags_of("Otto Braun Ulm x", [[0, 10, "LOC"], [11, 14, "PER"]], lacking) == ["B-LOC", "E-LOC", "S-PER", "O"]
    # A label that is no type of the model gives tags that it does not have.
    mapped = tags_of("Otto Braun Ulm x", [[0, 10, "per"], [11, 14, "x"]], label_map=(("per", "PER"),))
    assert mapped == ["B-PER", "I-PER", "B-x", "O"]


def test_rows_do_not_touch_each_other() -> None:
    """Of two spans of one type that touch, IOB1 begins the second with B: not across rows."""
    rows = [{"text": "Ulm", "spans": [[0, 3, "LOC"]]}] * 2
    inside_only = ("O", "I-PER", "I-LOC", "B-LOC")
    assert made(rows, inside_only).table.column(MADE_TAGS).to_pylist() == [["B-LOC"]] * 2


def words_and_labels(found: Inline) -> list[tuple[list[str], list[str]]]:
    return [(row["words"], [label for label in row["labels"] if label != "IGN"]) for row in found.rows]


WANTED = [(["👩\u200d👧", "Anna", "in", "Ulm"], ["O", "B-PER", "O", "B-LOC"])]


@pytest.mark.parametrize("shape", SPANS)
@pytest.mark.parametrize("layout", ["lines", "array", "indented"])
def test_every_shape(run: Run, tmp_path: Path, shape: str, layout: str) -> None:
    file = tmp_path / "in.json"
    indent = 2 if layout == "indented" else None
    rows: Any = SPANS[shape] if layout == "lines" else [SPANS[shape]]
    file.write_text(json.dumps(rows, ensure_ascii=layout != "indented", indent=indent), encoding="utf-8")
    found = run(file)
    assert words_and_labels(found) == WANTED
    if shape != "gliner":
        row = found.rows[0]
        assert [TEXT[a:b] for a, b in zip(row["word_starts"], row["word_ends"], strict=True)] == row["words"]


SPAN_TYPES = {
    "structs": pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())])),
    "large": pa.large_list(pa.struct([("label", pa.large_string()), ("end", pa.int64()), ("start", pa.int64())])),
    "lists": pa.struct(
        [("start", pa.list_(pa.int64())), ("end", pa.list_(pa.int64())), ("type", pa.list_(pa.string()))]
    ),
}


@pytest.mark.parametrize("kind", SPAN_TYPES)
def test_parquet(run: Run, tmp_path: Path, kind: str) -> None:
    """As a list of structs, and as the struct of lists that `datasets` makes of a Sequence of dictionaries."""
    spans: Any = [{"start": 4, "end": 8, "label": "PER"}, {"start": 12, "end": 15, "label": "LOC"}]
    if kind == "lists":
        spans = {"start": [4, 12], "end": [8, 15], "type": ["PER", "LOC"]}
    table = pa.table({"text": [TEXT, TEXT, None], "entities": pa.array([spans, None, spans], SPAN_TYPES[kind])})
    pq.write_table(table, tmp_path / "in.parquet")
    found = run(tmp_path / "in.parquet", max_error_rate=1.0)
    unlabelled = (found.rows[1]["words"], found.rows[1]["labels"])
    assert words_and_labels(found._replace(rows=found.rows[:1])) == WANTED
    assert (unlabelled[0], set(unlabelled[1])) == (found.rows[0]["words"], {"IGN"})
    assert [(e["reason"], e["detail"]) for e in found.errors] == [("null_field", "text is null")]


@pytest.mark.parametrize("options", [{}, {"words": "whitespace"}, {"text_column": "text"}])
def test_text_without_labels(run: Run, tmp_path: Path, options: dict[str, str]) -> None:
    """It needs no spans, and says where words stand."""
    rows = [{"text": TEXT, "entities": "not read"}, {"text": "Otto  Braun"}]
    pq.write_table(pa.Table.from_pylist([{"text": row["text"]} for row in rows]), tmp_path / "in.parquet")
    for source in (write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "in.parquet"):
        found = run(source, labels=False, **options)
        assert not found.errors
        assert {label for row in found.rows for label in row["labels"]} == {"IGN"}
        assert found.rows[1]["words"] == ["Otto", "Braun"]
        assert (found.rows[1]["word_starts"], found.rows[1]["word_ends"]) == ([0, 6], [4, 11])
        for row, source_row in zip(found.rows, rows, strict=True):
            places = zip(row["word_starts"], row["word_ends"], strict=True)
            assert [source_row["text"][a:b] for a, b in places] == row["words"]


def test_spans_and_no_labels_are_refused(run: Run, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": TEXT, "entities": []}])
    with pytest.raises(Refused, match="--spans-column is for labelled spans: it cannot be combined with --no-labels"):
        run(source, labels=False, spans_column="entities")


def test_labels_with_names(run: Run, tmp_path: Path) -> None:
    """Integer labels are named by the features that `datasets` keeps in the file."""
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["LOC", "PER"])
    spans = [{"start": datasets.Value("int32"), "end": datasets.Value("int32"), "label": names}]
    features = datasets.Features({"text": datasets.Value("string"), "entities": spans})
    data = {"text": [TEXT], "entities": [[{"start": 4, "end": 8, "label": 1}, {"start": 12, "end": 15, "label": 0}]]}
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "in.parquet")
    assert words_and_labels(run(tmp_path / "in.parquet")) == WANTED


PROBLEMS: list[tuple[Any, str, str]] = [
    ([[0, 9, "PER"]], "span_cuts_word", "entities[0], 'Otto Brau', cuts the word 'Braun'"),
    ([[5, 10, "PER"], [2, 4, "PER"]], "span_cuts_word", "entities[1], 'to', cuts the word 'Otto'"),
    ([[0, 10, "PER"], [5, 10, "PER"]], "overlapping_spans", "entities[0] and entities[1], 'Braun', share a word"),
    ([[0, 99, "PER"]], "wrong_span", "entities[0] goes from 0 to 99, but text has 13 characters"),
    ([[4, 4, "PER"]], "wrong_span", "entities[0] goes from 4 to 4, but text has 13 characters"),
    ([[4, 5, "PER"]], "wrong_span", "entities[0] has no word in it: ' '"),
    (
        [{"start": 5, "end": 10, "label": "PER", "text": "Otto "}],
        "wrong_span",
        "entities[0] says that characters 5 to 10 are 'Otto ', but they are 'Braun': offsets must count Unicode code "
        "points",
    ),
    ([[0, 4, "PERSON"]], "unknown_tag", f"['B-PERSON'] not in {list(TAGS)}"),
    ([[0, 4]], "malformed", "entities has [0, 4], which is no span"),
    ([{"start": 0, "end": 4, "labels": ["PER", "LOC"]}], "malformed", "entities has {"),
    ("PER", "malformed", "entities is not a list"),
]


def test_reasons(run: Run, tmp_path: Path) -> None:
    good = [{"text": "Otto Braun, x", "entities": [[0, 10, "PER"]]}] * (len(PROBLEMS) + 3)
    bad = [{"text": "Otto Braun, x", "entities": spans} for spans, _, _ in PROBLEMS]
    more = [{"text": 3, "entities": []}, {"text": None, "entities": []}, {"text": " ", "entities": []}]
    found = run(write_jsonl(tmp_path / "in.jsonl", good + bad + more), max_error_rate=1.0)
    wanted = [(reason, detail) for _, reason, detail in PROBLEMS]
    wanted += [("not_a_string", "text holds 3"), ("null_field", "text is null"), ("empty", "text has no words")]
    assert len(found.rows) == len(good)
    assert [error["reason"] for error in found.errors] == [reason for reason, _ in wanted]
    for error, (_, detail) in zip(found.errors, wanted, strict=True):
        assert error["detail"].startswith(detail)
    cut = json.loads(found.errors[0]["payload"])
    assert cut["text"] == "Otto Braun, x"
    assert cut["entities"] == [{"start": 0, "end": 9, "label": "PER"}]


def test_tasks_that_nobody_has_annotated_have_no_labels(run: Run, tmp_path: Path) -> None:
    """An empty annotation says that there is no entity; no annotation, or cancelled ones alone, say nothing."""
    task = SPANS["label studio"]
    empty = task | {"annotations": [{"was_cancelled": False, "result": []}]}
    none = [task | {"annotations": []}, task | {"annotations": [{"was_cancelled": True, "result": []}]}]
    found = run(write_jsonl(tmp_path / "in.jsonl", [task, empty, *none]))
    assert [labels for _, labels in words_and_labels(found)] == [WANTED[0][1], ["O"] * 4, [], []]


def test_tokens_of_prodigy_must_stand_in_the_text(run: Run, tmp_path: Path) -> None:
    good = SPANS["prodigy"]
    behind = good | {"tokens": [{"start": 0, "end": 99}]}
    twice = good | {"tokens": [*good["tokens"], good["tokens"][0]]}
    found = run(write_jsonl(tmp_path / "in.jsonl", [behind, good, twice, good]), max_error_rate=1.0)
    assert words_and_labels(found) == WANTED * 2
    assert [error["reason"] for error in found.errors] == ["malformed"] * 2
    # With --words they do not count.
    assert words_and_labels(run(tmp_path / "in.jsonl", words="whitespace")) == WANTED * 4


def test_widened_and_mapped(run: Run, tmp_path: Path) -> None:
    rows = [{"text": "Otto Braun's Ulmer", "entities": [[0, 9, "person"], [13, 16, "place"]]}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    found = run(file, widen_spans=True, words="whitespace", label_map={"person": "PER", "place": "LOC"})
    assert words_and_labels(found) == [(["Otto", "Braun's", "Ulmer"], ["B-PER", "I-PER", "B-LOC"])]


def test_composed_and_decomposed_text_keep_their_own_offsets(run: Run, tmp_path: Path) -> None:
    """Text is not normalised: offsets would no longer fit."""
    rows = [
        {"text": "Zoe\u0308 in Ulm\r\n", "entities": [[0, 4, "PER"], [8, 11, "LOC"]]},
        {"text": "Zo\u00eb in Ulm\r\n", "entities": [[0, 3, "PER"], [7, 10, "LOC"]]},
    ]
    found = run(write_jsonl(tmp_path / "in.jsonl", rows))
    assert [row["words"] for row in found.rows] == [["Zoe\u0308", "in", "Ulm"], ["Zo\u00eb", "in", "Ulm"]]
    assert [labels for _, labels in words_and_labels(found)] == [["B-PER", "O", "B-LOC"]] * 2


@pytest.mark.parametrize(
    ("rows", "settings_", "said"),
    [
        ([{"body": "Ulm", "marks": [[0, 3, "LOC"]]}], {}, "use --text-column body --spans-column marks"),
        ([{"text": "Ulm", "marks": [[0, 3, "LOC"]]}], {}, "column marks holds spans: use --spans-column marks"),
        ([{"text": "Ulm", "entities": ["LOC"]}], {"spans_column": "entities"}, "holds no spans"),
        ([{"text": "Ulm", "entities": []}], {"spans_column": "x"}, "no column x (--spans-column)"),
        ([{"body": "Ulm", "entities": [[0, 3, "LOC"]]}], {"spans_column": "entities"}, "use --text-column body"),
        ([{"text": "Ulm"}], {"words": "model"}, "no column with spans (--words)"),
        ([{"text": "a", "entities": []}], {"labels_column": "a", "words": "model"}, "use one of them"),
        ([{"text": "Ulm", "entities": [[0, 3, "CITY"]]}], {}, "give the model's names with --label-map"),
        ([{"text": "Ulm", "entities": [[0, 3, "LOC"]]}], {"tags": ["O"]}, "use --label-map"),
    ],
)
def test_refused(run: Run, tmp_path: Path, rows: list[Any], settings_: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as caught:
        run(write_jsonl(tmp_path / "in.jsonl", rows), **settings_)
    assert said in str(caught.value)


def test_words_and_tags_under_the_usual_names_come_first(run: Run, tmp_path: Path) -> None:
    rows = [{"tokens": ["Ulm"], "ner_tags": ["B-LOC"], "text": "Anna", "entities": [[0, 4, "PER"]]}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    assert words_and_labels(run(file)) == [(["Ulm"], ["B-LOC"])]
    assert words_and_labels(run(file, spans_column="entities", text_column="text")) == [(["Anna"], ["B-PER"])]
