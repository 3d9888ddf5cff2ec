"""From text to words: where each begins and ends, in code points, for many texts at once."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from tokloss_ray.ragged import offsets_of, positions

PUNCTUATION, WHITESPACE, MODEL = "punctuation", "whitespace", "model"
WAYS = (PUNCTUATION, WHITESPACE, MODEL)
"""How text is split: at white space and around punctuation, at white space alone, as the model's tokenizer does."""

# What a character does to the word before it.
_SPACE, _LETTER, _SINGLE, _JOINS, _UNKNOWN = range(5)
_NO_SPACES_BETWEEN_WORDS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x323AF),
)  # fmt: skip
"""Thai and Lao, Burmese, Khmer, Chinese and Japanese: each letter is a word, as in most corpora of these languages."""
_INVISIBLE_SPACES = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
"""Zero width space, marks of direction, byte order mark: annotators do not see them, so no word has them."""
_ZWJ = 0x200D
_SKIN_TONES = (0x1F3FB, 0x1F3FF)


class Texts(NamedTuple):
    """Texts one after another: their code points, uint32 [N], and where each begins, int64 [n + 1]."""

    codes: np.ndarray
    offsets: np.ndarray


class Pieces(NamedTuple):
    """Words: where each begins and ends in `Texts.codes`, int64 [W], and how many each text has, int64 [n]."""

    starts: np.ndarray
    ends: np.ndarray
    counts: np.ndarray


def code_points(texts: pa.Array) -> Texts:
    """The code points of strings; none of a null."""
    joined = "".join(texts.drop_null().to_pylist())
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return Texts(np.frombuffer(joined.encode("utf-32-le"), np.uint32), offsets_of(lengths))


def split(texts: Texts, way: str, tokenizer: Tokenizer | None = None) -> Pieces:
    """The words of texts.

    Args:
        texts: any.
        way: one of `WAYS`.
        tokenizer: the model's, for `MODEL`.
    """
    if way == MODEL:
        assert tokenizer is not None
        return _by_tokenizer(texts, tokenizer)
    space = _looked_up(texts.codes, way == WHITESPACE)
    first = np.zeros(len(texts.codes) + 1, dtype=bool)
    first[texts.offsets] = True
    first = first[:-1]
    if way == WHITESPACE:
        begins = ~space & (first | np.append(True, space)[:-1])
        return _pieces(texts, ~space, begins)
    kinds = space
    inside = kinds != _SPACE
    after_space = first | np.append(True, ~inside)[:-1]
    kinds = np.where((kinds == _JOINS) & after_space, _LETTER, kinds)  # it has nothing to join
    at = np.arange(len(kinds))
    base = kinds[np.maximum.accumulate(np.where(kinds == _JOINS, 0, at))] if len(kinds) else kinds
    before = np.append(_SPACE, base)[:-1]
    joined = np.append(0, texts.codes)[:-1] == _ZWJ
    begins = after_space | ((kinds == _SINGLE) & ~joined) | ((kinds == _LETTER) & (before == _SINGLE) & ~joined)
    return _pieces(texts, inside, inside & begins)


def _pieces(texts: Texts, inside: np.ndarray, begins: np.ndarray) -> Pieces:
    """Runs of characters `inside`, cut where a word begins."""
    first = np.zeros(len(inside) + 1, dtype=bool)
    first[texts.offsets] = True
    following = np.append(begins, True)[1:] | ~np.append(inside, False)[1:] | first[1:]
    starts, ends = np.flatnonzero(begins), np.flatnonzero(inside & following) + 1
    return Pieces(starts, ends, np.diff(np.searchsorted(starts, texts.offsets)))


def words_of(texts: Texts, pieces: Pieces) -> pa.Array:
    """The words as strings."""
    lengths = pieces.ends - pieces.starts
    codes = texts.codes[positions(pieces.starts, lengths)]
    data = codes.tobytes().decode("utf-32-le").encode()
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    at = offsets_of(sizes)[offsets_of(lengths)]
    large = pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(at.astype(np.int64)), pa.py_buffer(data))
    return large.cast(pa.string())


def _looked_up(codes: np.ndarray, white: bool) -> np.ndarray:
    """What each character does, or whether it is white space."""
    table = _table(white)
    found = table[codes]
    if (found == _UNKNOWN).any():
        new = np.unique(codes[found == _UNKNOWN])
        table[new] = [_is_white(int(code)) if white else _kind(int(code)) for code in new]
        found = table[codes]
    return found == 1 if white else found


@lru_cache(maxsize=2)
def _table(white: bool) -> np.ndarray:
    """Of each code point what is known so far: there are a million, and a corpus has few of them."""
    return np.full(0x110000, _UNKNOWN, dtype=np.uint8)


def _is_white(code: int) -> int:
    return int(chr(code).isspace())


def _kind(code: int) -> int:
    char, category = chr(code), unicodedata.category(chr(code))
    if char.isspace() or category == "Cc" or char in _INVISIBLE_SPACES:
        return _SPACE
    if category[0] == "M" or category == "Cf" or _SKIN_TONES[0] <= code <= _SKIN_TONES[1]:
        return _JOINS
    if category[0] == "L":
        return _SINGLE if any(low <= code <= high for low, high in _NO_SPACES_BETWEEN_WORDS) else _LETTER
    return _LETTER if category[0] == "N" or category in ("Pc", "Co") else _SINGLE


def _by_tokenizer(texts: Texts, tokenizer: Tokenizer) -> Pieces:
    """The words of the tokenizer's own pre-tokenizer, without white space around them."""
    strings = texts.codes.tobytes().decode("utf-32-le")
    bounds = texts.offsets.tolist()
    given = [strings[a:b] for a, b in pairwise(bounds)]
    encodings = tokenizer.encode_batch(given, add_special_tokens=False)
    lengths = np.fromiter((len(e) for e in encodings), dtype=np.int64, count=len(encodings))
    total = int(lengths.sum())
    word = pa.array(chain.from_iterable(e.word_ids for e in encodings), pa.int32(), size=total).fill_null(-1).to_numpy()
    flat = np.fromiter(chain.from_iterable(chain.from_iterable(e.offsets for e in encodings)), np.int64, 2 * total)
    row = np.repeat(np.arange(len(given)), lengths)
    starts, ends = (flat.reshape(-1, 2) + texts.offsets[row][:, None]).T
    new = np.append(True, (word[1:] != word[:-1]) | (row[1:] != row[:-1]))[:total]
    last = np.append(new, True)[1:]
    starts, ends, row, word = starts[new], ends[last], row[new], word[new]
    starts, ends = _trimmed(texts, starts, ends)
    # A tokenizer that rewrites text may give words that are empty or overlap the one before.
    good = (ends > starts) & (word >= 0) & (starts >= np.maximum.accumulate(np.append(0, ends)[:-1]))
    return Pieces(starts[good], ends[good], np.bincount(row[good], minlength=len(given)))


def _trimmed(texts: Texts, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words without the white space around them, but with the marks that follow them."""
    size = len(texts.codes)
    at = np.arange(size)
    space = _looked_up(texts.codes, True)
    next_visible = np.append(np.minimum.accumulate(np.where(space, size, at)[::-1])[::-1], size)
    last_visible = np.append(-1, np.maximum.accumulate(np.where(space, -1, at)))
    joins = _looked_up(texts.codes, False) == _JOINS
    after_marks = np.append(np.minimum.accumulate(np.where(joins, size, at)[::-1])[::-1], size)
    starts, ends = np.minimum(next_visible[starts], ends), last_visible[ends] + 1
    limit = np.append(starts, size)[1:]
    of_text = np.append(texts.offsets, size)[np.searchsorted(texts.offsets, starts, side="right")]
    return starts, np.maximum(ends, np.minimum(after_marks[ends], np.minimum(limit, of_text)))
