"""Rows of words to token ids, each distinct word tokenised once.

The `tokenizers` library normalises, splits and tokenises each word of pre-split text by itself: the tokens of a row are
those of its words, one after another, between the special tokens. Words repeat, so that most of the library's work can
be looked up. Whether a tokenizer really works like this is asked of it first, with a few made-up rows; if it does not,
rows are tokenised as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from tokloss_ray.ragged import list_lengths, offsets_of, positions, sum_per_row

NO_WORD = -1
MOST_WORDS, MOST_CHARACTERS = 1 << 17, 1 << 22
"""What is kept of words and their tokens, about 60 MB. When it is full it starts anew: other files may be in another
language."""
_WORDS_PER_CALL = 256
"""Each sequence that is given to the library costs as much as two words."""
_HEAD, _TAIL = 0, 1
"""Numbers of two words that are none: the special tokens before and after a row."""
_PROBES: tuple[list[str], ...] = (
    [], ["a"], ["a", "b"], ["b", "a"], ["a", "a", "ab"], ["", "a"], ["a", ""], [""], ["", " ", "a"], ["a b", "b a"],
    [" a", "b "], ["A", "1", ".", "'s", "-", "1.5"], ["a\n", "\ta"], ["é", "e\u0301", "ß", "ﬁ", "\u200b", "\u00ad"],
    ["東京", "ไทย", "שלום", "😀"], ["▁", "a▁b", "##", "##a", "Ġ", "Ġa"], ["aaaaaaaaaa" * 30, "b"],
)  # fmt: skip


class Tokens(NamedTuple):
    """The tokens of some rows.

    Attributes:
        ids: int32 [tokens].
        words: int32 [tokens], the word of the row that each token is of; NO_WORD for special tokens.
        lengths: int64 [rows], tokens of each row.
    """

    ids: np.ndarray
    words: np.ndarray
    lengths: np.ndarray


class RowTokenizer:
    """A tokenizer without truncation and padding, with the tokens of the words that it has seen."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self.head, self.tail = _special_tokens(self._tokenizer)
        self._forget()
        self.word_by_word = self._is_exact()

    def __call__(self, words: pa.ListArray) -> Tokens:
        """Tokenise rows of words, list<string> without nulls.

        Raises:
            Exception: whatever the tokenizer raises.
        """
        return self._by_words(words) if self.word_by_word else self._by_rows(words)

    def _by_rows(self, words: pa.ListArray) -> Tokens:
        encodings = self._tokenizer.encode_batch(words.to_pylist(), is_pretokenized=True)
        lengths = np.fromiter((len(e) for e in encodings), dtype=np.int64, count=len(encodings))
        total = int(lengths.sum())
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=total)
        of_words = pa.array(chain.from_iterable(e.word_ids for e in encodings), pa.int32(), size=total)
        return Tokens(ids, of_words.fill_null(NO_WORD).to_numpy(), lengths)

    def _by_words(self, words: pa.ListArray) -> Tokens:
        count = list_lengths(words)
        starts = offsets_of(count + 2)
        is_word = np.ones(starts[-1], dtype=bool)
        is_word[starts[:-1]] = is_word[starts[1:] - 1] = False
        number = np.empty(starts[-1], dtype=np.int64)
        number[starts[:-1]], number[starts[1:] - 1] = _HEAD, _TAIL
        number[is_word] = self._numbers(words.flatten())
        index = np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1].astype(np.int32) + 1, count + 2)
        index[~is_word] = NO_WORD
        tokens = self._counts[number]
        ids = self._ids[positions(self._starts[number], tokens)]
        return Tokens(ids, np.repeat(index, tokens), sum_per_row(tokens, starts))

    def _numbers(self, words: pa.StringArray) -> np.ndarray:
        """The number of each word, int64 [words]."""
        encoded = words.dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        numbers = np.fromiter(map(self._known.get, texts, repeat(-1)), dtype=np.int64, count=len(texts))
        if (new := np.flatnonzero(numbers < 0)).size:
            if len(self._known) + len(new) > MOST_WORDS or self._characters > MOST_CHARACTERS:
                self._forget()
                new = np.arange(len(texts))
            numbers[new] = self._learn([texts[i] for i in new.tolist()])
        return numbers[encoded.indices.to_numpy()]

    def _forget(self) -> None:
        self._known: dict[str, int] = {}
        self._characters = 0
        self._ids = np.array([*self.head, *self.tail], dtype=np.int32)
        self._counts = np.array([len(self.head), len(self.tail)])
        self._starts = np.array([0, len(self.head)])

    def _learn(self, texts: list[str]) -> np.ndarray:
        """Tokenise some words; returns their numbers."""
        parts = [texts[i : i + _WORDS_PER_CALL] for i in range(0, len(texts), _WORDS_PER_CALL)]
        encodings = self._tokenizer.encode_batch(parts, is_pretokenized=True, add_special_tokens=False)
        counts = [
            np.bincount(np.array(encoding.word_ids, dtype=np.int64), minlength=len(part))
            for encoding, part in zip(encodings, parts, strict=True)
        ]
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        self._ids = np.concatenate([self._ids, np.fromiter(ids, dtype=np.int32)])
        self._counts = np.concatenate([self._counts, *counts])
        self._starts = offsets_of(self._counts)[:-1]
        first = len(self._known) + 2
        self._known.update(zip(texts, range(first, first + len(texts)), strict=True))
        self._characters += sum(map(len, texts))
        return np.arange(first, first + len(texts))

    def _is_exact(self) -> bool:
        """Whether made-up rows have the tokens that their words have."""
        if self._tokenizer.truncation or self._tokenizer.padding:
            return False
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()][:8]
        with_added = [["a", token, "b"] for token in added] + [[f"a{token}b", f" {token} "] for token in added]
        try:
            for row in (*_PROBES, *with_added):
                words = pa.array([row, ["b"], row], pa.list_(pa.string()))
                if not all(map(np.array_equal, self._by_words(words), self._by_rows(words))):
                    return False
        except Exception:  # of the library, which has no type of its own for them: the rows to come may do better
            return False
        finally:
            self._forget()
        return True


def _special_tokens(tokenizer: Tokenizer) -> tuple[Sequence[int], Sequence[int]]:
    """Ids of the special tokens before and after a row; none of a tokenizer that makes nothing of an "a"."""
    try:
        row = tokenizer.encode(["a"], is_pretokenized=True)
    except Exception:  # as above
        return [], []
    at = [i for i, word in enumerate(row.word_ids) if word is not None]
    return (row.ids[: at[0]], row.ids[at[-1] + 1 :]) if at else ([], [])
