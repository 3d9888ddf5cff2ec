"""`tokloss show`: sequences found by rank, token, tag pair, issue and id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support import inline, models
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused
from tokloss_ray.mining.mined import provenance_of
from tokloss_ray.mining.write import write_tables
from tokloss_ray.output.search import find_sequences, notes_of_issues, open_scores, sequences_by_id, sequences_of_issues

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 real sentences in windows, shards and partitions."""
    folder = tmp_path_factory.mktemp("show")
    table = pq.read_table(DATA).slice(0, 120)
    models.build("bert", folder / "model", table["tokens"].to_pylist(), TAGS, max_length=48)
    pq.write_table(table, folder / "in.parquet")
    inline.score_inline(
        ScoreConfig(
            model=str(folder / "model"),
            input=(str(folder / "in.parquet"),),
            output=str(folder / "out"),
            id_column="id",
            partition_by=("lang",),
            shard_tokens=500,
        )
    )
    return folder / "out"


def names(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["example_id"], row["window"]) for row in rows]


@pytest.mark.parametrize("rank", ["total", "mean", "max"])
def test_the_worst_by_each_loss(output: Path, rank: str) -> None:
    """Of whole rows: the windows of one are one sequence."""
    found, count = find_sequences(open_scores(str(output)), 7, rank)
    losses: dict[str, list[float]] = {}
    windows = inline.read_rows(output)
    for row in windows:
        here = zip(row["labels"], row["loss"], strict=True)
        losses.setdefault(row["example_id"], []).extend(loss for label, loss in here if label != "IGN")
    assert count == len(losses) < len(windows)
    of_rank = {"total": sum, "mean": lambda x: sum(x) / len(x), "max": max}[rank]
    expected = sorted(losses, key=lambda name: (-of_rank(losses[name]), name))[:7]
    assert [row["example_id"] for row in found.to_pylist()] == expected
    for row in found.to_pylist():
        assert row[f"{rank}_loss"] == pytest.approx(of_rank(losses[row["example_id"]]), rel=1e-5)


@pytest.mark.parametrize(("label", "predicted"), [("B-ORG", "B-LOC"), ("I-PER", None), (None, "I-LOC"), ("O", "O")])
def test_by_a_pair_of_tags(output: Path, label: str | None, predicted: str | None) -> None:
    def has(row: dict[str, Any]) -> bool:
        return any(
            a != "IGN"
            and (label is None or a == label)
            and (predicted is None or p == predicted)
            and (a != p or (label is not None and predicted is not None))
            for a, p in zip(row["labels"], row["predicted_label"], strict=True)
        )

    found, count = find_sequences(open_scores(str(output)), 4, label=label, predicted=predicted)
    rows = inline.read_rows(output)
    total: dict[str, float] = {}
    for row in rows:
        total[row["example_id"]] = total.get(row["example_id"], 0.0) + row["total_loss"]
    expected = {row["example_id"] for row in rows if has(row)}
    assert count == len(expected) > 0
    worst = sorted(expected, key=lambda name: (-total[name], name))
    assert [row["example_id"] for row in found.to_pylist()] == worst[:4]


def test_windows_are_shown_as_one_sequence(output: Path) -> None:
    """With the words of the row in their order, each once, and special tokens at the ends alone."""
    rows = inline.read_rows(output)
    long = next(row for row in rows if row["window"] == 1)
    found = sequences_by_id(open_scores(str(output)), long["example_id"])
    (one,) = found.to_pylist()
    inside = one["word_ids"][1:-1]
    assert sorted(set(inside)) == list(range(len(long["words"])))
    assert inside == sorted(inside)
    labelled = [label for label in one["labels"] if label != "IGN"]
    assert len(labelled) == len(long["words"])
    windows = [row for row in rows if row["example_id"] == long["example_id"]]
    assert one["total_loss"] == pytest.approx(sum(row["total_loss"] for row in windows), rel=1e-6)
    for token, window, place in zip(one["input_tokens"], one["windows"], one["places"], strict=True):
        assert windows[window]["input_tokens"][place] == token
    text = invoke("show", str(output), "--id", long["example_id"])
    assert text.count("[CLS]") == text.count("[SEP]") == 1
    assert "window" not in text


def test_by_issue(output: Path) -> None:
    rows = inline.read_rows(output)
    rows = [row for row in rows if row["window"] == 0]
    chosen = [rows[30], rows[5], rows[30], rows[70]]
    issues = pa.table(
        {
            "output": [str(output)] * 4,
            **{name: [row[name] for row in chosen] for name in ("example_id", "source", "source_row", "window")},
            "token_index": [2, 1, 3, 1],
            "suggested_label": ["B-LOC", "O", "I-LOC", "B-PER"],
        }
    )
    assert notes_of_issues(issues, {}) == {}  # a table of an earlier version, without reasons
    texts = {"word": ["x", "y", "x", "x"], "label": ["O"] * 4, "predicted": ["B-LOC"] * 4, "why": list("abcd")}
    for name, values in texts.items():
        issues = issues.append_column(name, pa.array(values))
    found, marks = sequences_of_issues(open_scores(str(output)), issues, 2)
    assert names(found.to_pylist()) == names([rows[30], rows[5]])
    assert list(marks.values()) == [{2: "B-LOC", 3: "I-LOC"}, {1: "O"}]
    with pytest.raises(Refused, match="tokloss mine"):
        invoke("show", str(output), "--issues")
    made = provenance_of(open_scores(str(output)), {"by": [], "where": [], "limit": 10})
    write_tables(str(output / "mining"), {"label_issues": issues}, made)
    text = invoke("show", str(output), "--issues", "--worst", "2")
    assert "suggested" in text
    assert "I-LOC" in text
    assert [line for line in text.splitlines() if line[:3] in ("x: ", "y: ")] == ["x: a", "x: c", "y: b"]
    same = issues.set_column(issues.column_names.index("suggested_label"), "suggested_label", pa.array(["O"] * 4))
    assert sorted(notes_of_issues(same, marks).values()) == [["x: a (3 such issues)", "x: c (3 such issues)"], ["y: b"]]


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "120"}, catch_exceptions=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_is_not_there_is_said(output: Path) -> None:
    assert "a token labelled B-PER and predicted otherwise; the worst 1" in " ".join(
        invoke("show", str(output), "--label", "B-PER", "--worst", "1").split()
    )
    for words, says in (
        (["--label", "B-X"], "no sequence in .* has a token labelled B-X and predicted otherwise"),
        (["--id", "x", "--label", "O"], "cannot be combined with other ways"),
        (["--id", "x"], "no sequence with the id x"),
    ):
        with pytest.raises(Refused, match=says):
            invoke("show", str(output), *words)
