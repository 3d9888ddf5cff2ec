"""The entities of labelled words: those of the labels, those of the predictions, and which are in both."""

from __future__ import annotations

import numpy as np

from tokloss_ray.mining.words.words import Words
from tokloss_ray.tags.schemes import DEFAULT, Spans, TagSet, breaks_of, read_spans


def both_spans(
    words: Words, tag_set: TagSet | None, mode: str = DEFAULT, bridge_gaps: bool = False
) -> tuple[Spans, Spans]:
    """The spans of the labels and of the predictions; none where tags mark no spans.

    tag_set: of the words' tags, by one of the schemes. mode, bridge_gaps: see `tags.schemes`.
    """
    if tag_set is None:
        none = Spans(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
        return none, none
    asked = (tag_set.scheme, mode, bridge_gaps)
    if asked not in words.spans:
        breaks = breaks_of(words.offsets, words.word_index, bridge_gaps)
        label, predicted = (read_spans(codes, breaks, tag_set, mode) for codes in (words.label, words.predicted))
        words.spans[asked] = label, predicted
    return words.spans[asked]


def in_both(label: Spans, predicted: Spans, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which label spans, and which predicted spans, the other side has too: bool, one entry per span.

    length: number of words.
    """
    at = np.full(length, -1, dtype=np.int64)  # the label span that begins at a word
    at[label.start] = np.arange(len(label.start))
    mate = at[predicted.start]
    stop, kind = (np.append(values, -1)[mate] for values in (label.stop, label.type))  # -1 where there is none
    same = (mate >= 0) & (stop == predicted.stop) & (kind == predicted.type)
    found = np.zeros(len(label.start), dtype=bool)
    found[mate[same]] = True
    return found, same
