"""Text is split into words at the same places as by plain Python, whatever the characters."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tokloss_ray.inputs.text_words import MODEL, PUNCTUATION, WHITESPACE, code_points, split, words_of

Words = list[list[tuple[int, int, str]]]


def words(texts: list[str | None], way: str, tokenizer: Tokenizer | None = None) -> Words:
    """Of each text its words: start, end, string."""
    read = code_points(pa.array(texts, pa.string()))
    pieces = split(read, way, tokenizer)
    strings = words_of(read, pieces).to_pylist()
    found, at = [], 0
    for begin, count in zip(read.offsets[:-1].tolist(), pieces.counts.tolist(), strict=True):
        these = range(at, at + count)
        found.append([(int(pieces.starts[i]) - begin, int(pieces.ends[i]) - begin, strings[i]) for i in these])
        at += count
    return found


def split_words(text: str, way: str = PUNCTUATION, tokenizer: Tokenizer | None = None) -> list[str]:
    return [word for _, _, word in words([text], way, tokenizer)[0]]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Anna, wohnt  in Ulm.", ["Anna", ",", "wohnt", "in", "Ulm", "."]),
        ("l'Italie, US-led: 3.5 %", ["l", "'", "Italie", ",", "US", "-", "led", ":", "3", ".", "5", "%"]),
        ("a_b v2", ["a_b", "v2"]),
        ("one\r\ntwo\tthree\u00a0four\u2028five\x00six", ["one", "two", "three", "four", "five", "six"]),
        ("\ufeffAnna\u200bUlm", ["Anna", "Ulm"]),
        ("👩\u200d👩\u200d👧 hi👍🏽ok ❤\ufe0f!", ["👩\u200d👩\u200d👧", "hi", "👍🏽", "ok", "❤\ufe0f", "!"]),
        ("cafe\u0301. café", ["cafe\u0301", ".", "café"]),
        ("\u0301ab", ["\u0301ab"]),
        ("東京タワーabc", ["東", "京", "タ", "ワ", "ー", "abc"]),
        ("か\u3099き", ["か\u3099", "き"]),
        ("محمد\u200f ذهب، إلى", ["محمد", "ذهب", "،", "إلى"]),
        ("मुंबई में।", ["मुंबई", "में", "।"]),
        ("", []),
        (" \n", []),
    ],
)
def test_white_space_and_punctuation(text: str, wanted: list[str]) -> None:
    assert split_words(text) == wanted


texts = st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("ab .,\u0301\u200d👍🏽東\r\n")), max_size=6)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_white_space_alone_is_that_of_python(given_: list[str]) -> None:
    assert [[word for _, _, word in found] for found in words(list(given_), WHITESPACE)] == [t.split() for t in given_]


@given(texts)
@settings(max_examples=200, deadline=None)
def test_words_are_where_they_say(given_: list[str]) -> None:
    """In order, without white space at their edges, and none of the visible characters is in no word."""
    for text, found in zip(given_, words(list(given_), PUNCTUATION), strict=True):
        assert all(text[start:end] == word and word for start, end, word in found)
        assert all(a[1] <= b[0] for a, b in pairwise(found))
        covered = "".join(word for _, _, word in found)
        assert [c for c in covered if c.isalnum()] == [c for c in text if c.isalnum()]
        alone = [words([text[start:end]], PUNCTUATION)[0] for start, end, _ in found]
        assert all(len(one) == 1 for one in alone)


def test_nulls_and_texts_of_a_slice() -> None:
    column = pa.array(["x y", None, "Ulm 👍", "", "z"]).slice(1, 4)
    read = code_points(column)
    assert words_of(read, split(read, WHITESPACE)).to_pylist() == ["Ulm", "👍", "z"]
    assert split(read, WHITESPACE).counts.tolist() == [0, 2, 0, 1]


def tokenizer(normalizer: object, pre_tokenizer: object) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    return made


def test_the_model_s_own_words() -> None:
    bert = tokenizer(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer())
    assert split_words("Anna's Cafe\u0301 東京", MODEL, bert) == ["Anna", "'", "s", "Cafe\u0301", "東", "京"]
    bytes_ = Tokenizer(models.BPE(unk_token=None))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_.model = models.BPE({char: i for i, char in enumerate(alphabet)}, [])
    assert split_words("Anna's 👍  in Ulm ", MODEL, bytes_) == ["Anna", "'s", "👍", "in", "Ulm"]
    assert words([" \t ", "", "Ulm"], MODEL, bytes_) == [[], [], [(0, 3, "Ulm")]]


@given(texts)
@settings(max_examples=100, deadline=None)
def test_the_model_s_words_are_where_they_say(given_: list[str]) -> None:
    for way in (
        tokenizer(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
        tokenizer(normalizers.NFKC(), pre_tokenizers.Metaspace()),
    ):
        for text, found in zip(given_, words(list(given_), MODEL, way), strict=True):
            assert all(text[start:end] == word and word.strip() == word for start, end, word in found)
            assert all(a[1] <= b[0] for a, b in pairwise(found))
