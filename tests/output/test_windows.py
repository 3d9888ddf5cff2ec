"""Windows that are joined again: each word stands once, where it was scored, and special tokens stand at the ends."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokloss_ray.output.windows import NO_WORD, standing_tokens, unlabelled_words
from tokloss_ray.scoring.stages.windows import window_owners, window_starts


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Some rows as encode makes windows of them: word ids, labels, lengths and first windows; words of each row."""
    capacity = draw(st.integers(2, 9))
    overlap = draw(st.integers(0, capacity - 1))
    ids: list[int] = []
    labelled: list[bool] = []
    lengths, first, counts = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
        has_label = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
        words = np.repeat(np.arange(len(sizes)), sizes)
        begins = [0] if len(words) <= capacity else window_starts(len(words), capacity, overlap)
        owner = window_owners(words, begins, capacity, len(words))
        starts_word = np.append(True, words[1:] != words[:-1])
        for k, a in enumerate(begins):
            b = min(a + capacity, len(words))
            ids += [NO_WORD, *words[a:b].tolist(), NO_WORD]
            scored = [bool(owner[i] == k and starts_word[i] and has_label[words[i]]) for i in range(a, b)]
            labelled += [False, *scored, False]
            lengths.append(b - a + 2)
            first.append(k == 0)
        counts.append(len(sizes))
    return np.array(ids), np.array(labelled), np.array(lengths), np.array(first), counts


@settings(max_examples=300, deadline=None)
@given(rows())
def test_each_word_stands_once(
    given_rows: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[int]],
) -> None:
    ids, labelled, lengths, first, counts = given_rows
    stands = standing_tokens(ids, labelled, lengths, first)
    assert stands[labelled].all(), "a label is left out"
    row = np.repeat(np.cumsum(first) - 1, lengths)
    window = np.repeat(np.arange(len(lengths)), lengths)
    for number, count in enumerate(counts):
        here = np.flatnonzero(stands & (row == number))
        kept = ids[here]
        assert kept[0] == kept[-1] == NO_WORD
        inner = kept[1:-1]
        assert sorted(set(inner.tolist())) == list(range(count)), "a word is lost, or a special token is left inside"
        assert (np.diff(inner) >= 0).all(), "words stand in another order"
        for word in range(count):
            assert len(set(window[here[kept == word]].tolist())) == 1, "a word stands in two windows"
    without = unlabelled_words(ids, labelled, lengths, first)
    pairs = [(int(row[at]), int(ids[at])) for at in without]
    known = {(int(r), int(w)) for r, w in zip(row[labelled], ids[labelled], strict=True)}
    everything = {(number, word) for number, count in enumerate(counts) for word in range(count)}
    assert sorted(pairs) == sorted(everything - known)


def test_a_word_stands_where_it_has_most_context() -> None:
    """Windows of six tokens that share four: word 3 is in the middle of the second one."""
    ids = np.array([0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7])
    stands = standing_tokens(ids, np.zeros(12, bool), np.array([6, 6]), np.array([True, False]))
    assert ids[:6][stands[:6]].tolist() == [0, 1, 2, 3]
    assert ids[6:][stands[6:]].tolist() == [4, 5, 6, 7]


def test_words_stay_in_order_where_windows_share_nearly_all() -> None:
    """By the size of its context alone, word 4 would stand in an earlier window than word 3."""
    windows = [[0, 1, 2, 3, 4], [1, 2, 3, 4, 4], [2, 3, 4, 4, 4], [3, 4, 4, 4, 4], [4, 4, 4, 4, 5]]
    ids = np.concatenate([[NO_WORD, *window, NO_WORD] for window in windows])
    first = np.array([True, False, False, False, False])
    kept = ids[standing_tokens(ids, np.zeros(35, bool), np.full(5, 7), first)][1:-1]
    assert kept.tolist() == sorted(kept.tolist())
    assert set(kept.tolist()) == set(range(6))
