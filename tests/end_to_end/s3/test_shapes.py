"""2,000 real sentences in every shape: the same scores from disk and from S3, and after a process was killed; and what
is wrong with a row is said by the same words in all of them."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.s3.common import upload
from tests.support import models, warm
from tests.support.inline import Inline, Row, score_inline
from tests.support.shapes import NER, SHAPES, sentences
from tests.support.shapes import Row as Sentence
from tokloss_ray import ScoreConfig
from tokloss_ray.output.records import CommitRecord, read_records

pytestmark = pytest.mark.slow
COUNT = 2_000
PLACES = ("source", "source_row", "word_starts", "word_ends")
FLOATS = ("loss", "predicted_prob", "second_prob", "total_loss", "mean_loss", "max_loss")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [row["tokens"] for row in sentences(COUNT)]
    return models.build("bert", tmp_path_factory.mktemp("model"), words, NER, max_length=64)


def settings_of(name: str, model: Path, source: str, output: Path, **more: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"id_column": "id", "keep": ["lang"], "max_error_rate": 1.0}
    return {"model": str(model), "input": (source,), "output": str(output), **common, **SHAPES[name][1], **more}


def score(settings: dict[str, Any], **more: Any) -> Inline:
    return score_inline(ScoreConfig(**settings), **more)


def without_places(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in PLACES} for row in rows]


@functools.cache
def wanted(model: Path) -> list[Row]:
    """Of the Parquet file on disk."""
    folder = model.parent / "wanted"
    folder.mkdir()
    SHAPES["in.parquet"][0](folder / "in.parquet", list(sentences(COUNT)))
    found = score(settings_of("in.parquet", model, str(folder / "in.parquet"), folder / "out"))
    assert len({row["example_id"] for row in found.rows}) == COUNT
    return without_places(found.rows)


def killed_after(settings: dict[str, Any], count: int) -> None:
    """Score, and be killed once so many shards are committed."""
    left = [count]

    def committed(record: CommitRecord) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    score(settings, committed=committed)


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_scores(model: Path, tmp_path: Path, bucket: str, name: str) -> None:
    (tmp_path / "in").mkdir()
    SHAPES[name][0](tmp_path / "in" / name, list(sentences(COUNT)))
    local = str(tmp_path / "in" / name)
    remote = f"{upload(tmp_path / 'in', f'{bucket}/in')}/{name}"
    for place, source in (("disk", local), ("s3", remote)):
        found = score(settings_of(name, model, source, tmp_path / place))
        assert not found.errors
        assert without_places(found.rows) == wanted(model), place
    # Killed when some shards were committed, the same command goes on, and the rows are those of a whole run.
    settings = settings_of(name, model, local, tmp_path / "killed", shard_tokens=4_096)
    assert warm.run(killed_after, settings, 3).returncode == -signal.SIGKILL
    before = read_records(str(tmp_path / "killed"))
    assert len(before) == 3
    again = score(settings)
    assert set(before) < {record.shard for record in again.records}
    _same_but_for_rounding(without_places(again.rows), wanted(model))


def _same_but_for_rounding(rows: list[Row], those: list[Row]) -> None:
    """In other micro-batches sums are formed in another order."""
    for one, other in zip(sorted(rows, key=_key), sorted(those, key=_key), strict=True):
        for name, value in other.items():
            if name in FLOATS:
                np.testing.assert_allclose(np.array(one[name], float), np.array(value, float), rtol=1e-4, atol=1e-4)
            elif name not in ("predicted_label", "second_label"):
                assert one[name] == value, name


def _key(row: Row) -> tuple[str, int]:
    return row["example_id"], row["window"]


Break = Callable[[Sentence], Sentence]


def other_tag(row: Sentence) -> Sentence:
    return row | {"ner_tags": ["B-GOD", *row["ner_tags"][1:]]}


def no_words(row: Sentence) -> Sentence:
    return row | {"tokens": [], "ner_tags": []}


def fewer_tags(row: Sentence) -> Sentence:
    return row | {"ner_tags": row["ner_tags"][1:]}


SPAN_SHAPES = {name for name, (_, settings) in SHAPES.items() if "words" in settings} | {
    "prodigy.jsonl",
    "gliner.jsonl",
}
CONLL = {name for name in SHAPES if "conll" in name or name == "words.tsv"}
BROKEN: list[tuple[Break, str, set[str]]] = [
    (other_tag, "unknown_tag", set(SHAPES)),
    (no_words, "empty", set(SHAPES) - CONLL - {name for name in SHAPES if "spaces" in name}),
    (fewer_tags, "length_mismatch", set(SHAPES) - SPAN_SHAPES - CONLL),
]


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_reasons(model: Path, tmp_path: Path, name: str) -> None:
    rows = list(sentences(50))
    broken = {}
    # Behind the rows by which a .tsv file is known as a table.
    for place, (change, reason, shapes) in enumerate(BROKEN, start=27):
        if name in shapes:
            rows[place] = change(rows[place])
            broken[rows[place]["id"]] = reason
    SHAPES[name][0](tmp_path / name, rows)
    found = score(settings_of(name, model, str(tmp_path / name), tmp_path / "out"))
    assert {error["example_id"]: error["reason"] for error in found.errors} == broken
    assert len(found.rows) == 50 - len(broken)
