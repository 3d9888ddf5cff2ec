"""Odd sentences: without tokens, of one token, of a million."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support import models, reference
from tests.support.inline import Inline, write_jsonl
from tests.support.tiny import (
    SENTENCES,
    TAGS,
    VOCABULARY,
    row,
)

NO_TOKENS = "\u200b"  # a word of which the tokenizers here make nothing
CLOSE = {"rel": 1e-4, "abs": 1e-4}


def test_tokenizer_without_special_tokens(run: Callable[..., Inline], bare_model: Path, tmp_path: Path) -> None:
    sentences = [row("Anton", "wohnt", tags=[1, 0]), row("Berlin", tags=[3]), row(*VOCABULARY * 5, tags=[0, 1] * 30)]
    result = run(write_jsonl(tmp_path / "in.jsonl", sentences), using=bare_model, overlap=6)
    first, second, *windows = result.rows
    assert first["input_tokens"] == ["Anton", "wohnt"]
    assert first["labels"] == ["B-PER", "O"]
    assert first["word_ids"] == [0, 1]
    model, tokenizer = reference.load(bare_model)
    for found, words, tags in ((first, ["Anton", "wohnt"], [1, 0]), (second, ["Berlin"], [3])):
        wanted = reference.reference_words(model, tokenizer, words, tags)
        assert found["loss"] == pytest.approx(wanted["loss"], **CLOSE)
        assert found["total_loss"] == pytest.approx(wanted["total_loss"], **CLOSE)
    # Windows have no room to keep for special tokens: 32 tokens each, 26 new ones in all but the first.
    assert [w["num_tokens"] for w in windows] == [32, 32, 8]
    assert [w["word_ids"][0] for w in windows] == [0, 26, 52]
    scored = [w["word_ids"][i] for w in windows for i, label in enumerate(w["labels"]) if label != "IGN"]
    assert sorted(scored) == list(range(60))


def test_row_of_which_no_token_remains(run: Callable[..., Inline], bare_model: Path, tmp_path: Path) -> None:
    """Without special tokens there is nothing to run the model on: the row goes to errors/."""
    source = write_jsonl(tmp_path / "in.jsonl", [row(NO_TOKENS), row("Anna"), row("", NO_TOKENS)])
    result = run(source, using=bare_model, max_error_rate=1)
    assert [r["words"] for r in result.rows] == [["Anna"]]
    assert [(e["stage"], e["reason"]) for e in result.errors] == [("encode", "empty")] * 2
    assert {e["detail"] for e in result.errors} == {"the tokenizer makes no tokens of it"}
    assert (result.totals.rows, result.totals.scored_rows, result.totals.error_rows) == (3, 1, 2)


def test_words_that_yield_no_tokens(run: Callable[..., Inline], tmp_path: Path) -> None:
    sentences = [row("Anna", NO_TOKENS, "Otto", "", tags=[1, 2, 3, 0]), row(NO_TOKENS, "", tags=[1, 1])]
    result = run(write_jsonl(tmp_path / "in.jsonl", sentences))
    some, none = result.rows
    assert some["words"] == ["Anna", NO_TOKENS, "Otto", ""]
    assert some["word_ids"] == [None, 0, 2, None]
    assert some["labels"] == ["IGN", "B-PER", "B-LOC", "IGN"]
    assert (some["num_labels"], some["num_dropped_words"]) == (2, 2)
    assert none["word_ids"] == [None, None]
    assert (none["num_tokens"], none["num_labels"], none["num_dropped_words"]) == (2, 0, 2)
    assert (none["total_loss"], none["mean_loss"], none["max_loss"]) == (0.0, None, None)
    assert result.totals.dropped_words == 4


def test_dropped_words_of_windows_are_counted_once(run: Callable[..., Inline], tmp_path: Path) -> None:
    words = [w for word in VOCABULARY * 10 for w in (word, NO_TOKENS)]
    result = run(write_jsonl(tmp_path / "in.jsonl", [row(NO_TOKENS, *words)]), overlap=7)
    assert len(result.rows) > 3
    assert sum(r["num_dropped_words"] for r in result.rows) == result.totals.dropped_words == 121
    assert result.totals.labels == 120


@pytest.mark.parametrize("special_tokens", [True, False])
def test_sentence_of_one_token(
    run: Callable[..., Inline], model: Path, bare_model: Path, tmp_path: Path, special_tokens: bool
) -> None:
    using = model if special_tokens else bare_model
    (found,) = run(write_jsonl(tmp_path / "in.jsonl", [row("Berlin", tags=[3])]), using=using).rows
    assert (found["num_tokens"], found["num_labels"]) == (3 if special_tokens else 1, 1)
    loaded, tokenizer = reference.load(using)
    wanted = reference.reference_words(loaded, tokenizer, ["Berlin"], [3])
    assert found["loss"] == pytest.approx(wanted["loss"], **CLOSE)
    assert found["total_loss"] == pytest.approx(found["mean_loss"]) == pytest.approx(found["max_loss"])


def test_pre_encoded_sentence_of_one_token(run: Callable[..., Inline], model: Path, tmp_path: Path) -> None:
    (found,) = run(write_jsonl(tmp_path / "in.jsonl", [{"input_ids": [9], "labels": [2]}])).rows
    loaded, tokenizer = reference.load(model)
    wanted = reference.reference_encoded(loaded, [9], [2], tokenizer=tokenizer)
    assert found["input_tokens"] == wanted["input_tokens"]
    assert found["loss"] == pytest.approx(wanted["loss"], **CLOSE)


class KnownLogits(torch.nn.Module):
    """In place of a model: 3 for the class `token id mod classes`, 0 for the others; costs next to nothing."""

    high = 3 - math.log(math.exp(3) + len(TAGS) - 1)  # log-probabilities of that class and of any other
    low = -math.log(math.exp(3) + len(TAGS) - 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        logits = torch.nn.functional.one_hot(input_ids % len(TAGS), len(TAGS)).float() * 3
        return SimpleNamespace(logits=logits)

    @classmethod
    def loss(cls, token_ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.where(token_ids % len(TAGS) == labels, -cls.high, -cls.low)


@pytest.mark.slow
def test_sentence_of_a_million_tokens(run: Callable[..., Inline], model: Path, tmp_path: Path) -> None:
    """Each word is scored once, in windows whose words stand in the order of the sentence; memory stays in bounds."""
    count = 1_000_000
    rng = np.random.default_rng(0)
    words = [VOCABULARY[i] for i in rng.integers(0, len(VOCABULARY), count)]
    tags = rng.integers(0, len(TAGS), count)
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna"), row(*words, tags=tags.tolist()), row("Otto")])
    long_model = models.build("bert", tmp_path / "model", SENTENCES, TAGS, max_length=512)
    vocabulary = json.loads((long_model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    token_ids = np.array([vocabulary[word] for word in words])  # each word is one token
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run(source, using=long_model, wrap=lambda _: KnownLogits())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    windows = [r for r in result.rows if r["source_row"] not in (0, result.rows[-1]["source_row"])]
    assert [w["window"] for w in windows] == list(range(len(windows)))
    assert len(windows) == math.ceil((count - 64) / (510 - 64))  # 510 words a window, of which neighbours share 64
    assert windows[0]["words"] == words
    assert all(w["words"] is None for w in windows[1:]), "a million words in each window would be billions"
    scored = np.zeros(count, dtype=np.int64)
    for window in windows:
        here = np.array(window["word_ids"][1:-1])
        assert (np.diff(here) == 1).all()
        assert np.array_equal(window["input_ids"][1:-1], token_ids[here])
        labelled = np.array(window["labels"][1:-1]) != "IGN"
        scored[here[labelled]] += 1
        assert np.array(window["labels"])[1:-1][labelled].tolist() == [TAGS[t] for t in tags[here[labelled]]]
    assert (scored == 1).all()
    wanted = KnownLogits.loss(token_ids, tags).sum()
    assert sum(w["total_loss"] for w in windows) == pytest.approx(wanted, rel=1e-4)
    assert (result.totals.rows, result.totals.labels, result.totals.dropped_words) == (3, count + 2, 0)
    assert result.totals.sequences == len(windows) + 2
    whole = [record for record in result.records if record.tokens > 1 << 16]
    assert [record.scored_rows for record in whole] == [1], "the windows of a row stay together, and alone"
    assert grown < 1500, f"{grown:.0f} MB"
