"""Tokens of words that are looked up, against rows that the tokenizers library tokenises as a whole."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support.models import FAMILIES
from tokloss_ray.demo import DATA
from tokloss_ray.scoring.stages import row_tokenizer
from tokloss_ray.scoring.stages.row_tokenizer import NO_WORD, RowTokenizer

ROWS: list[list[str]] = pq.read_table(DATA, columns=["tokens"]).column("tokens").to_pylist()[:400]
ODD = [
    *("", " ", "a b", "\u200b", "\ufeff", "\u0301", "\ud7ff", "ﬁ", "Ǆ", "½", "..."),
    *("x" * 500, "[MASK]", "a[SEP]b", "<s>", "▁", "##e"),
]


def rows_of(*rows: list[str]) -> pa.ListArray:
    return pa.array(rows, pa.list_(pa.string()))


def by_library(tokenizer_json: str, rows: list[list[str]]) -> list[tuple[list[int], list[int]]]:
    """Ids and words of each row, asked one row at a time."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    encodings = [tokenizer.encode(row, is_pretokenized=True) for row in rows]
    return [(e.ids, [NO_WORD if word is None else word for word in e.word_ids]) for e in encodings]


def in_rows(tokens: row_tokenizer.Tokens) -> list[tuple[list[int], list[int]]]:
    assert [values.dtype for values in tokens] == [np.int32, np.int32, np.int64]
    cuts = np.cumsum(tokens.lengths)[:-1]
    parts = zip(np.split(tokens.ids, cuts), np.split(tokens.words, cuts), strict=True)
    return [(ids.tolist(), words.tolist()) for ids, words in parts]


def words_and(*special: str) -> str:
    """A tokenizer of whole words, a and b, with special tokens around them as the template says."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "[SEP]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(special), special_tokens=[("[SEP]", 3)])
    return tokenizer.to_str()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"distilbert", "electra"}))  # these have BERT's
def test_every_family_is_tokenised_word_by_word(family: str) -> None:
    backend = FAMILIES[family][0]([" ".join(row) for row in ROWS[:100]]).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    tokenizer_json = backend.to_str()
    odd = random.Random(0).choices(ODD, k=200)
    rows = [*ROWS, [], *[[word] for word in ODD], *[odd[i : i + 5] for i in range(0, 200, 5)]]
    wanted = by_library(tokenizer_json, rows)
    tokenizer = RowTokenizer(tokenizer_json)
    assert tokenizer.word_by_word
    assert in_rows(tokenizer(rows_of(*rows))) == wanted
    assert in_rows(tokenizer(rows_of(*rows).slice(3, 50))) == wanted[3:53]  # now that all words are known


@pytest.mark.parametrize("limits", [{"MOST_WORDS": 40}, {"MOST_CHARACTERS": 200}])
def test_full_it_starts_anew(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(row_tokenizer, name, limit)
    tokenizer_json = FAMILIES["bert"][0]([" ".join(row) for row in ROWS[:100]]).backend_tokenizer.to_str()
    tokenizer = RowTokenizer(tokenizer_json)
    most = 0
    for start in range(0, 120, 3):
        rows = ROWS[start : start + 3]
        assert in_rows(tokenizer(rows_of(*rows))) == by_library(tokenizer_json, rows)
        most = max(most, len(tokenizer._known))
    distinct = len({word for row in ROWS[:120] for word in row})
    assert most < distinct / 2


@pytest.mark.parametrize("template", ["$A [SEP] $A", "$A $A"])
def test_words_that_come_twice_are_tokenised_by_rows(template: str) -> None:
    tokenizer_json = words_and(*template.split())
    tokenizer = RowTokenizer(tokenizer_json)
    assert not tokenizer.word_by_word
    rows = [["a", "b"], ["b"], []]
    assert in_rows(tokenizer(rows_of(*rows))) == by_library(tokenizer_json, rows)


@pytest.mark.parametrize("template", ["$A", "[SEP] $A", "$A [SEP] [SEP]", "[SEP] [SEP] $A [SEP]"])
def test_special_tokens_around_a_row(template: str) -> None:
    tokenizer_json = words_and(*template.split())
    tokenizer = RowTokenizer(tokenizer_json)
    assert tokenizer.word_by_word
    rows = [["a", "b"], [], ["b", "", "c d"]]
    assert in_rows(tokenizer(rows_of(*rows))) == by_library(tokenizer_json, rows)


def test_rows_that_are_cut_or_padded_are_tokenised_as_a_whole() -> None:
    for switch in (lambda t: t.enable_truncation(3), lambda t: t.enable_padding(length=9)):
        tokenizer = Tokenizer.from_str(words_and("$A", "[SEP]"))
        switch(tokenizer)
        assert not RowTokenizer(tokenizer.to_str()).word_by_word


def test_tokenizer_that_fails_on_some_words() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 1, "b": 2}, unk_token="[UNK]"))
    made = RowTokenizer(tokenizer.to_str())
    assert in_rows(made(rows_of(["a", "b"]))) == [([1, 2], [0, 1])]
    with pytest.raises(Exception, match="Missing"):
        made(rows_of(["a", "c"]))
    assert in_rows(made(rows_of(["b"]))) == [([2], [0])]
