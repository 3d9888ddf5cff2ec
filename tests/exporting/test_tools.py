"""What is exported opens in the tool it is for: its own library reads it, and finds there what the output holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cleanlab.token_classification.filter as cleanlab_filter
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spacy
import spacy.tokens
from spacy.training import biluo_tags_to_spans, offsets_to_biluo_tags
from spacy.training.corpus import Corpus

from tests.support import inline
from tests.support.corrections import TAGS
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.export import export
from tokloss_ray.exporting.sentences import Sentence, read_sentences
from tokloss_ray.tags.sentence_spans import spans_of, tag_set_of


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `folder`'s output, with the probabilities of all tags."""
    output = tmp_path_factory.mktemp("probs") / "out"
    config = ScoreConfig(
        model=str(folder / "model"),
        input=(str(folder / "data"),),
        output=str(output),
        id_column="id",
        keep_probs=True,
        max_length=32,
        overlap=8,
    )
    inline.score_inline(config)
    return str(output)


@pytest.fixture(scope="module")
def sentences(out: str) -> list[Sentence]:
    return list(read_sentences(out))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_spacy_trains_on_it(out: str, sentences: list[Sentence], tmp_path: Path) -> None:
    """Its own reader of training data makes examples of it, and its scorer counts the entities of the output."""
    export(out, str(tmp_path / "train.spacy"), "spacy")
    examples = list(Corpus(tmp_path / "train.spacy")(spacy.blank("xx")))
    assert [[t.text for t in example.reference] for example in examples] == [s.words for s in sentences]
    tag_set = tag_set_of(tuple(TAGS))
    for example, sentence in zip(examples, sentences, strict=True):
        gold, predicted = spans_of(sentence.labels, tag_set), spans_of(sentence.predicted, tag_set)
        assert [(e.start, e.end, e.label_) for e in example.reference.ents] == gold
        assert [(e.start, e.end, e.label_) for e in example.reference.spans["predicted"]] == predicted


@pytest.mark.parametrize("format", ["doccano", "prodigy"])
def test_offsets_are_those_of_tokens(out: str, sentences: list[Sentence], tmp_path: Path, format: str) -> None:
    """Neither tool has a library to install; spaCy, whose offsets they use, turns theirs into tags of words."""
    export(out, str(tmp_path / "tasks.jsonl"), format)
    for task, sentence in zip(lines(tmp_path / "tasks.jsonl"), sentences, strict=True):
        doc = spacy.tokens.Doc(spacy.vocab.Vocab(), words=sentence.words)
        assert doc.text.rstrip() == task["text"]
        found = task["label"] if format == "doccano" else [(s["start"], s["end"], s["label"]) for s in task["spans"]]
        entities = biluo_tags_to_spans(doc, offsets_to_biluo_tags(doc, [tuple(region) for region in found]))
        assert [(e.start, e.end, e.label_) for e in entities] == spans_of(sentence.labels, tag_set_of(tuple(TAGS)))
        if format == "prodigy":
            assert [(s["token_start"], s["token_end"] + 1) for s in task["spans"]] == [
                (e.start, e.end) for e in entities
            ]
            assert [task["text"][t["start"] : t["end"]] for t in task["tokens"]] == sentence.words


def test_what_prodigy_rejects_or_ignores_changes_nothing(folder: Path, out: str, tmp_path: Path) -> None:
    export(out, str(tmp_path / "tasks.jsonl"), "prodigy", worst=3)
    answers = ("reject", "accept", "ignore")
    tasks = lines(tmp_path / "tasks.jsonl")
    tasks = [task | {"spans": [], "answer": answer} for task, answer in zip(tasks, answers, strict=True)]
    (tmp_path / "saved.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    done = apply_fixes(str(tmp_path / "saved.jsonl"), str(folder / "data"), str(tmp_path / "new"))
    assert done.rows_changed == 1


def test_doccano_with_relations_and_nested_metadata(folder: Path, out: str, tmp_path: Path) -> None:
    """Entities as objects, and what it carries along under `meta`, as some versions write it."""
    export(out, str(tmp_path / "tasks.jsonl"), "doccano", worst=5)
    tasks = lines(tmp_path / "tasks.jsonl")
    for i, task in enumerate(tasks):
        entities = [{"id": i, "start_offset": s, "end_offset": e, "label": t} for s, e, t in task.pop("label")]
        task |= {
            "id": i,
            "entities": entities[1:],
            "relations": [],
            "Comments": [],
            "meta": {"tokloss": task.pop("tokloss")},
        }
    (tmp_path / "saved.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    done = apply_fixes(str(tmp_path / "saved.jsonl"), str(folder / "data"), str(tmp_path / "new"))
    assert 0 < done.rows_changed <= 5


def test_cleanlab_finds_issues_in_it_and_gives_them_back(folder: Path, out: str, tmp_path: Path) -> None:
    export(out, str(tmp_path / "all.parquet"), "cleanlab")
    table = pq.read_table(tmp_path / "all.parquet")
    tags = json.loads(table.schema.metadata[b"tokloss.tags"])
    labels, tokens = table["labels"].to_pylist(), table["tokens"].to_pylist()
    pred_probs = [np.array(rows) for rows in table["pred_probs"].to_pylist()]
    expected = {s.example_id: [label for label in s.labels if label is not None] for s in read_sentences(out)}
    assert [[tags[code] for code in row] for row in labels] == list(expected.values())
    issues = cleanlab_filter.find_label_issues(labels, pred_probs, n_jobs=1)
    assert issues, "an untrained model disagrees somewhere"
    assert all(0 <= j < len(tokens[i]) for i, j in issues)
    corrected = [list(row) for row in labels]
    for i, j in issues[:10]:
        corrected[i][j] = int(pred_probs[i][j].argmax())
    column = table.column_names.index("corrected")
    fixed = table.set_column(column, "corrected", pa.array(corrected, pa.list_(pa.int32())))
    pq.write_table(fixed, tmp_path / "fixed.parquet")
    changed = sum(a != b for old, new in zip(labels, corrected, strict=True) for a, b in zip(old, new, strict=True))
    done = apply_fixes(str(tmp_path / "fixed.parquet"), str(folder / "data"), str(tmp_path / "new"))
    assert (done.rows_read, done.words_changed) == (150, changed)


def test_cleanlab_needs_all_probabilities(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="score with --keep-probs"):
        export(str(folder / "out"), str(tmp_path / "all.parquet"), "cleanlab")
    assert not (tmp_path / "all.parquet").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a", "label": []}', "line 1 has no field tokloss"),
        (b'{"text": "a", "spans": []}\n{', "line 1 has no field tokloss"),
        (b'{"spans": [], "tokloss": 3}', "line 1 has no field tokloss"),
        (b"x\x9cnot a DocBin", "spaCy cannot read it"),
        (b"PAR1 not Parquet", "not a Parquet file"),
    ],
)
def test_files_of_the_same_kind_that_are_not_ours(folder: Path, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Refused, match=says):
        apply_fixes(str(tmp_path / "file"), str(folder / "data"), str(tmp_path / "new"))


def test_the_lines_for_cleanlab_in_the_documentation(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (snippet,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    export(out, "all.parquet", "cleanlab")
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["issues"]
