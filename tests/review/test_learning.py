"""Ranking again by decisions: an order that starts as the table's, gains from a habit, and is quick."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from tokloss_ray.review import learning, session
from tokloss_ray.review.issues import Filter, Index
from tokloss_ray.review.learning import Example, fit, shapes, values
from tokloss_ray.review.session import Review

TAGS = ["O", "B-PER", "B-ORG", "B-LOC"]


def issues(count: int, words: int, seed: int = 1) -> Index:
    """An index as that of a table, of random words with random tags."""
    chance = np.random.default_rng(seed)
    codes = {"word": chance.zipf(1.4, count) % words, "label": chance.integers(0, 4, count)}
    codes["suggested_label"] = (codes["label"] + chance.integers(1, 4, count)) % 4
    tags = pa.array([*TAGS, None], pa.string())
    letters = ["".join(chr(97 + i // 26**k % 26) for k in range(4)) for i in range(words)]
    forms = [[w, w.title(), w.upper(), f"{w}4", f"{w}!"][i % 5] for i, w in enumerate(letters)]
    names = pa.array([*forms, None], pa.string())
    strings = {"word": names, "label": tags, "suggested_label": tags}
    return Index(codes, strings, np.sort(chance.normal(1, 2.5, count))[::-1].copy(), None)


def example(index: Index, row: int, changed: bool) -> Example:
    word, label, suggested = (
        index.strings[n][int(index.codes[n][row])].as_py() for n in ("word", "label", "suggested_label")
    )
    return word, label, suggested, float(index.score[row]), changed


def test_a_few_decisions_move_little() -> None:
    index = issues(3000, 50)
    order = np.argsort(-values(fit([example(index, 0, True)]), index), kind="stable")
    assert np.corrcoef(order, np.arange(3000))[0, 1] > 0.95
    for truth in (True, False):
        given = [example(index, row, truth) for row in range(50)]  # all alike: nothing runs away
        learnt = fit(given)
        assert 0.05 <= learnt.score < 1.5
        assert np.isfinite(values(learnt, index)).all()


def test_weights_are_those_of_scikit_learn() -> None:
    chance = np.random.default_rng(2)
    design = np.column_stack([np.ones(300), chance.normal(size=(300, 5))])
    truth = (design @ chance.normal(size=6) + chance.logistic(size=300) > 0).astype(float)
    ours = learning._most_probable(design, truth, np.zeros(6), np.full(6, 2.0))
    theirs = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=1000).fit(design, truth).coef_[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_is_always_kept_goes_down_and_errors_are_found_sooner() -> None:
    """A reviewer for whom one pair of tags is a rule of the annotation and one word is always wrong."""
    index = issues(20_000, 400)
    pair = (index.codes["label"] == 1) & (index.codes["suggested_label"] == 0)
    word = index.codes["word"] == 1
    chance = np.random.default_rng(3)
    wrong = (chance.random(20_000) < 1 / (1 + np.exp(4.5 - 0.6 * index.score))) & ~pair | word & (
        chance.random(20_000) < 0.9
    )

    def found(learn: bool) -> int:
        order, done = np.arange(20_000), np.zeros(20_000, bool)
        for _ in range(8):
            done[order[~done[order]][:50]] = True
            if learn:
                given = [example(index, int(row), bool(wrong[row])) for row in np.flatnonzero(done)]
                order = np.argsort(-values(fit(given), index), kind="stable")
        return int(wrong[done].sum())

    assert found(True) > 1.15 * found(False)


def test_shapes() -> None:
    words = ["haus", "Haus", "HAUS", "Haus2", "2", "!", "", None, "von-der", "McDonald"]
    named = [learning.SHAPES[i] for i in shapes(pa.array(words, pa.string()))]
    assert named == ["lower", "title", "upper", "digits", "digits", "other", "other", "other", "lower", "other"]


def test_a_million_issues_take_less_than_a_second() -> None:
    index = issues(1_000_000, 200_000)
    given = [example(index, row, row % 3 == 0) for row in range(1000)]
    start = time.process_time()
    np.argsort(-values(fit(given), index), kind="stable")
    assert time.process_time() - start < 2.0  # of two cores


def test_the_rest_is_ranked_again(review: Callable[..., Review], monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    monkeypatch.setattr(session, "EVERY", 10)
    monkeypatch.setattr(session, "in_background", lambda work: work())
    one = review()
    items = one.next(Filter(), 0, 200)["items"]
    pairs = [(i["label"], i["suggested"]) for i in items]
    disliked = max(set(pairs), key=pairs.count)
    for item in [i for i, pair in zip(items, pairs, strict=True) if pair == disliked][:10]:
        assert one.progress()["ranking"] == 0
        one.decide("keep", [tuple(item["key"])], None, 1.0)
    assert one.progress()["ranking"] == 1
    assert one.learnt()["pairs"][0] == {"label": disliked[0], "suggested": disliked[1], "decided": 10, "changed": 0}
    after = one.next(Filter(), 0, 100)["items"]
    before = [(i["label"], i["suggested"]) for i in items if one._is_open(one._known(tuple(i["key"])), set())][:100]
    assert [(i["label"], i["suggested"]) for i in after].count(disliked) < before.count(disliked)
    filtered = one.next(Filter(label=disliked[0], suggested=disliked[1]), 0, 5)["items"]
    assert [(i["label"], i["suggested"]) for i in filtered] == [disliked] * 5
    one.close()
    again = review()
    again.start()
    assert [i["key"] for i in again.next(Filter(), 0, 20)["items"]] == [i["key"] for i in after[:20]]
    again.close()
    plain = Review(str(output), "anna", learn=False)
    plain.start()
    still = [i["key"] for i in items if one._is_open(one._known(tuple(i["key"])), set())]
    assert [i["key"] for i in plain.next(Filter(), 0, 20)["items"]] == still[:20]
    plain.close()
