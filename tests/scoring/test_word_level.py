"""`--level word`: one entry for each word, made of its tokens as asked for, whatever the windows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, Row, score_inline, write_jsonl
from tests.support.mining_outputs import TAGS
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.output.verify import verify

LOSSES: dict[str, Callable[[list[float]], float]] = {"first": lambda x: x[0], "mean": fmean, "max": max, "sum": sum}


def texts() -> list[Row]:
    """60 sentences, some longer than a window; of every third word, and of one sentence, the label is left out."""
    rows = pq.read_table(DATA).slice(0, 60).to_pylist()
    tags = [[TAGS[t] if i % 3 else None for i, t in enumerate(row["ner_tags"])] for row in rows]
    made: list[Row] = [
        {"id": row["id"], "tokens": row["tokens"], "ner_tags": of_row} for row, of_row in zip(rows, tags, strict=True)
    ]
    made[5]["ner_tags"] = None
    return made


def words_by_hand(windows: list[Row], loss: str, tag: str) -> dict[int, tuple[Any, ...]]:
    """Label, prediction, probability and loss of each word, from the tokens of the window that it is scored in."""
    found: dict[int, tuple[float, tuple[Any, ...]]] = {}
    for row in windows:
        inside = [i for i, word in enumerate(row["word_ids"]) if word is not None]
        for word in {row["word_ids"][i] for i in inside}:
            at = [i for i in inside if row["word_ids"][i] == word]
            labels = [row["labels"][i] for i in at if row["labels"][i] != "IGN"]
            losses = [row["loss"][i] for i in at if row["labels"][i] != "IGN"]
            left, right = at[0] - inside[0], inside[-1] - at[-1]
            context: float = min(left, right)
            if right == 0 and row is not windows[-1]:
                context = -0.5
            if left == 0 and row is not windows[0]:
                context = -1
            if labels:
                context = 1000
            predicted = [row["predicted_label"][i] for i in at]
            chosen = predicted[0] if tag == "first" else Counter(predicted).most_common(1)[0][0]
            probs = [row["predicted_prob"][i] for i, p in zip(at, predicted, strict=True) if p == chosen]
            prob = probs[0] if tag == "first" else fmean(probs)
            values = labels[0] if labels else "IGN", chosen, prob, LOSSES[loss](losses) if losses else None
            if word not in found or context > found[word][0]:
                found[word] = context, values
    return {word: values for word, (_, values) in sorted(found.items())}


@pytest.mark.parametrize(
    ("loss", "tag", "every"),
    [("first", "first", False), ("mean", "vote", True), ("max", "first", True), ("sum", "vote", True)],
)
def test_words_are_made_of_their_tokens(tmp_path: Path, loss: str, tag: str, every: bool) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts())
    result = score_inline(
        ScoreConfig(
            model=str(MODEL), input=(str(source),), output=str(tmp_path / "out"), id_column="id", level="word",
            word_loss=loss, word_tag=tag, label_all_subtokens=every, max_length=24, overlap=8,
        )
    )  # fmt: skip
    assert verify(str(tmp_path / "out")).problems == []
    rows: dict[str, list[Row]] = {}
    for row in result.rows:
        rows.setdefault(row["example_id"], []).append(row)
    assert max(map(len, rows.values())) > 2
    voted = 0
    for windows in rows.values():
        expected = words_by_hand(windows, loss, tag)
        names = ("word_label", "word_predicted", "word_prob", "word_loss")
        found: dict[int, tuple[Any, ...]] = {}
        for row in windows:
            assert row["word_index"] == sorted(row["word_index"])
            for word, *values in zip(row["word_index"], *(row[name] for name in names), strict=True):
                assert word not in found, "a word is there twice"
                found[word] = tuple(values)
        assert sorted(found) == list(range(len(windows[0]["words"])))
        for word, (label, predicted, prob, nats) in found.items():
            assert (label, predicted) == expected[word][:2]
            assert prob == pytest.approx(expected[word][2], rel=1e-5)
            assert nats == (None if expected[word][3] is None else pytest.approx(expected[word][3], rel=1e-5))
            voted += predicted != words_by_hand(windows, "first", "first")[word][1] if tag == "vote" else 1
    assert voted, "no vote was another than the first token's"


def test_offsets_stand_beside_words_of_text(run: Callable[..., Inline], tmp_path: Path) -> None:
    """One entry of each list for each word: of a text, where in it the word is."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "Anton  wohnt in Berlin", "entities": [[0, 5, "PER"]]}])
    (row,) = run(source, level="word").rows
    assert row["word_label"] == ["B-PER", "O", "O", "O"]
    assert (row["word_index"], row["word_starts"], row["word_ends"]) == ([0, 1, 2, 3], [0, 7, 13, 16], [5, 12, 15, 22])


def test_without_it_nothing_is_added(run: Callable[..., Inline], tmp_path: Path) -> None:
    (row,) = run(write_jsonl(tmp_path / "in.jsonl", [{"tokens": ["Anton"], "ner_tags": ["O"]}])).rows
    assert not [name for name in row if name in ("word_index", "word_loss")]


def test_what_cannot_be_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "word_loss: is for level word" in refused(word_loss="mean", label_all_subtokens=True)
    assert "word_tag: is for level word" in refused(word_tag="vote")
    assert "word_loss: mean needs label_all_subtokens" in refused(level="word", word_loss="mean")
    encoded = write_jsonl(tmp_path / "ids.jsonl", [{"input_ids": [2, 3], "labels": [-100, -100]}])
    assert "--level word needs words" in refused(input=encoded, level="word")


def test_the_query_of_the_docs(run: Callable[..., Inline], tmp_path: Path) -> None:
    """It gives a row for each word."""
    duckdb = pytest.importorskip("duckdb")
    page = (Path(__file__).parents[2] / "docs" / "output.md").read_text(encoding="utf-8")
    (query,) = re.findall(r"```sql\n(select example_id, words\[i.*?)```", page, re.DOTALL)
    sentences = [{"tokens": ["Anton", "wohnt"], "ner_tags": ["B-PER", None]}, {"tokens": ["See"], "ner_tags": ["O"]}]
    result = run(write_jsonl(tmp_path / "in.jsonl", sentences), level="word")
    rows = duckdb.sql(query.replace("out/scores", f"{result.plan.job.output}/scores")).fetchall()
    assert [row[1:3] for row in rows] == [("Anton", "B-PER"), ("wohnt", "IGN"), ("See", "O")]
    assert [row[4] is None for row in rows] == [False, True, False]
