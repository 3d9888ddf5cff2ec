"""Sentences of the report page, word by word: what is highlighted, and what a word says when asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.words.words import NO_STRING

WORDS_SHOWN = 80
_LEVELS = (0.7, 2.0, 4.0, 6.0)  # losses from which a word is shaded more strongly; 0.7 is a probability of a half
_DOUBTS = (0.1, 0.25, 0.4, 0.55)  # the same of what a prediction's probability leaves to other tags
_LONGEST = 120  # characters of a word

Key = tuple[str, str, int]
"""output, source and source_row."""

_KEY = ("output", "source", "source_row")


def key_of(row: dict[str, Any]) -> Key:
    """Which row of scores/ a row of a mining table is about."""
    return row["output"], row["source"], row["source_row"]


class Shown(NamedTuple):
    """A word of a sentence. `note` stands below it, `tip` is what it says on hover and focus; `level` is 0 to 4."""

    text: str
    note: str
    tip: str
    level: int
    wrong: bool
    marked: bool


class Sentence(NamedTuple):
    """A sentence, or the part of a long one that matters; `before` and `after` count the words that are left out."""

    words: list[Shown]
    before: int
    after: int


class Worst(NamedTuple):
    """A sentence with a high total loss, or with many expected errors."""

    example_id: str
    figures: str
    sentence: Sentence


def shorten(text: str, longest: int = _LONGEST) -> str:
    """At most so many characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def rows_by_key(sequences: pa.Table, keys: Iterable[Key], by_tokens: bool) -> dict[Key, dict[str, Any]]:
    """The rows of the `sequences` table of these keys, as far as it has them.

    by_tokens: words are several labelled tokens each, so that tokens are shown instead.
    """
    wanted = set(keys)
    have = zip(*(sequences.column(name).to_pylist() for name in _KEY), strict=True)
    at = {key: i for i, key in enumerate(have) if key in wanted}
    names = ["tokens" if by_tokens else "words", "labels", "predicted", "losses"]
    rows = (
        sequences.select(names)
        .rename_columns(["words", *names[1:]])
        .take(pa.array(list(at.values()), pa.int64()))
        .to_pylist()
    )
    return dict(zip(at, rows, strict=True))


def sentence(
    row: dict[str, Any], start: int | None = None, text: str = "", suggested: Sequence[str] | None = None
) -> Sentence:
    """A row of the `sequences` table; marked are the words from word index `start` on that read `text`.

    suggested: the tags that are suggested for these words.
    """
    words = [word if word is not None else NO_STRING for word in row["words"]]
    losses = np.asarray(row["losses"], dtype=np.float64)
    length = len(suggested) if suggested else 0
    at = _find(words, text, start, length) if start is not None and length else None
    begin = _window(losses, at, length)
    shown = []
    for i in range(begin, min(begin + WORDS_SHOWN, len(words))):
        marked = at is not None and at <= i < at + length
        tag = suggested[i - at] if marked and suggested and at is not None else row["predicted"][i]
        shown.append(_shown(words[i], row["labels"][i], row["predicted"][i], float(losses[i]), marked, tag))
    return Sentence(shown, begin, max(0, len(words) - begin - WORDS_SHOWN))


def uncertain_sentence(row: dict[str, Any]) -> Sentence:
    """A row of the `uncertain_sequences` table: words without a label, shaded by how unsure the model is of its tag."""
    probs = np.asarray(row["probs"], dtype=np.float64)
    begin = _window(1 - probs, None, 0)
    shown = []
    for i in range(begin, min(begin + WORDS_SHOWN, len(probs))):
        tag, prob = row["predicted"][i], float(probs[i])
        level = int(np.searchsorted(_DOUBTS, 1 - prob, side="right"))
        note = tag if tag != "O" or level else ""
        shown.append(
            Shown(shorten(row["words"][i]), note, f"predicted {tag}, probability {prob:.2f}", level, False, False)
        )
    return Sentence(shown, begin, max(0, len(probs) - begin - WORDS_SHOWN))


def _shown(word: str, label: str, predicted: str, loss: float, marked: bool, other: str) -> Shown:
    level = int(np.searchsorted(_LEVELS, loss, side="right"))
    wrong = label != predicted
    note = f"{label} → {other}" if label != other else (label if label != "O" else "")
    tip = f"label {label}, predicted {predicted}, loss {loss:.2f}"
    if marked and other != predicted:
        tip += f", suggested {other}"
    return Shown(shorten(word), note, tip, level, wrong, marked)


def _find(words: Sequence[str], text: str, start: int, length: int) -> int | None:
    """Where `length` words read `text`: at `start` if all words before it are labelled, else the first place."""
    for at in (start, *range(len(words) - length + 1)):
        if " ".join(words[at : at + length]) == text:
            return at
    return None


def _window(losses: np.ndarray, at: int | None, length: int) -> int:
    """Where to begin, so that the marked words are shown, or those with the most loss."""
    if len(losses) <= WORDS_SHOWN:
        return 0
    if at is not None:
        return max(0, min(at + length // 2 - WORDS_SHOWN // 2, len(losses) - WORDS_SHOWN))
    sums = np.cumsum(np.append(0.0, losses))
    return int(np.argmax(sums[WORDS_SHOWN:] - sums[:-WORDS_SHOWN]))
