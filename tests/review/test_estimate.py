"""The estimate of what is wrong: drawn words, their probabilities, and intervals that hold what they promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from tests.support import mining_outputs
from tokloss_ray.cli.app import app
from tokloss_ray.errors import Refused
from tokloss_ray.output.decisions import read_decisions, standing
from tokloss_ray.review import audit
from tokloss_ray.review.audit import STRATA, Population, Reading, numbers_of_keys, seed_of, strata
from tokloss_ray.review.estimate import estimate, estimated
from tokloss_ray.review.intervals import expanded, gamma_below, groups
from tokloss_ray.review.issues import Filter
from tokloss_ray.review.places import labelled_words
from tokloss_ray.review.session import Review

Begin = Callable[..., Review]


def population(output: Path, seed: int = 1) -> Population:
    from tokloss_ray.output.opened import open_outputs

    scores = open_outputs(str(output))
    made = Population(scores.tags, np.uint64(seed))
    for words, _ in labelled_words(scores):
        made.add(words)
    made.finish()
    return made


def test_strata_and_draws_are_those_of_the_corpus(mined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokens = population(mined), mining_outputs.explode(mined)
    stratum = strata(tokens["loss"].to_numpy(np.float32))
    expected = pd.crosstab(stratum, tokens["labels"])
    for i in range(STRATA):
        assert {tag: n for tag, n in zip(made.tags, made.counts[i], strict=True) if n} == {
            tag: n for tag, n in (expected.loc[i] if i in expected.index else {}).items() if n
        }
        losses = [draw.issue.loss for draw in made.draws[i]]
        assert (strata(np.array(losses, np.float32)) == i).all()
        keys = {(d.issue.source, d.issue.source_row, d.issue.word_index) for d in made.draws[i]}
        assert len(keys) == len(losses) == min(audit.MOST_DRAWS, made.counts[i].sum())
        assert [d.place for d in made.draws[i]] == list(range(1, len(losses) + 1))
    monkeypatch.setattr(audit, "MOST_DRAWS", 50)
    first = population(mined)
    for i in range(STRATA):
        assert first.draws[i] == made.draws[i][:50], "more words in memory are no other sample"
    assert population(mined, 2).draws != first.draws


@pytest.mark.slow
def test_each_word_is_as_likely_as_any_other(mined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 20 of a stratum in 60 random orders: a hash that prefers some rows or words would show."""
    monkeypatch.setattr(audit, "MOST_DRAWS", 20)
    rows, words = [], []
    for seed in range(60):
        for draw in population(mined, int(seed_of(str(seed)))).draws[STRATA - 1]:
            rows.append(draw.issue.source_row)
            words.append(draw.issue.word_index)
    tokens = mining_outputs.explode(mined)
    tokens = tokens[strata(tokens["loss"].to_numpy(np.float32)) == STRATA - 1]
    for drawn, every in ((rows, tokens["source_row"]), (words, tokens["word_ids"])):
        assert stats.ks_2samp(drawn, every.astype(int)).pvalue > 1e-3


def test_numbers_of_words_are_the_same_one_by_one() -> None:
    keys = [("a.parquet", 3, 0), ("a.parquet", 3, 1), ("b.parquet", 3, 0), ("a.parquet", 2**40, 7)]
    together = numbers_of_keys(keys)
    assert len(set(together.tolist())) == len(keys)
    assert together.tolist() == [int(numbers_of_keys([key])[0]) for key in keys]
    assert len(numbers_of_keys([])) == 0


def test_the_gamma_function_is_that_of_scipy() -> None:
    for shape in (0.01, 0.5, 1, 3.3, 50, 3000):
        for x in (1e-6, 0.01, 0.5, 1, 2, 10, 60, 2900, 3100):
            assert gamma_below(x, shape) == pytest.approx(stats.gamma.cdf(x, shape), abs=1e-9)


def test_intervals() -> None:
    one = np.array([True])
    mean, low, high = expanded(np.array([251.0]), np.array([100]), np.array([0]), one)
    assert (mean, low) == (0, 0)
    assert high == pytest.approx(250 * 2.9957, rel=2e-3), "the rule of three"
    mean, low, high = expanded(np.array([1.0]), np.array([10]), np.array([4]), one)
    assert (mean, low, high) == (0, 0, 0), "all words were drawn"
    mean, low, high = expanded(np.array([101.0]), np.array([1000]), np.array([50]), one)
    assert mean == 5000
    assert low == pytest.approx(5000 - 1.96 * 100 * 50**0.5 * 0.97, rel=0.05)
    assert high == pytest.approx(5000 + 1.96 * 100 * 50**0.5 * 0.97, rel=0.05)
    assert groups(np.ones(5), np.array([0, 1, 0, 2, 0])).tolist() == [0, 0, 1, 1, 1]
    assert groups(np.ones(3), np.array([1, 1, 1])).tolist() == [0, 1, 2]


def test_a_reading_knows_what_it_has_passed() -> None:
    reading = Reading()
    reading.begin("all", True)
    for word in range(5):
        reading.meet(("a", 0, word))
    assert reading.before(("a", 0, 2)) == [("a", 0, 0), ("a", 0, 1)]
    assert reading.before(("b", 0, 2)) == []
    reading.begin("all", False)
    assert len(reading.before(("a", 0, 4))) == 4
    reading.begin("others", False)
    assert reading.before(("a", 0, 4)) == []


def reviewed(one: Review, count: int, wrong: Callable[[dict[str, Any]], bool]) -> list[bool]:
    """Go through issues as the page does; returns which were drawn."""
    drawn = []
    for _ in range(count):
        answer = one.next(Filter(), 0, 1)
        item = answer["drawn"] or answer["items"][0]
        drawn.append(answer["drawn"] is not None)
        assert item["drawn"] == drawn[-1]
        one.decide("accept" if wrong(item) else "keep", [tuple(item["key"])], None, 1.0)
    return drawn


def test_every_tenth_issue_is_drawn(review: Begin, output: Path) -> None:
    one = review(audit_share=0.1)
    assert not any(reviewed(one, 12, lambda item: False)), "nothing is drawn before the corpus was read"
    one.start()
    one.places.wait()
    drawn = reviewed(one, 60, lambda item: False)
    assert sum(drawn) == 7
    assert drawn[0]
    left = standing(read_decisions(str(output))["anna"])
    sample = [d for d in left if d.stratum is not None]
    sizes = one.sample.population.counts.sum(axis=1)
    assert [d.population for d in sample] == [sizes[d.stratum] for d in sample]
    for d in sample:
        issue = one.sample.population.draws[d.stratum][d.draw - 1].issue
        assert (issue.source, issue.source_row, issue.word_index) == (d.source, d.source_row, d.word_index)
        assert d.score is None
    # The strata take turns by their sizes.
    counts = Counter(d.stratum for d in sample)
    assert all(abs(counts[i] - 7 * sizes[i] / sizes.sum()) <= 1 for i in range(STRATA))
    # Undoing one brings it back; it is the same word in another process, too.
    while not one.next(Filter(), 0, 1)["drawn"]:
        reviewed(one, 1, lambda item: False)
    item = one.next(Filter(), 0, 1)["drawn"]
    reviewed(one, 1, lambda item: False)
    assert [i["key"] for i in one.undo()["items"]] == [item["key"]]
    one.close()
    again = review(audit_share=0.1)
    again.start()
    again.places.wait()
    assert again.next(Filter(), 0, 1)["drawn"]["key"] == item["key"]


def test_what_the_estimate_counts(review: Begin, output: Path) -> None:
    one = review(audit_share=0.5)
    one.start()
    one.places.wait()
    drawn = reviewed(one, 80, lambda item: item["words"][item["word"]].endswith("n"))
    assert sum(drawn) == 40
    found = estimate(str(output))
    left = standing(read_decisions(str(output))["anna"])
    words = {(d.row, w): d.tags[w - d.start] != d.labels[w - d.start] for d in left for w in range(d.start, d.stop)}
    tokens = mining_outputs.explode(output)
    assert (found.decided, found.all.found) == (len(words), sum(words.values()))
    assert (found.all.labels, sum(one.labels for one in found.tags)) == (len(tokens), len(tokens))
    passed = {batch for d in left for batch in d.passes}
    assert found.drawn == len([d for d in left if d.stratum is not None and d.batch not in passed])
    assert found.all.found <= found.all.low <= found.all.total <= found.all.high <= found.all.labels
    by_tag = {one.tag: one for one in found.tags}
    assert sum(one.total for one in found.tags) == pytest.approx(found.all.total)
    assert by_tag["O"].labels == (tokens["labels"] == "O").sum()
    # As the page says it, from the same decisions of one reviewer.
    so_far = one.progress()["estimate"]
    assert so_far["labels"] == found.all.labels
    live = estimated({"anna": read_decisions(str(output))["anna"]}, one.sample.population)
    assert live == found


def test_drawn_words_that_come_up_by_rank_count_as_reviewed(review: Begin, output: Path) -> None:
    """Whoever goes on by rank long enough passes the drawn words: what is left is the rest of the corpus."""
    one = review(audit_share=0.5)
    one.start()
    one.places.wait()
    reviewed(one, 6, lambda item: False)
    one.sample.share = 0.0
    sample = [d for d in standing(read_decisions(str(output))["anna"]) if d.stratum is not None]
    ranks = pd.read_parquet(output / "mining/label_issues.parquet")
    order = {k: i for i, k in enumerate(zip(ranks["source_row"], ranks["word_index"], strict=True))}
    early = [d for d in sample if min(order[d.source_row, w] for w in range(d.start, d.stop)) < 1500]
    chosen = Filter()
    start = 0
    while start < 1500:  # read far ahead, then decide on the last one
        answer = one.next(chosen, start, 20)
        start = answer["next"]
    one.decide("keep", [tuple(answer["items"][-1]["key"])], None, 1.0)
    last = standing(read_decisions(str(output))["anna"])[-1]
    reached = order[last.source_row, last.word_index]
    passed = {d.batch for d in sample if min(order[d.source_row, w] for w in range(d.start, d.stop)) < reached}
    assert set(last.passes) == passed
    assert early
    assert passed


def test_without_drawn_words_it_says_why(review: Begin, output: Path) -> None:
    with pytest.raises(Refused, match="has no decisions: run tokloss review"):
        estimate(str(output))
    one = review()
    one.start()
    one.places.wait()
    assert not any(reviewed(one, 12, lambda item: True))
    assert one.progress()["estimate"] is None
    with pytest.raises(Refused, match=r"no words of .* were drawn at random.*--audit-share above 0"):
        estimate(str(output))
    with pytest.raises(Refused, match="--reviewer ben: no decisions"):
        estimate(str(output), ["ben"])
    result = CliRunner().invoke(app, ["review", str(output), "--estimate"])
    assert getattr(result.exception, "exit_code", None) == 2


def test_what_the_command_says(review: Begin, output: Path) -> None:
    one = review(audit_share=1)
    one.start()
    one.places.wait()
    assert all(reviewed(one, 20, lambda item: False))
    said = CliRunner().invoke(app, ["review", str(output), "--estimate"], env={"COLUMNS": "120"})
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    labels = len(mining_outputs.explode(output))
    assert lines[0] == f"labels           {labels:,}"
    assert lines[2] == "drawn at random  20 words not reviewed by rank, wrong: 0"
    assert "still unseen     0, between 0 and" in said.stdout
    assert "it takes some 280" in said.stdout


def test_coverage() -> None:
    """Simulated samples of a corpus with rare errors in three strata: 95 % intervals hold the truth about as often."""
    chance = np.random.default_rng(5)
    size, rate, n = np.array([2000, 20_000, 60_000]), np.array([0.05, 0.004, 0.0005]), np.array([30, 250, 700])
    truth = np.round(size * rate).astype(int)
    hits = 0
    for _ in range(400):
        x = chance.hypergeometric(truth, size - truth, n)
        _, low, high = expanded(size / n, n, x, np.ones(3, bool))
        hits += x.sum() + low <= truth.sum() <= x.sum() + high
    assert 0.93 <= hits / 400 <= 0.99


def test_a_corpus_without_words() -> None:
    made = Population(("O",), np.uint64(1))
    made.finish()
    assert made.next({}, lambda key: False) is None
    assert estimated({}, made) is None
