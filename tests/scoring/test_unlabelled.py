"""Text without labels, or labelled in part: the same predictions, losses where there is a label; what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tokloss_ray
from tests.support.inline import Inline, Row, score_inline, write_jsonl
from tests.support.mining_outputs import TAGS
from tests.support.tiny import SENTENCES
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.output.verify import verify

LABELS = [["B-PER", "O", None, "B-LOC"], None, [None, None, "IGN", None]]
"""Of `SENTENCES`: one with a word that has no label, one without labels, one where none of the words has one."""
FIGURES = ("input_ids", "predicted_label", "predicted_prob", "second_label", "second_prob")


def parquet(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def csv(path: Path, rows: list[Row]) -> Path:
    cells = [[json.dumps(row["tokens"]), json.dumps(row["ner_tags"]) if row["ner_tags"] else ""] for row in rows]
    path.write_text(
        "tokens,ner_tags\n" + "".join('"{}","{}"\n'.format(*(c.replace('"', '""') for c in r)) for r in cells)
    )
    return path


def words_only_csv(path: Path, rows: list[Row]) -> Path:
    path.write_text("\n".join(["tokens", *(" ".join(row["tokens"]) for row in rows)]))
    return path


def conll(path: Path, rows: list[Row]) -> Path:
    tags = [row["ner_tags"] or [None] * len(row["tokens"]) for row in rows]
    lines = [
        "".join(f"{word}\t{tag or '_'}\n" for word, tag in zip(row["tokens"], of_row, strict=True))
        for row, of_row in zip(rows, tags, strict=True)
    ]
    path.write_text("\n".join(lines))
    return path


WRITERS: dict[str, Callable[[Path, list[Row]], Path]] = {
    "jsonl": write_jsonl, "parquet": parquet, "csv": csv, "conll": conll,
    "no-key.jsonl": lambda path, rows: write_jsonl(path, [{k: v for k, v in r.items() if v is not None} for r in rows]),
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITERS)
def test_rows_and_words_without_labels(run: Callable[..., Inline], tmp_path: Path, ending: str) -> None:
    """In every format; the rest of the row is as if it had labels."""
    rows = [{"tokens": words, "ner_tags": tags} for words, tags in zip(SENTENCES, LABELS, strict=True)]
    result = run(WRITERS[ending](tmp_path / f"in.{ending}", rows))
    full = run(write_jsonl(tmp_path / "full.jsonl", [{"tokens": words, "ner_tags": ["O"] * 4} for words in SENTENCES]))
    assert not result.errors
    assert [row["labels"][1:-1] for row in result.rows] == [
        ["B-PER", "O", "IGN", "B-LOC"], ["IGN"] * 4, ["IGN"] * 4
    ]  # fmt: skip
    for row, other in zip(result.rows, full.rows, strict=True):
        for name in FIGURES:
            assert row[name] == other[name]
        none = [label == "IGN" for label in row["labels"]]
        assert not np.array(row["loss"])[none].any()
    assert [row["num_labels"] for row in result.rows] == [3, 0, 0]
    assert [row["mean_loss"] is None for row in result.rows] == [False, True, True]
    assert "2 of the first 3 rows have no label in " in result.plan.warnings[-1]


def test_integer_tags_without_some(run: Callable[..., Inline], tmp_path: Path) -> None:
    """-100 and null, in a column of integers."""
    rows = [
        {"tokens": words, "ner_tags": tags}
        for words, tags in zip(SENTENCES, ([1, -100, None, 3], None, [0] * 4), strict=True)
    ]
    result = run(parquet(tmp_path / "in.parquet", rows))
    assert [row["labels"][1:-1] for row in result.rows] == [["B-PER", "IGN", "IGN", "B-LOC"], ["IGN"] * 4, ["O"] * 4]


def test_a_length_that_does_not_fit_is_still_refused(run: Callable[..., Inline], tmp_path: Path) -> None:
    """An empty list is no missing one."""
    rows = [{"tokens": SENTENCES[0], "ner_tags": []}, {"tokens": SENTENCES[0], "ner_tags": ["O"] * 4}]
    result = run(write_jsonl(tmp_path / "in.jsonl", rows), max_error_rate=0.5)
    assert [error["reason"] for error in result.errors] == ["length_mismatch"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "conll", "csv"])
def test_no_labels(run: Callable[..., Inline], tmp_path: Path, ending: str) -> None:
    """Of text alone, and of text whose labels are not to be read; with entropies."""
    texts = [{"tokens": words} for words in SENTENCES]
    writers: dict[str, Callable[[Path, list[Row]], Path]] = {
        "jsonl": write_jsonl, "parquet": parquet,
        "conll": lambda path, rows: (path.write_text("\n".join("\n".join(r["tokens"]) + "\n" for r in rows)), path)[1],
        "csv": words_only_csv,
    }  # fmt: skip
    result = run(writers[ending](tmp_path / f"in.{ending}", texts), labels=False)
    assert [row["words"] for row in result.rows] == SENTENCES
    assert {label for row in result.rows for label in row["labels"]} == {"IGN"}
    assert result.totals.labels == 0
    kept = run(write_jsonl(tmp_path / "probs.jsonl", texts), labels=False, keep_probs=True)
    for row, other in zip(result.rows, kept.rows, strict=True):
        probs = np.array(other["probs"], dtype=np.float64)
        np.testing.assert_allclose(row["entropy"], -(probs * np.log(probs)).sum(axis=1), rtol=1e-5)
    wrong = [row | {"ner_tags": ["B-NONSENSE"]} for row in texts]
    unread = run(write_jsonl(tmp_path / "wrong.jsonl", wrong), labels=False)
    assert [row["predicted_label"] for row in unread.rows] == [row["predicted_label"] for row in result.rows]
    assert not unread.errors


def test_token_ids_without_labels(run: Callable[..., Inline], tmp_path: Path) -> None:
    result = run(write_jsonl(tmp_path / "in.jsonl", [{"input_ids": [2, 7, 8, 3]}] * 2), labels=False)
    assert [row["labels"] for row in result.rows] == [["IGN"] * 4] * 2


def test_what_cannot_go_together_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--no-labels" in refused(input=write_jsonl(tmp_path / "text.jsonl", [{"tokens": ["a"]}]))
    assert "labels_column: cannot be combined with no-labels" in refused(labels=False, labels_column="ner_tags")
    assert "tags: cannot be combined with no-labels" in refused(labels=False, tags="O,B-PER")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 sentences of the demo: as they are (`full`), labelled in part (`half`) and without labels (`none`); some are
    longer than the model takes."""
    folder = tmp_path_factory.mktemp("unlabelled")
    rows = pq.read_table(DATA).slice(0, 200).to_pylist()
    names = [[TAGS[tag] for tag in row["ner_tags"]] for row in rows]
    draw = np.random.default_rng(0)
    part = [
        [tag if keep else None for tag, keep in zip(tags, draw.random(len(tags)) < 0.5, strict=True)] for tags in names
    ]
    shapes = {
        "full": names,
        "half": [tags if i % 3 == 0 else None if i % 3 == 1 else part[i] for i, tags in enumerate(names)],
        "none": [None] * len(rows),
    }
    for name, tags in shapes.items():
        texts = [{"id": row["id"], "tokens": row["tokens"]} for row in rows]
        if name != "none":
            texts = [text | {"ner_tags": of_row} for text, of_row in zip(texts, tags, strict=True)]
        score_inline(
            ScoreConfig(
                model=str(MODEL), input=(str(write_jsonl(folder / f"{name}.jsonl", texts)),), id_column="id",
                output=str(folder / name), labels=name != "none", keep_entropy=True, max_length=24, overlap=6,
                shard_tokens=2000,
            )
        )  # fmt: skip
    return folder


def words_of(output: Path) -> Any:
    """One row per word, in pandas: its first token in the window that has its label, or most of its context."""
    rows = pq.ParquetDataset(output / "scores", partitioning=None).read().to_pylist()
    last = {row["example_id"]: row["window"] for row in rows}
    found = []
    for row in rows:
        inside = [i for i, word in enumerate(row["word_ids"]) if word is not None]
        for word in sorted({row["word_ids"][i] for i in inside}):
            at = [i for i in inside if row["word_ids"][i] == word]
            left, right = at[0] - inside[0], inside[-1] - at[-1]
            context: float = min(left, right)
            if right == 0 and row["window"] < last[row["example_id"]]:  # it may go on in the next window
                context = -0.5
            if left == 0 and row["window"]:  # it may have begun in the one before
                context = -1
            figures = {name: row[name][at[0]] for name in ("predicted_label", "predicted_prob", "entropy", "loss")}
            about = {"id": row["example_id"], "word_index": word, "word": row["words"][word], "context": context}
            found.append(about | figures | {"label": row["labels"][at[0]]})
    frame = pd.DataFrame(found).rename(columns={"predicted_label": "predicted", "predicted_prob": "prob"})
    frame["unlabelled"] = frame["label"] == "IGN"
    frame = frame.sort_values(["unlabelled", "context"], ascending=[True, False], kind="stable")
    return frame.drop_duplicates(["id", "word_index"]).sort_values(["id", "word_index"]).reset_index(drop=True)


@pytest.mark.parametrize("name", ["half", "none"])
def test_tables_equal_pandas(folder: Path, name: str) -> None:
    words = words_of(folder / name)
    words["doubt"] = 1 - words["prob"].astype(float)
    tables = tokloss_ray.mine(str(folder / name))
    sums = words.groupby(["unlabelled", "predicted"]).agg(
        count=("doubt", "size"), expected_errors=("doubt", "sum"), mean_entropy=("entropy", "mean")
    )
    certainty = tables["certainty"].to_pylist()
    assert len(certainty) == len(sums)
    for row in certainty:
        wanted = sums.loc[(not row["labelled"], row["predicted"])]
        assert row["count"] == wanted["count"]
        assert row["expected_errors"] == pytest.approx(wanted["expected_errors"], rel=1e-3)
        assert row["mean_entropy"] == pytest.approx(wanted["mean_entropy"], rel=1e-3)
        assert row["mean_prob"] == pytest.approx(1 - wanted["expected_errors"] / wanted["count"], rel=1e-3)
    none = words[words["unlabelled"]]
    assert len(none) > 400
    by_word = none.groupby("word").agg(count=("doubt", "size"), expected_errors=("doubt", "sum"))
    found = tables["uncertain_words"].to_pandas().set_index("word")
    assert found["count"].to_dict() == by_word["count"].to_dict()
    assert found["expected_errors"].is_monotonic_decreasing
    pairs = none.groupby(["word", "predicted"]).size().to_dict()
    assert {(w, item["tag"]): item["count"] for w, items in found["predicted"].items() for item in items} == pairs
    least = tables["uncertain_places"].to_pandas()
    assert len(least) == len(none)
    assert least["predicted_prob"].is_monotonic_increasing
    places = set(zip(least["example_id"], least["word_index"], strict=True))
    assert places == set(zip(none["id"], none["word_index"], strict=True))
    sequences = tables["uncertain_sequences"].to_pandas().set_index("example_id")
    by_id = none.groupby("id")["doubt"].agg(["size", "sum"])
    assert sequences["num_words"].to_dict() == by_id["size"].to_dict()
    np.testing.assert_allclose(sequences.loc[by_id.index, "expected_errors"], by_id["sum"], rtol=5e-3)


def test_labelled_words_are_mined_as_ever(folder: Path) -> None:
    """Tables of labels are those of the labelled words, each with the loss that it has in the full corpus."""
    tables = tokloss_ray.mine(str(folder / "half"), write=False)
    words = words_of(folder / "half")
    labelled = words[~words["unlabelled"]]
    full = words_of(folder / "full").set_index(["id", "word_index"])
    assert sum(tables["tags"]["count"].to_pylist()) == len(labelled)
    keys = list(zip(labelled["id"], labelled["word_index"], strict=True))
    np.testing.assert_allclose(labelled["loss"].astype(float), full.loc[keys, "loss"].astype(float), atol=1e-5)
    assert sum(tables["words"]["sum"].to_pylist()) == pytest.approx(labelled["loss"].sum(), rel=1e-5)


def test_full_corpus_has_nothing_to_say_of_unlabelled_words(folder: Path) -> None:
    tables = tokloss_ray.mine(str(folder / "full"), write=False)
    assert not any(tables[name].num_rows for name in ("uncertain_words", "uncertain_places", "uncertain_sequences"))
    assert tables["certainty"]["labelled"].to_pylist() == [True] * tables["certainty"].num_rows
    assert sum(tables["certainty"]["errors"].to_pylist()) == sum(tables["tags"]["errors"].to_pylist())


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "140"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_commands_say_what_they_can(folder: Path) -> None:
    text = invoke("mine", str(folder / "none"), "--show", "2")
    assert "words has a label: tables that need labels are empty, and left out" in text
    assert "Sequences, by total loss" not in text
    assert "Words without a label, by expected errors" in text
    assert f"tokloss show {folder / 'none'} --rank certainty" in text
    half = invoke("mine", str(folder / "half"), "--show", "2")
    assert "words have no label: the tables of uncertain words and sequences are of these" in half
    assert "Sequences, by total loss" in half
    assert "How sure the model is" not in invoke("mine", str(folder / "full"), "--show", "2")
    first = tokloss_ray.mine(str(folder / "none"), write=False)["uncertain_sequences"].to_pylist()[0]
    shown = invoke("show", str(folder / "none"), "--worst", "1")
    assert shown.startswith(
        f"{first['example_id']} {first['expected_errors']:.2f} errors expected in {first['num_words']}"
    )
    assert all(word in shown for word in first["predicted"])
    with pytest.raises(Refused, match="has no label issues: no word has a label; --rank certainty shows"):
        invoke("show", str(folder / "none"), "--issues")
    page = folder / "report.html"
    invoke("report", str(folder / "none"), "-o", str(page))
    text = page.read_text()
    assert "No word has a label: what needs labels is left out." in text
    assert "How good is the model?" not in text
    assert first["example_id"] in text
    invoke("report", str(folder / "half"), "-o", str(page))
    text = page.read_text()
    assert "words have no label: what needs labels is about the others" in text
    assert "How good is the model?" in text
    for name in ("none", "half"):
        assert verify(str(folder / name)).problems == []


def test_diff_is_agreement_where_there_is_no_label(folder: Path) -> None:
    found = tokloss_ray.diff(str(folder / "none"), str(folder / "none"), resamples=100)
    agreement = found.tables["agreement"].to_pylist()
    assert {(row["predicted_a"], row["predicted_b"]) for row in agreement} == {(t, t) for t in TAGS}
    assert sum(row["count"] for row in agreement) == len(words_of(folder / "none")) == found.matched.words
    assert not found.tables["summary"].num_rows
    assert "words without a label are tagged alike (100.00%)" in invoke(
        "diff", str(folder / "none"), str(folder / "none")
    )
    half = tokloss_ray.diff(str(folder / "half"), str(folder / "half"), resamples=100).tables
    words = words_of(folder / "half")
    assert sum(half["outcomes"]["words"].to_pylist()) == int((~words["unlabelled"]).sum())
    assert sum(half["agreement"]["count"].to_pylist()) == int(words["unlabelled"].sum())


@pytest.mark.parametrize("shape", ["null", "no-key", "parquet"])
def test_labels_given_to_exported_sentences_go_into_the_dataset(folder: Path, tmp_path: Path, shape: str) -> None:
    """The least certain sentences are exported, labelled, and written back to rows that had no labels at all."""
    tokloss_ray.mine(str(folder / "half"))
    sheet = tmp_path / "sheet.conll"
    assert tokloss_ray.export(str(folder / "half"), str(sheet), "conll", uncertain=5) == 5
    lines = sheet.read_text().splitlines()
    labelled = [
        line.rsplit("\t", 1)[0] + "\tB-LOC" if "\t" in line and line.endswith("\t_") else line for line in lines
    ]
    changed = sum(a != b for a, b in zip(lines, labelled, strict=True))
    sheet.write_text("\n".join(labelled) + "\n")
    rows = [json.loads(line) for line in (folder / "half.jsonl").read_text().splitlines()]
    source = tmp_path / ("half.parquet" if shape == "parquet" else "half.jsonl")
    if shape == "parquet":
        parquet(source, rows)
    else:
        write_jsonl(source, [{k: v for k, v in row.items() if v is not None or shape == "null"} for row in rows])
    target = tmp_path / f"new{source.suffix}"
    apply_fixes(str(sheet), str(source), str(target), id_column="id")
    new = (
        pq.read_table(target).to_pylist()
        if shape == "parquet"
        else [json.loads(x) for x in target.read_text().splitlines()]
    )
    assert [row["tokens"] for row in new] == [row["tokens"] for row in rows]
    pairs = [
        (a.get("ner_tags") or [None] * len(a["tokens"]), b.get("ner_tags")) for a, b in zip(rows, new, strict=True)
    ]
    given = [y for a, b in pairs if b for x, y in zip(a, b, strict=True) if x != y]
    assert given == ["B-LOC"] * changed
    assert sum(b is not None for _, b in pairs) > sum(row["ner_tags"] is not None for row in rows)
