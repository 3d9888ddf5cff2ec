"""Export for annotators, and corrections back into the dataset: a round trip loses nothing."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities
from typer.testing import CliRunner

import tokloss_ray
from tests.support import inline, models
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.conll_sheet import cell, conll, read_conll, uncell
from tokloss_ray.exporting.csv_sheet import csv_words, read_csv_words
from tokloss_ray.exporting.dataset.fix_rows import value_span
from tokloss_ray.exporting.export import export
from tokloss_ray.exporting.label_studio import read_tasks, tasks_json, text_of
from tokloss_ray.exporting.sentences import Correction, Sentence, read_sentences
from tokloss_ray.mining.mined import provenance_of
from tokloss_ray.mining.write import write_tables
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.tags.sentence_spans import Span, retag, spans_of, tag_set_of

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
FORMATS = ("label-studio", "conll", "csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 150 real sentences in two files, and what scoring them gave."""
    folder = tmp_path_factory.mktemp("export")
    table = pq.read_table(DATA)
    models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS, max_length=32)
    (folder / "data" / "more").mkdir(parents=True)
    (folder / "data" / "README.md").write_text("about\n")
    pq.write_table(table.slice(0, 100), folder / "data" / "a.parquet", row_group_size=40, compression="zstd")
    pq.write_table(table.slice(100, 50), folder / "data" / "more" / "b.parquet")
    config = ScoreConfig(
        model=str(folder / "model"),
        input=(str(folder / "data"),),
        output=str(folder / "out"),
        id_column="id",
        partition_by=("lang",),
        shard_tokens=500,
        max_length=32,  # so that long sentences become windows
        overlap=8,
    )
    inline.score_inline(config)
    return folder


# Formats, one by one


texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\t\n\r \"',;#\\=+-@_\u2028\u2029\x85\x0b\x00\u202e\u200b\ufeff\xa0👩‍💻'"),
    ),
    max_size=6,
)
tag = st.sampled_from([*TAGS, None])


@st.composite
def sentences(draw: st.DrawFn) -> list[Sentence]:
    found = []
    for i in range(draw(st.integers(1, 3))):
        words = draw(st.lists(texts, min_size=1, max_size=5))
        n = len(words)
        labels, predicted = (draw(st.lists(tag, min_size=n, max_size=n)) for _ in "12")
        losses = [None if label is None else 0.5 for label in labels]
        probs = [None if label is None else 0.25 for label in predicted]
        found.append(Sentence(draw(texts), draw(texts), i, words, labels, predicted, probs, losses))
    return found


def whole(pieces: Any) -> bytes:
    return b"".join(pieces)


READERS: dict[str, tuple[Callable[[list[Sentence]], bytes], Callable[[bytes], Any]]] = {
    "conll": (lambda s: whole(conll(s, loss=True)), read_conll),
    "csv": (lambda s: whole(csv_words(s)), read_csv_words),
    "label-studio": (lambda s: annotated(whole(tasks_json(s, tag_set_of(tuple(TAGS))))), read_tasks),
}


def annotated(data: bytes, change: Callable[[list[dict], dict], None] = lambda regions, task: None) -> bytes:
    """As Label Studio exports tasks that somebody has worked on: the chosen prediction has become an annotation."""
    tasks = json.loads(data)
    for i, task in enumerate(tasks):
        regions = [{**region, "origin": "prediction"} for region in task["predictions"][0]["result"]]
        change(regions, task)
        about = {"id": i + 7, "was_cancelled": False, "completed_by": 1, "ground_truth": False}
        task |= {"id": i + 1, "annotations": [{**about, "result": regions}], "project": 1, "meta": {}}
    return json.dumps(tasks).encode()


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=150, deadline=None)
@given(given_sentences=sentences())
def test_what_was_exported_is_read_back(format: str, given_sentences: list[Sentence]) -> None:
    write, read = READERS[format]
    found = list(read(write(given_sentences)))
    assert found == [
        Correction(s.example_id, s.source, s.source_row, dict(enumerate(s.words))) for s in given_sentences
    ]


@given(texts)
def test_cells_hold_no_white_space(text: str) -> None:
    written = cell(text)
    assert written.split() == [written]
    assert written.splitlines() == [written]
    assert not written.startswith("#")
    assert uncell(written) == text


@pytest.mark.parametrize("word", ["=1+1", "+1", "-1", "@SUM(A1)", "\t1", "'=1", "1-2", "＝1", "007"])
def test_no_cell_of_the_csv_is_a_formula_or_a_number(word: str) -> None:
    sentence = Sentence(word, word, 0, [word], ["O"], ["O"], [0.5], [0.5])
    rows = list(csv.DictReader(io.StringIO(whole(csv_words([sentence])).decode("utf-8-sig"), newline="")))
    for name in ("example_id", "source", "word"):
        assert rows[0][name] == f"'{word}"


risky = st.text(st.sampled_from(",;\t\r\n=+-@＝'\" \xa0a1x"), max_size=9)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@settings(max_examples=400, deadline=None)
@given(words=st.lists(risky | texts, min_size=1, max_size=4), name=risky | texts)
def test_no_cell_is_a_formula_wherever_a_spreadsheet_cuts(separator: str, words: list[str], name: str) -> None:
    """A spreadsheet goes by its own separator, and may also read with the file's and save with its own."""
    n = len(words)
    sentence = Sentence(name, name, 3, words, ["O"] * n, [None] * n, [None] * n, [None] * n)
    text = whole(csv_words([sentence])).decode("utf-8-sig")
    cut = [
        row
        for quotes in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quotes)
    ]
    cut += [line.split(separator) for line in re.split("[\r\n]", text)]
    assert [cell for row in cut for cell in row if cell.strip()[:1] in tuple("=+-@＝＋－＠")] == []
    saved = io.StringIO(newline="")
    csv.writer(saved, delimiter=separator).writerows(csv.reader(io.StringIO(text, newline="")))
    found = list(read_csv_words(saved.getvalue().encode()))
    assert found == [Correction(name, name, 3, dict(enumerate(words)))]


def test_a_formula_inside_a_word_is_none_where_semicolons_separate() -> None:
    sentence = Sentence("a", "f", 0, ["x;=HYPERLINK(A1);y", "1,5"], ["O"] * 2, ["O"] * 2, [0.5] * 2, [0.5] * 2)
    text = whole(csv_words([sentence])).decode("utf-8-sig")
    cells = [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=";") for cell in row]
    assert "'=HYPERLINK(A1)" in cells
    assert "=HYPERLINK(A1)" not in cells
    assert [row[4] for row in csv.reader(io.StringIO(text, newline=""))][2] == "'1,5"


def test_a_spreadsheet_may_sort_and_use_semicolons() -> None:
    given_sentences = [
        Sentence(f"s{i}", "f", i, ["a", "b"], ["O", "O"], ["O"] * 2, [0.5] * 2, [0.5] * 2) for i in (0, 1)
    ]
    rows = list(csv.reader(io.StringIO(whole(csv_words(given_sentences)).decode("utf-8-sig"), newline="")))
    rows[2][-1] = " B-PER "
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([rows[0], *sorted(rows[1:], key=lambda row: row[4])])
    from tokloss_ray.exporting.apply import merged

    found = merged(read_csv_words(text.getvalue().encode()), "x")
    assert found["f", 0] == Correction("s0", "f", 0, {0: "a", 1: "b"}, {1: ("O", "B-PER")})
    assert not found["f", 1].changes


# Entities


@pytest.mark.parametrize("tags", [TAGS, ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"]])
@given(data=st.data())
def test_spans_are_seqevals(tags: list[str], data: st.DataObject) -> None:
    sequence = data.draw(st.lists(st.sampled_from(tags), max_size=8))
    expected = [(start, end + 1, type_) for type_, start, end in get_entities(sequence)]
    assert [tuple(span) for span in spans_of(sequence, tag_set_of(tuple(tags)))] == expected


def test_untouched_entities_keep_their_tags() -> None:
    tags = ["I-PER", "I-PER", None, "I-ORG", "O", "B-LOC"]
    tag_set = tag_set_of(tuple(TAGS))
    assert retag(tags, spans_of(tags, tag_set), tag_set) == tags
    assert retag(tags, [Span(0, 2, "PER"), Span(3, 5, "ORG")], tag_set) == [*tags[:3], "B-ORG", "I-ORG", "O"]
    # One that begins with I would be joined with a new neighbour of its type.
    assert retag(["O", "I-PER"], [Span(0, 1, "PER"), Span(1, 2, "PER")], tag_set) == ["B-PER", "B-PER"]
    # A type that no tag has yet is written as the others are.
    assert retag(tags[:2], [Span(0, 2, "EVENT")], tag_set) == ["B-EVENT", "I-EVENT"]
    assert retag(["O"], [Span(0, 1, "EVENT")], tag_set_of(("O", "B_A", "L_A", "U_A"))) == ["U_EVENT"]
    with pytest.raises(Refused, match="cannot be a type"):
        retag(["NOUN"], [Span(0, 1, "O")], tag_set_of(("NOUN", "VERB")))
    with pytest.raises(Refused, match="the tag 'X' is none of"):
        spans_of(["X"], tag_set)


# Label Studio


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
        (lambda r, t: r.append(r[0]), "meet in the word"),
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


# From an output and back


def test_sentences_are_the_input_with_the_figures_of_the_output(folder: Path) -> None:
    found = list(read_sentences(str(folder / "out")))
    table = pa.concat_tables([pq.read_table(folder / "data" / name) for name in ("a.parquet", "more/b.parquet")])
    assert [s.example_id for s in found] == table["id"].to_pylist()
    assert [s.words for s in found] == table["tokens"].to_pylist()
    assert [s.labels for s in found] == [[TAGS[t] for t in row] for row in table["ner_tags"].to_pylist()]
    rows = inline.read_rows(folder / "out")
    assert max(row["window"] for row in rows) > 0
    for name in ("predicted_label", "predicted_prob", "loss"):
        expected: dict[tuple[str, int], Any] = {}
        for row in rows:
            for i, (word, label) in enumerate(zip(row["word_ids"], row["labels"], strict=True)):
                if label != "IGN":
                    expected[row["example_id"], word] = row[name][i]
        of = {"predicted_label": "predicted", "predicted_prob": "probs", "loss": "losses"}[name]
        assert {(s.example_id, i): v for s in found for i, v in enumerate(getattr(s, of))} == expected


def test_conll_columns_score_as_the_output_does(folder: Path, tmp_path: Path) -> None:
    export(str(folder / "out"), str(tmp_path / "all.conll"), "conll")
    blocks = [b.split("\n") for b in (tmp_path / "all.conll").read_text().split("\n\n") if b.strip()]
    lines = [[line.split() for line in block if line and not line.startswith("#")] for block in blocks]
    true, predicted = [], []
    for row in _by_row(inline.read_rows(folder / "out")):
        true.append([label for label, _ in row])
        predicted.append([p for _, p in row])
    expected = f1_score(true, predicted)
    assert f1_score([[c[1] for c in b] for b in lines], [[c[2] for c in b] for b in lines]) == expected


def _by_row(rows: list[dict]) -> list[list[tuple[str, str]]]:
    found: dict[str, list[tuple[int, str, str]]] = {}
    for row in rows:
        parts = zip(row["word_ids"], row["labels"], row["predicted_label"], strict=True)
        found.setdefault(row["example_id"], []).extend((w, a, p) for w, a, p in parts if a != "IGN")
    return [[(a, p) for _, a, p in sorted(row)] for row in found.values()]


def test_selections(folder: Path, tmp_path: Path) -> None:
    out = str(folder / "out")
    totals: dict[str, float] = {}
    for row in inline.read_rows(folder / "out"):
        totals[row["example_id"]] = totals.get(row["example_id"], 0) + row["total_loss"]
    worst = sorted(totals, key=lambda name: -totals[name])[:5]
    assert export(out, str(tmp_path / "worst.json"), "label-studio", worst=5) == 5
    tasks = json.loads((tmp_path / "worst.json").read_text())
    assert [task["data"]["example_id"] for task in tasks] == worst
    assert '<Label value="PER"/>' in (tmp_path / "worst.json.xml").read_text()
    assert export(out, str(tmp_path / "ids.csv"), "csv", ids=[worst[3], worst[1]]) == 2
    assert export(out, str(tmp_path / "de.csv"), "csv", where=["lang=de"]) == 150
    for wrong, says in (
        ({"ids": ["nobody"]}, "no sentence with the id nobody"),
        ({"where": ["lang=fr"]}, "no such sentence"),
        ({"where": ["language=fr"]}, "no such column"),
        ({"worst": 1, "ids": ["x"]}, "give one of them"),
        ({"issues": 1}, "tokloss mine"),
    ):
        with pytest.raises(Refused, match=says):
            export(out, str(tmp_path / "none.csv"), "csv", **wrong)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="there already"):
        export(out, str(tmp_path / "ids.csv"), "csv")
    keys = [(s.source, s.source_row) for s in read_sentences(out) if s.example_id in worst[:2]]
    columns = {"output": [out] * 4, "source": [k[0] for k in keys * 2], "source_row": [k[1] for k in keys * 2]}
    made = provenance_of(open_outputs(out), {"by": [], "where": [], "limit": 10})
    write_tables(str(folder / "out" / "mining"), {"label_issues": pa.table(columns)}, made)
    assert export(out, str(tmp_path / "issues.csv"), "csv", issues=3) == 2


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


@pytest.mark.parametrize("format", FORMATS)
def test_corrections_reach_the_dataset_and_nothing_else_changes(folder: Path, tmp_path: Path, format: Any) -> None:
    file = tmp_path / "fix"
    export(str(folder / "out"), str(file), format, worst=20)
    same = apply_fixes(_annotated_if(file, format), str(folder / "data"), str(tmp_path / "same"))
    assert (same.rows_read, same.rows_changed, same.words_changed, same.files_changed) == (20, 0, 0, 0)
    for path in sorted((folder / "data").rglob("*")):
        if path.is_file():
            assert (tmp_path / "same" / path.relative_to(folder / "data")).read_bytes() == path.read_bytes()

    names = [(s.example_id, s.words, s.labels) for s in read_sentences(str(folder / "out"))]
    exported = file.read_text()
    chosen = [
        (n, labels) for n, words, labels in names if f'"{n}"' in exported or f"{n}\n" in exported or f"{n}," in exported
    ]
    changes = {(n, len(labels) - 1): "B-LOC" for n, labels in chosen if labels[-1] == "O"}
    changes |= {(n, 0): "O" for n, labels in chosen[:6] if labels[0] != "O" and labels[1:2] in ([], ["O"])}
    correct(file, format, changes)
    done = apply_fixes(str(file), str(folder / "data"), str(tmp_path / "new"))
    assert (done.rows_read, done.words_changed) == (20, len(changes))
    assert done.rows_changed == len({n for n, _ in changes})
    assert (tmp_path / "new" / "README.md").read_text() == "about\n"
    for name in ("a.parquet", "more/b.parquet"):
        before, after = (pq.read_table(base / name) for base in (folder / "data", tmp_path / "new"))
        assert after.schema.equals(before.schema, check_metadata=True)
        expected = before["ner_tags"].to_pylist()
        for row, key in zip(expected, before["id"].to_pylist(), strict=True):
            for i in range(len(row)):
                row[i] = TAGS.index(changes[key, i]) if (key, i) in changes else row[i]
        assert after["ner_tags"].to_pylist() == expected
        assert after.drop_columns(["ner_tags"]).equals(before.drop_columns(["ner_tags"]))
        old, new = (pq.ParquetFile(base / name).metadata for base in (folder / "data", tmp_path / "new"))
        assert new.num_row_groups == old.num_row_groups
        assert new.row_group(0).column(0).compression == old.row_group(0).column(0).compression
    # Once more: the tags are there already.
    again = apply_fixes(str(file), str(tmp_path / "new"), str(tmp_path / "again"))
    assert (again.words_changed, again.words_same) == (0, len(changes))


def _annotated_if(file: Path, format: str) -> str:
    if format != "label-studio":
        return str(file)
    copy = file.with_suffix(".done")
    copy.write_bytes(annotated(file.read_bytes()))
    return str(copy)


def scored(folder: Path, tmp_path: Path, data: Path, **options: Any) -> str:
    output = str(tmp_path / "out")
    inline.score_inline(ScoreConfig(model=str(folder / "model"), input=(str(data),), output=output, **options))
    return output


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2"])
def test_json_lines_keep_every_other_byte(folder: Path, tmp_path: Path, packing: str) -> None:
    lines = [
        '{"n": 1.0e5, "tokens": ["Anna", "in", "Rom"], "ner_tags":["B-PER","O", "O"],  "z": {"ner_tags": [1]}}\r\n',
        "\n",
        '{"tokens":["\\u00e9","=1"],"ner_tags":["O","O"],"ner_tags":["B-LOC","O"]}\n',
        "no JSON\n",
        '{"tokens": ["Rom", "😀"], "ner_tags": [null, "O"]}',
    ]
    data = tmp_path / f"in.jsonl{packing}"
    packs: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
    data.write_bytes(packs[packing]("".join(lines).encode()))
    output = scored(folder, tmp_path, data, max_error_rate=1.0)
    export(output, str(tmp_path / "x.csv"), "csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "x.csv").read_text("utf-8-sig"), newline="")))
    assert [row[4] for row in rows[1:]] == ["Anna", "in", "Rom", "é", "'=1", "Rom", "😀"]
    for at, new in ((3, "B-LOC"), (5, "B-PER"), (6, "B-LOC")):
        rows[at][-1] = new
    with (tmp_path / "x.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    done = apply_fixes(str(tmp_path / "x.csv"), str(data), str(tmp_path / f"new.jsonl{packing}"))
    assert (done.rows_changed, done.words_changed) == (3, 3)
    unpack: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.decompress, ".bz2": bz2.decompress}
    text = unpack[packing]((tmp_path / f"new.jsonl{packing}").read_bytes()).decode()
    lines[0] = lines[0].replace('["B-PER","O", "O"]', '["B-PER", "O", "B-LOC"]')
    lines[2] = lines[2].replace('["B-LOC","O"]', '["B-LOC", "B-PER"]')
    lines[4] = lines[4].replace('[null, "O"]', '["B-LOC", "O"]')
    assert text == "".join(lines)


def test_string_tags_dictionaries_and_nulls_keep_their_type(folder: Path, tmp_path: Path) -> None:
    tags = pa.array([["O", None], ["B-PER", "O"], None], pa.list_(pa.dictionary(pa.int8(), pa.string())))
    table = pa.table({"words": pa.array([["a", "b"], ["c", "d"], ["e"]], pa.large_list(pa.string())), "tags": tags})
    pq.write_table(table, tmp_path / "in.parquet")
    output = scored(folder, tmp_path, tmp_path / "in.parquet", max_error_rate=1.0)
    export(output, str(tmp_path / "x.conll"), "conll")
    text = (tmp_path / "x.conll").read_text()
    assert "b\t_\t" in text
    (tmp_path / "x.conll").write_text(
        text.replace("d\tO\t", "d\tO\tX\t", 1).replace("X\t", "").replace("\tO\n\n", "\tB-PER\n\n")
    )
    apply_fixes(str(tmp_path / "x.conll"), str(tmp_path / "in.parquet"), str(tmp_path / "new.parquet"))
    new = pq.read_table(tmp_path / "new.parquet")
    assert new.schema == pq.read_table(tmp_path / "in.parquet").schema
    assert new["tags"].to_pylist() == [["O", None], ["B-PER", "B-PER"], None]


def test_a_saved_dataset_and_one_split_of_it(folder: Path, tmp_path: Path) -> None:
    import datasets

    table = pq.read_table(folder / "data" / "a.parquet").slice(0, 30)
    saved = datasets.DatasetDict({"train": datasets.Dataset(table), "test": datasets.Dataset(table.slice(0, 5))})
    saved.save_to_disk(tmp_path / "saved")
    output = scored(folder, tmp_path, tmp_path / "saved", split="train", id_column="id")
    export(output, str(tmp_path / "x.conll"), "conll", ids=["de-val-3"])
    correct(tmp_path / "x.conll", "conll", {("de-val-3", 0): "I-LOC"})
    apply_fixes(str(tmp_path / "x.conll"), str(tmp_path / "saved"), str(tmp_path / "new"), split="train")
    old, new = (datasets.load_from_disk(str(tmp_path / name)) for name in ("saved", "new"))
    assert new["test"].to_dict() == old["test"].to_dict()
    assert new["train"].features == old["train"].features
    expected = old["train"].to_dict()
    expected["ner_tags"][3][0] = TAGS.index("I-LOC")
    assert new["train"].to_dict() == expected


def test_ids_join_a_dataset_of_other_files(folder: Path, tmp_path: Path) -> None:
    export(str(folder / "out"), str(tmp_path / "x.csv"), "csv", ids=["de-val-120", "de-val-4"])
    correct(tmp_path / "x.csv", "csv", {("de-val-120", 0): "I-LOC", ("de-val-4", 0): "I-LOC"})
    both = pa.concat_tables([pq.read_table(folder / "data" / name) for name in ("more/b.parquet", "a.parquet")])
    pq.write_table(both, tmp_path / "both.parquet")
    with pytest.raises(Refused, match="--id-column"):
        apply_fixes(str(tmp_path / "x.csv"), str(tmp_path / "both.parquet"), str(tmp_path / "new.parquet"))
    done = apply_fixes(
        str(tmp_path / "x.csv"), str(tmp_path / "both.parquet"), str(tmp_path / "new.parquet"), id_column="id"
    )
    assert done.rows_changed == 2
    new = {row["id"]: row for row in pq.read_table(tmp_path / "new.parquet").to_pylist()}
    assert TAGS[new["de-val-120"]["ner_tags"][0]] == TAGS[new["de-val-4"]["ner_tags"][0]] == "I-LOC"


def _with_line(text: str, number: int, line: str) -> str:
    lines = text.split("\n")
    lines[number] = line.format(*lines[number].split("\t"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: _with_line(t, 4, "{0}\tI-LOC\tO\tI-PER"), "exported as I-LOC and is .* in the dataset"),
        (lambda t: _with_line(t, 4, "{0}\t{1}\tO\tI-MISC"), "gets the tag I-MISC, which the dataset does not have"),
        (lambda t: t.replace("\n\n", "\nextra\tO\tO\tO\n\n", 1), "is not there in the dataset"),
        (lambda t: _with_line(t, 4, "Zebra\t{1}\tO\t{1}"), "'Zebra'"),
        (lambda t: t.replace("source_row = ", "source_row = 9", 1), "has no row|is not there|is '"),
        (lambda t: t.replace("# source = ", "# source = other/", 1), "which .* does not have"),
        (lambda t: t.replace("# source_row", "# row", 1), "line 5"),
        (lambda t: t.replace("\t", "", 1), "line 5 does not hold"),
        (lambda t: t.split("\n", 1)[1], "no columns|no line"),
        (lambda t: "[" + t, "not valid JSON"),
        (lambda t: "", "it has no columns"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(folder: Path, tmp_path: Path, edit: Any, says: str) -> None:
    export(str(folder / "out"), str(tmp_path / "x"), "conll", worst=1)
    (tmp_path / "x").write_text(edit((tmp_path / "x").read_text()))
    with pytest.raises(Refused, match=says):
        apply_fixes(str(tmp_path / "x"), str(folder / "data"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_tags_and_places_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "in.jsonl"
    inline.write_jsonl(data, [{"tokens": ["a"], "tags": [0]}, {"tokens": ["b"], "tags": [1]}])
    output = scored(folder, tmp_path, data)
    export(output, str(tmp_path / "x"), "csv")
    text = (tmp_path / "x").read_text("utf-8-sig")
    (tmp_path / "x").write_text(
        "O,".join(text.split("O,", 1)).replace(",O\r\n", ",B-PRE\r\n").replace(",O\n", ",B-PRE\n")
    )
    with pytest.raises(Refused, match="name them, in order, with --tags"):
        apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"))
    with pytest.raises(Refused, match="gets the tag B-PRE"):
        apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"), tags=tuple(TAGS))
    inline.write_jsonl(data, [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["B-PER"]}])
    shutil.rmtree(tmp_path / "out")
    export(scored(folder, tmp_path, data), str(tmp_path / "x"), "csv", overwrite=True)
    correct(tmp_path / "x", "csv", {("in.jsonl:0", 0): "B-PRE"})
    with pytest.raises(Refused, match="which no word has yet"):
        apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"))
    assert apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"), tags=("B-PRE",)).words_changed == 1
    for place, says in ((str(data), "there already"), (str(tmp_path / "new.jsonl"), "there already")):
        with pytest.raises(Refused, match=says):
            apply_fixes(str(tmp_path / "x"), str(data), place)
    with pytest.raises(Refused, match="lies in the dataset"):
        apply_fixes(str(tmp_path / "x"), str(folder / "data"), str(folder / "data" / "new"))
    with pytest.raises(Refused, match="no file"):
        apply_fixes(str(tmp_path / "nothing"), str(data), str(tmp_path / "new2"))


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    out, file, data = str(folder / "out"), str(tmp_path / "w.csv"), str(folder / "data")
    run = CliRunner().invoke(app, ["export", out, "-f", "csv", "-o", file, "--id", "de-val-7", "--id", "de-val-8"])
    assert run.exit_code == 0, run.output
    assert "2 sentences are in" in run.output
    correct(Path(file), "csv", {("de-val-7", 0): "B-LOC", ("de-val-7", 1): "I-LOC"})
    run = CliRunner().invoke(app, ["apply-fixes", file, "--to", data, "-o", str(tmp_path / "new")])
    assert run.exit_code == 0, run.output
    said = dict(line.rsplit("  ", 1) for line in run.output.splitlines() if "  " in line)
    assert said["rows changed "] == "1"
    assert tokloss_ray.export is export


def test_outputs_and_datasets_in_a_bucket(folder: Path, tmp_path: Path, bucket: str) -> None:
    fs = s3fs.S3FileSystem()
    fs.put(str(folder / "out"), f"{bucket}/out", recursive=True)
    fs.put(str(folder / "data"), f"{bucket}/data", recursive=True)
    export(f"{bucket}/out", f"{bucket}/w.csv", "csv", worst=3)
    fs.get(f"{bucket}/w.csv", str(tmp_path / "w.csv"))
    name = (tmp_path / "w.csv").read_text("utf-8-sig").split("\n")[1].split(",")[0]
    correct(tmp_path / "w.csv", "csv", {(name, 0): "I-LOC"})
    fs.put(str(tmp_path / "w.csv"), f"{bucket}/w.csv")
    done = apply_fixes(f"{bucket}/w.csv", f"{bucket}/data", f"{bucket}/new")
    local = apply_fixes(str(tmp_path / "w.csv"), str(folder / "data"), str(tmp_path / "new"))
    assert done == local
    for path in sorted((tmp_path / "new").rglob("*.*")):
        assert fs.cat_file(f"{bucket}/new/{path.relative_to(tmp_path / 'new').as_posix()}") == path.read_bytes()
    same = tokloss_ray.diff(f"{bucket}/out", str(folder / "out"))
    assert (same.matched.rows, same.matched.only_a, same.matched.only_b) == (150, 0, 0)


@given(st.dictionaries(st.text(max_size=3), st.recursive(st.integers() | st.text(max_size=3), st.lists, max_leaves=4)))
def test_the_span_of_a_value_in_a_line(row: dict) -> None:
    line = json.dumps({**row, "k": [1, "}"]})
    start, end = value_span(line, "k")
    assert line[start:end] == '[1, "}"]'
