"""Counts of words and tags against `collections.Counter`, whatever the parts; what a limit on pairs costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import inline, mining_outputs, models
from tests.support.demo_words import demo_scores, demo_words
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.mining.words import occurrences
from tokloss_ray.mining.words.load import read_counts, read_tokens
from tokloss_ray.mining.words.occurrences import (
    WordCounts,
    add_counts,
    count_labels,
    count_words,
    elsewhere,
    repeated,
    word_numbers,
)
from tokloss_ray.mining.words.words import concat_words, first_tokens
from tokloss_ray.output.opened import open_outputs

WORDS = ["", "a", "b", "ab", "ba", "Köln", "Ko\u0308ln", "北京", "a" * 3000, "x\0", "x"]


def as_dict(counts: WordCounts) -> dict[tuple[int, int], int]:
    pairs = zip(counts.word.tolist(), counts.tag.tolist(), strict=True)
    return dict(zip(pairs, counts.count.tolist(), strict=True))


def counts_of(pairs: list[tuple[str | None, int]], tags: int = 3) -> WordCounts:
    words = pa.array([word for word, _ in pairs], pa.string()).dictionary_encode()
    return count_labels(words, np.array([tag for _, tag in pairs], dtype=np.int32), tags)


def test_numbers_tell_words_apart_and_are_the_same_everywhere() -> None:
    strings = sorted({word for word in demo_words().word.to_pylist() if word is not None} | set(WORDS))
    numbers = word_numbers(pa.array(strings))
    assert len(set(numbers.tolist())) == len(strings)
    sliced = pa.array(["before", *strings, None])[1:]
    assert word_numbers(sliced).tolist() == [*numbers.tolist(), 0]
    assert word_numbers(pa.array(["Köln"])).tolist() == [5767061450457219871]  # workers of another machine say so too


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*WORDS, None]), st.integers(0, 2)), max_size=60), st.data())
def test_counts_add_up_whatever_the_parts(pairs: list[tuple[str | None, int]], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pairs)), max_size=4)))
    parts = [counts_of(pairs[a:b]) for a, b in zip([0, *cuts], [*cuts, len(pairs)], strict=True)]
    whole = add_counts([add_counts(parts[:2]), *parts[2:]])
    numbers = dict(zip(WORDS, word_numbers(pa.array(WORDS)).tolist(), strict=True))
    expected = Counter((numbers[word], tag) for word, tag in pairs if word is not None)
    assert as_dict(whole) == expected
    assert list(as_dict(whole)) == sorted(expected)
    seen = Counter(numbers[word] for word, _ in pairs if word is not None)
    assert as_dict(repeated(whole)) == {pair: n for pair, n in expected.items() if seen[pair[0]] > 1}
    assert whole.dropped == 0


def test_a_limit_drops_the_rarest_words_and_says_so() -> None:
    rare = [[(f"w{i}", 0)] for i in range(200)]
    frequent = [[("often", 0), ("often", 1), ("again", 2), ("again", 2)]] * 50
    parts = [counts_of(part) for pair in zip(rare, frequent * 4, strict=True) for part in pair]
    whole = add_counts(parts, most=30)
    found = as_dict(whole)
    numbers = word_numbers(pa.array(["often", "again"])).tolist()
    assert [found[numbers[0], 0], found[numbers[0], 1], found[numbers[1], 2]] == [200, 200, 400]
    assert len(whole) <= 30
    assert whole.dropped == 1


@pytest.mark.parametrize("dense", [True, False])
def test_other_places_equal_a_plain_count(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense:
        monkeypatch.setattr(occurrences, "_DENSE", 0)
    words = demo_words()
    text = words.word.to_pylist()
    labels = words.label.tolist()
    pairs, seen = Counter(zip(text, labels, strict=True)), Counter(text)
    some = demo_scores().words[1]
    counts = repeated(count_words(words))
    others, (same, predicted, second) = elsewhere(some, counts, (some.label, some.predicted, some.second))
    columns = zip(
        some.word.to_pylist(), some.label.tolist(), some.predicted.tolist(), some.second.tolist(), strict=True
    )
    expected = [
        (seen[w] - 1, pairs[w, a] - 1, pairs[w, b] - (a == b), pairs[w, c] - (a == c)) for w, a, b, c in columns
    ]
    assert list(zip(others.tolist(), same.tolist(), predicted.tolist(), second.tolist(), strict=True)) == expected
    assert max(others) > 50


def test_words_that_are_null_or_not_counted_have_no_other_places() -> None:
    words = demo_words()
    none = replace(words, word=pa.nulls(len(words), pa.string()).dictionary_encode())
    for found in (
        elsewhere(none, count_words(words), [words.label]),
        elsewhere(words, count_words(none), [words.label]),
    ):
        assert not found.others.any()
        assert not found.counts[0].any()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return pq.read_table(DATA, columns=["id", "tokens", "ner_tags"]).slice(2000, 30).to_pylist()


@pytest.mark.parametrize("how", ["windows", "all sub-tokens", "encoded"])
def test_the_first_pass_counts_what_the_second_reads(how: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    tags = mining_outputs.TAGS
    tiny = models.build("xlm-roberta", tmp_path / "model", [row["tokens"] for row in rows], tags)
    more: dict[str, Any] = {"max_length": 12, "overlap": 3} if how == "windows" else {}
    if how == "all sub-tokens":
        more = {"label_all_subtokens": True}
    if how == "encoded":
        rows = [{"id": row["id"], "input_ids": [0, 5, 6, 5, 2], "labels": [-100, 1, 0, 2, -100]} for row in rows]
    source = inline.write_jsonl(tmp_path / "rows.jsonl", rows)
    config = ScoreConfig(
        model=str(tiny), input=(str(source),), output=str(tmp_path / "out"), tags=tags, id_column="id", **more
    )
    inline.score_inline(config)
    scores = open_outputs(str(tmp_path / "out"))
    words = first_tokens(concat_words(list(read_tokens(scores.files, scores.tags))))
    assert len(words) > 60
    for tokens in (10**6, 50):
        assert as_dict(read_counts(scores.files, scores.tags, tokens)) == as_dict(count_words(words))


def test_mine_says_which_words_were_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from tokloss_ray.cli.app import app
    from tokloss_ray.mining import mine as mining

    output = mining_outputs.score_demo(tmp_path, mining_outputs.demo_sentences(tmp_path, 0, 60))
    assert "too many different words" not in CliRunner().invoke(app, ["mine", str(output)]).output
    monkeypatch.setattr(mining, "add_counts", lambda parts: add_counts(parts, most=50))
    said = CliRunner().invoke(app, ["mine", str(output)]).output
    assert "too many different words to count each: for those labelled 3 times or less" in " ".join(said.split())
