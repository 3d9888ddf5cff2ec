"""Windows, pre-encoded input, labels on all sub-tokens, rows without words, odd names and hostile text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

import tokloss_ray
from tests.support import inline, mining_outputs, models
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.app import app
from tokloss_ray.cli.views.tables import print_tables
from tokloss_ray.demo import DATA
from tokloss_ray.mining.passes import column_names
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.words.load import read_tokens, read_words
from tokloss_ray.mining.words.words import Words, concat_words, first_tokens
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.scoring.stages import encode
from tokloss_ray.text import visible

TAGS = mining_outputs.TAGS


@pytest.fixture(scope="module")
def sentences() -> list[dict[str, Any]]:
    return pq.read_table(DATA, columns=["id", "tokens", "ner_tags"]).slice(1000, 60).to_pylist()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, sentences: list[dict[str, Any]]) -> Path:
    return models.build("xlm-roberta", tmp_path_factory.mktemp("tiny"), [row["tokens"] for row in sentences], TAGS)


def scored(folder: Path, tiny: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    source = inline.write_jsonl(folder / "rows.jsonl", rows)
    settings: dict[str, Any] = {
        "model": str(tiny), "input": (str(source),), "output": str(folder / "out"), "tags": TAGS, "id_column": "id",
    }  # fmt: skip
    inline.score_inline(ScoreConfig(**settings | options))
    return folder / "out"


def all_tokens(output: Path) -> Words:
    scores = open_outputs(str(output))
    return concat_words(list(read_tokens(scores.files, scores.tags)))


def by_row(words: Words, name: str) -> dict[str, list[Any]]:
    values = getattr(words, name)
    values = values.to_pylist() if isinstance(values, pa.Array) else values.tolist()
    return {
        example: values[start:stop]
        for example, start, stop in zip(
            words.example_id.to_pylist(), words.offsets[:-1], words.offsets[1:], strict=True
        )
    }


def joined(rows: list[dict[str, Any]], column: str) -> list[Any]:
    return [item for row in rows for item in row[column]]


def test_windows_are_one_sequence(tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]) -> None:
    long = [
        {"id": f"long-{i}", "tokens": joined(sentences[i::6], "tokens"),
         "ner_tags": joined(sentences[i::6], "ner_tags")}
        for i in range(6)
    ]  # fmt: skip
    output = scored(tmp_path / "windows", tiny, long, max_length=32, overlap=8)
    assert max(row["window"] for row in inline.read_rows(output)) > 3
    words = first_tokens(all_tokens(output))
    for row in long:
        assert by_row(words, "word")[row["id"]] == row["tokens"]
        assert by_row(words, "word_index")[row["id"]] == list(range(len(row["tokens"])))
        assert [TAGS[code] for code in by_row(words, "label")[row["id"]]] == [TAGS[tag] for tag in row["ner_tags"]]
    table = tokloss_ray.mine(str(output), write=False)["sequences"]
    assert table.num_rows == 6
    totals: dict[str, float] = {}
    for window in inline.read_rows(output):
        totals[window["example_id"]] = totals.get(window["example_id"], 0.0) + window["total_loss"]
    for row in table.to_pylist():
        assert row["total_loss"] == pytest.approx(totals[row["example_id"]], rel=1e-5)
    scores = open_outputs(str(output))
    in_steps = concat_words(list(read_tokens(scores.files, scores.tags, tokens=40)))
    assert in_steps.word.to_pylist() == all_tokens(output).word.to_pylist()
    assert len(in_steps.offsets) == 7


def test_later_windows_without_words(
    tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "WORDS_IN_EVERY_WINDOW", 30)
    row = {
        "id": "x",
        "tokens": joined(sentences, "tokens"),
        "ner_tags": joined(sentences, "ner_tags"),
    }
    output = scored(tmp_path / "long", tiny, [row, {**sentences[0], "id": "y"}], max_length=32, overlap=8)
    assert sum(window["words"] is None for window in inline.read_rows(output)) > 5
    words = by_row(first_tokens(all_tokens(output)), "word")
    assert words == {"x": row["tokens"], "y": sentences[0]["tokens"]}


def test_labels_on_all_subtokens(tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]) -> None:
    output = scored(tmp_path / "all", tiny, sentences, label_all_subtokens=True)
    tokens = all_tokens(output)
    words = first_tokens(tokens)
    assert len(tokens) > len(words) == sum(len(row["tokens"]) for row in sentences)
    assert by_row(words, "word") == {row["id"]: row["tokens"] for row in sentences}
    tables = tokloss_ray.mine(str(output), write=False)
    frame = mining_outputs.explode(output)
    assert pa.compute.sum(tables["tokens"].column("count")).as_py() == len(frame)
    assert pa.compute.sum(tables["tags"].column("sum")).as_py() == pytest.approx(frame["loss"].sum())
    assert pa.compute.sum(tables["words"].column("count")).as_py() == len(words)
    first = frame.drop_duplicates(["example_id", "word_ids"])
    assert pa.compute.sum(tables["words"].column("sum")).as_py() == pytest.approx(first["loss"].sum())


def test_pre_encoded(tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]) -> None:
    as_words = scored(tmp_path / "words", tiny, sentences)
    rows = [
        {"id": row["example_id"], "input_ids": row["input_ids"],
         "labels": [-100 if tag == "IGN" else TAGS.index(tag) for tag in row["labels"]]}
        for row in inline.read_rows(as_words)
    ]  # fmt: skip
    encoded = scored(tmp_path / "ids", tiny, rows)
    tokens, words = all_tokens(encoded), all_tokens(as_words)
    assert tokens.word.to_pylist() == tokens.token.to_pylist() == words.token.to_pylist()
    assert tokens.word_index.tolist() == words.word_index.tolist()  # every word has a label here
    assert not tokens.num_subtokens.any()
    tables, expected = (tokloss_ray.mine(str(output), write=False) for output in (encoded, as_words))
    assert "subtokens" not in tables["lengths"].column("property").to_pylist()
    for name in ("tokens", "tags", "confusion", "entities"):
        for column in expected[name].column_names:
            a, b = (t[name].column(column) for t in (tables, expected))
            if pa.types.is_floating(a.type):
                np.testing.assert_allclose(a.to_pandas(), b.to_pandas(), rtol=1e-4, atol=1e-4)
    windows = scored(tmp_path / "short", tiny, rows, max_length=16, overlap=4)
    assert max(row["window"] for row in inline.read_rows(windows)) > 0
    assert by_row(all_tokens(windows), "word_index") == by_row(words, "word_index")
    assert by_row(all_tokens(windows), "word") == by_row(words, "token")


def test_rows_without_labels_and_unknown_ids(tmp_path: Path) -> None:
    def row(i: int, **changes: Any) -> dict[str, Any]:
        base = {
            "example_id": f"e{i}", "source": "s", "source_row": i, "window": 0, "words": ["a", "b"],
            "input_ids": [1, 2, 3], "input_tokens": ["a", "b", None], "word_ids": [0, 1, None],
            "labels": ["X", "Y", "IGN"], "predicted_label": ["X", "X", "X"], "loss": [0.5, 1.5, 0.0],
            "predicted_prob": [0.6, 0.7, 0.8], "second_label": ["Y", "Y", "Y"], "second_prob": [0.4, 0.3, 0.2],
            "num_tokens": 3, "num_labels": 2, "num_dropped_words": 0, "total_loss": 2.0, "mean_loss": 1.0,
            "max_loss": 1.5,
        }  # fmt: skip
        return base | changes

    rows = [
        row(0),
        row(1, labels=["IGN"] * 3, loss=[0.0] * 3),
        row(2, input_tokens=[None, "b", None]),
    ]
    output = mining_outputs.write_output(tmp_path / "out", rows, ["X", "Y"])
    tables = tokloss_ray.mine(str(output), write=False)
    counts = {row["token"]: row["count"] for row in tables["tokens"].to_pylist()}
    assert counts == {"a": 1, "b": 2, None: 1}
    assert {row["word"]: row["count"] for row in tables["words"].to_pylist()} == {"a": 2, "b": 2}
    assert tables["sequences"].column("example_id").to_pylist() == ["e0", "e2"]
    assert tables["tags"].to_pylist()[0] == {
        "tag": "Y", "count": 2, "mean": 1.5, "sum": 3.0, "max": 1.5, "std": 0.0, "errors": 2, "predicted": 0,
        "correct": 0, "precision": None, "recall": 0.0, "f1": 0.0,
    }  # fmt: skip

    ids = [{**row, "words": None, "word_ids": None} for row in rows]
    encoded = mining_outputs.write_output(tmp_path / "ids", ids, ["X", "Y"])
    words = tokloss_ray.mine(str(encoded), write=False)["words"].to_pylist()
    assert {row["word"]: row["count"] for row in words} == {"a": 1, "b": 2, None: 1}


def test_odd_names(tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]) -> None:
    odd = "größe = a/b %20"
    rows = [{**row, "id": row["id"], odd: ["x=1&y", "ü/ö", None][i % 3]} for i, row in enumerate(sentences)]
    folder = tmp_path / "mit leer [x] 100%"
    output = scored(folder, tiny, rows, partition_by=(odd,))
    tables = tokloss_ray.mine(str(output), by=[odd])
    assert set(tables["tags"].column(odd).to_pylist()) == {"x=1&y", "ü/ö", None}
    assert (output / "mining/tags.parquet").is_file()
    # A name with an equals sign cannot stand before one; its first part is not a column.
    with pytest.raises(tokloss_ray.TokLossError, match="no such column"):
        tokloss_ray.mine(str(output), where=[f"{odd}=x"], write=False)


def test_names_that_tables_have_are_refused_as_slices(
    tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]
) -> None:
    output = scored(tmp_path / "names", tiny, sentences, add_column={"token": "x", "lang": "de"})
    with pytest.raises(tokloss_ray.TokLossError, match="--by token: the tables already have a column with this name"):
        tokloss_ray.mine(str(output), by=["token"], write=False)
    assert tokloss_ray.mine(str(output), where=["token=x"], by=["lang"], write=False)["tags"].num_rows


def test_every_table_column_is_known_to_the_refusal(
    tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]
) -> None:
    names = column_names(MiningSettings(tags=tuple(TAGS), labels={}))
    output = scored(tmp_path / "columns", tiny, sentences)
    for table in tokloss_ray.mine(str(output), write=False).values():
        assert set(table.column_names) <= names
    assert {"bin", "bucket", "m2"} <= names, "those of partials are missing"


HOSTILE = [
    "[bold]x[/]",
    "a\x1b[31mred",
    "a\u202eb",
    "tab\there",
    "new\nline",
    "<script>",
    "[/]",
    "\u200bhidden",
    "👩\u200d🚀",
]


def test_hostile_text_is_shown_as_text(tmp_path: Path, tiny: Path) -> None:
    rows = [{"id": f"[red]{i}\x07", "tokens": [word, "Berlin"], "ner_tags": [0, 5]} for i, word in enumerate(HOSTILE)]
    output = scored(tmp_path / "hostile", tiny, rows)
    tables = tokloss_ray.mine(str(output), write=False)
    shown = io.StringIO()
    print_tables(Console(file=shown, width=80), tables, 20, [], str(output), f"{output}/mining")
    text = shown.getvalue()
    assert max(map(len, text.splitlines())) <= 80 + 200  # paths may be long
    for raw in "\x1b\u202e\x07\u200b\t":
        assert raw not in text
    for part in ("[bold]x[/]", "\\u001b[31mred", "\\u202e", "tab\\u0009here", "<script>", "👩\u200d🚀"):
        assert part in text


def test_visible() -> None:
    assert visible("Zürich नमस्ते 👩\u200d🚀") == "Zürich नमस्ते 👩\u200d🚀"
    assert visible("a\u2066b\ufeff\u2028\x7f\U000e0001") == "a\\u2066b\\ufeff\\u2028\\u007f\\U000e0001"


def test_the_command(tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]) -> None:
    output = scored(tmp_path / "cli", tiny, sentences)
    run = CliRunner().invoke(app, ["mine", str(output), "--show", "2", "--min-count", "2", "--limit", "5"])
    assert run.exit_code == 0, run.output
    assert "Tokens, by total loss  (2 of" in run.output
    assert f"tokloss show {output} --worst 3" in run.output.replace("\n", "")
    assert pq.read_table(output / "mining/sequences.parquet").num_rows <= 15
    made = json.loads(pq.read_schema(output / "mining/tags.parquet").metadata[b"tokloss"])
    assert (made["min_count"], made["limit"]) == (2, 5)
    elsewhere = CliRunner().invoke(app, ["mine", str(output), "--show", "0", "--to", str(tmp_path / "to")])
    assert elsewhere.exit_code == 0
    assert (tmp_path / "to/tokens.parquet").is_file()
    refused = CliRunner().invoke(app, ["mine", str(tmp_path)])
    assert isinstance(refused.exception, tokloss_ray.TokLossError)
    assert refused.exception.exit_code == 2


def test_read_words_of_one_file(tmp_path: Path, tiny: Path, sentences: list[dict[str, Any]]) -> None:
    output = scored(tmp_path / "probs", tiny, sentences, keep_probs=True)
    scores = open_outputs(str(output))
    words = read_words(scores.files[0], scores.tags, probs=True)
    assert words.probs is not None
    assert words.probs.shape == (len(words), len(TAGS))
    np.testing.assert_allclose(words.probs.sum(axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(
        -np.log(words.probs[np.arange(len(words)), words.label]), words.loss, rtol=1e-3, atol=1e-4
    )
