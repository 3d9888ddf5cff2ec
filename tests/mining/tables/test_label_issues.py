"""Label issues against cleanlab and plain loops, on real sentences and their real probabilities."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cleanlab.filter
import cleanlab.rank
import cleanlab.token_classification.filter
import cleanlab.token_classification.rank
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.demo_words import demo_scores, demo_words, split
from tokloss_ray.errors import Refused
from tokloss_ray.mining.ranks import confident
from tokloss_ray.mining.ranks.label_scores import (
    DEFAULT,
    PRIOR_ADJUSTED,
    PRIOR_WEIGHT,
    RANKS,
    SURFACE,
    SURFACE_SMOOTHING,
    SURFACE_WEIGHT,
    label_scores,
    rank_labels,
)
from tokloss_ray.mining.tables import entity_issues, label_issues
from tokloss_ray.mining.words.occurrences import count_words
from tokloss_ray.tags.schemes import breaks_of, malformed_words, read_spans, read_tag_set, write_spans

ROOT = Path(__file__).parents[3]
EVERYTHING = 10**6


def real_rows():
    """Labels (codes) and probabilities of each sentence's labelled tokens, from the rows of scores/."""
    tags = list(demo_words().tags)
    labels, probs = [], []
    for row in demo_scores().rows:
        kept = [i for i, label in enumerate(row["labels"]) if label != "IGN"]
        labels.append([tags.index(row["labels"][i]) for i in kept])
        probs.append(np.array([row["probs"][i] for i in kept], dtype=np.float32))
    return labels, probs


def addresses(table):
    """(number of the sentence, number of the word) of each row, in order."""
    number = {row["example_id"]: i for i, row in enumerate(demo_scores().rows)}
    return [(number[r["example_id"]], r["word_index"]) for r in table.to_pylist()]


def issues_of(rank, **options):
    labels = Counter(np.array(demo_words().tags)[demo_words().label])
    counts = count_words(demo_words())
    ranked = [rank_labels(w, labels, rank, counts=counts) for w in demo_scores().words]
    parts = [label_issues.label_issues_partial(one, **options) for one in ranked]
    return label_issues.label_issues_merge(parts, rank=rank, **options)


CLEANLAB = {
    "loss": "self_confidence",
    "margin": "normalized_margin",
    "confidence-weighted-entropy": "confidence_weighted_entropy",
}


@pytest.mark.parametrize("rank", CLEANLAB)
def test_scores_have_the_order_of_cleanlab(rank):
    labels, probs = np.concatenate(real_rows()[0]), np.concatenate(real_rows()[1])
    quality = cleanlab.rank.get_label_quality_scores(labels, probs.astype(np.float64), method=CLEANLAB[rank])
    score = label_scores(demo_words(), rank=rank)[0]
    expected = {"loss": lambda: -np.log(quality), "margin": lambda: 1 - 2 * quality}.get(rank, lambda: -quality)()
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("rank", "filter_by"), [("confident-joint", "prune_by_noise_rate"), ("confident-learning", "confident_learning")]
)
def test_confident_ranks_find_the_issues_of_cleanlab(rank, filter_by):
    labels, probs = real_rows()
    expected = cleanlab.token_classification.filter.find_label_issues(labels, probs, filter_by=filter_by, n_jobs=1)
    found = addresses(issues_of(rank, limit=EVERYTHING))
    assert len(expected) > 200
    assert set(found) == set(expected)
    if rank == "confident-joint":
        assert set(found) == set(cleanlab.token_classification.filter.find_label_issues(labels, probs, n_jobs=1))
    # In cleanlab's order, but for words with the same probability of their label.
    confidence = {(i, j): probs[i][j][labels[i][j]] for i, j in found}
    assert [confidence[at] for at in found] == pytest.approx([confidence[at] for at in expected], abs=1e-6)


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6), words=st.integers(2, 80))
@settings(max_examples=60, deadline=None)
def test_confident_rules_equal_cleanlab_on_any_probabilities(seed, classes, words):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, words)
    label[:2] = [0, 1]
    probs = rng.dirichlet(np.full(classes, 0.4), words)
    for rule, filter_by in (("noise_rate", "prune_by_noise_rate"), ("off_diagonal", "confident_learning")):
        expected = cleanlab.filter.find_label_issues(label, probs, filter_by=filter_by, n_jobs=1)
        assert confident.issues(label, probs, rule).tolist() == expected.tolist()


def test_without_all_probabilities_the_confident_issues_are_nearly_the_same():
    full = set(addresses(issues_of("confident-joint", limit=EVERYTHING)))
    words = replace(demo_words(), probs=None)
    table = label_issues.label_issues_merge(
        [label_issues.label_issues_partial(rank_labels(words, rank="confident-joint"), EVERYTHING)],
        rank="confident-joint",
        limit=EVERYTHING,
    )
    near = set(addresses(table))
    assert len(full & near) > 0.95 * len(full | near)


@pytest.mark.parametrize("rank", [SURFACE, PRIOR_ADJUSTED])
def test_ranks_of_log_odds_equal_a_plain_loop(rank):
    words = demo_words()
    text = words.word.to_pylist()
    seen, of_word = Counter(zip(text, words.label.tolist(), strict=True)), Counter(text)
    labels = Counter(words.tags[code] for code in words.label)
    total = sum(labels.values()) + len(words.tags)
    tag_set = read_tag_set(words.tags)
    breaks = breaks_of(words.offsets, words.word_index)
    joined = np.zeros(len(words), dtype=bool)
    for codes in (words.label, words.predicted):
        for start, stop, _ in zip(*read_spans(codes, breaks, tag_set), strict=True):
            joined[start + 1 : stop] = True
    raw, region = [], []
    for i in range(len(words)):
        region.append(region[-1] + (not joined[i]) if region else 0)

        def odds(log_p, code, i=i):
            prior = (labels[words.tags[code]] + 1) / total
            if rank == PRIOR_ADJUSTED:
                return log_p - PRIOR_WEIGHT * math.log(prior)
            count = seen[text[i], int(code)] - (code == words.label[i])
            share = (count + SURFACE_SMOOTHING * prior) / (of_word[text[i]] - 1 + SURFACE_SMOOTHING)
            return log_p - PRIOR_WEIGHT * math.log(prior) + SURFACE_WEIGHT * math.log(share / prior)

        known = ((words.predicted[i], words.predicted_prob[i]), (words.second[i], words.second_prob[i]))
        others = [odds(math.log(p), code) for code, p in known if code != words.label[i]]
        raw.append(max(others) - odds(-float(words.loss[i]), words.label[i]))
    expected = []
    for i in range(len(words)):
        if words.label[i] == words.predicted[i]:
            expected.append(raw[i])
            continue
        same = [
            raw[j]
            for j in range(max(0, i - 60), min(len(words), i + 60))
            if region[j] == region[i] and words.label[j] != words.predicted[j]
        ]
        own = 0.5 if rank == PRIOR_ADJUSTED else 0.0
        expected.append(own * raw[i] + (1 - own) * sum(same) / len(same))
    score, suggested = label_scores(words, labels, rank)
    np.testing.assert_allclose(score, expected, rtol=1e-6, atol=1e-6)
    assert (suggested != words.label).all()

    table = issues_of(rank, limit=EVERYTHING)
    assert table.num_rows == len(words)
    assert table["score"].to_numpy() == pytest.approx(np.sort(expected)[::-1], abs=1e-6)
    first = table.slice(0, 1).to_pylist()[0]
    row = next(r for r in demo_scores().rows if r["example_id"] == first["example_id"])
    at = first["token_index"]
    assert row["word_ids"][at] == first["word_index"]
    assert (row["input_tokens"][at], row["labels"][at]) == (first["token"], first["label"])
    assert row["words"][first["word_index"]] == first["word"]
    assert row["loss"][at] == first["loss"]
    assert first["suggested_label"] in (row["predicted_label"][at], row["second_label"][at])


def test_sentences_score_their_worst_word_as_in_cleanlab():
    labels, probs = real_rows()
    quality, _ = cleanlab.token_classification.rank.get_label_quality_scores(labels, probs)
    parts = [label_issues.sentence_issues_partial(rank_labels(w, rank="loss"), EVERYTHING) for w in demo_scores().words]
    table = label_issues.sentence_issues_merge(parts, limit=EVERYTHING)
    number = {row["example_id"]: i for i, row in enumerate(demo_scores().rows)}
    found = {number[r["example_id"]]: r for r in table.to_pylist()}
    assert len(found) == len(labels)
    for i, row in found.items():
        assert row["score"] == pytest.approx(-math.log(quality[i]), abs=1e-4)
        wrong = probs[i].argmax(axis=1) != np.array(labels[i])
        assert (row["suspicious"], row["num_labels"]) == (wrong.sum(), len(wrong))
        own = probs[i][row["word_index"], labels[i][row["word_index"]]]
        assert own == pytest.approx(quality[i], rel=1e-4, abs=1e-7)


def test_suggested_entities_are_well_formed_and_are_the_predicted_ones():
    words = demo_words()
    parts = [entity_issues.entity_issues_partial(rank_labels(w), EVERYTHING) for w in demo_scores().words]
    table = entity_issues.entity_issues_merge(parts, limit=EVERYTHING)
    tag_set = read_tag_set(words.tags)
    issues = table.to_pylist()
    assert {issue["kind"] for issue in issues} == set(entity_issues.KINDS)
    number = {row["example_id"]: i for i, row in enumerate(demo_scores().rows)}
    changed = words.label.copy()
    for issue in issues:
        tags = issue["suggested_tags"]
        assert tags != issue["label_tags"] or issue["kind"] == "change"
        assert len(issue["text"].split(" ")) == len(tags) == issue["stop"] - issue["start"]
        begin = words.offsets[number[issue["example_id"]]]
        at = np.arange(begin + issue["start"], begin + issue["stop"])
        assert [words.tags[code] for code in words.label[at]] == issue["label_tags"]
        changed[at] = [words.tags.index(tag) for tag in tags]
        kind = issue["kind"]
        assert (kind == "remove") == (set(tags) == {"O"})
        assert (kind == "add") == (set(issue["label_tags"]) == {"O"})
    # All suggestions taken, the annotation has the predicted spans, and well-formed tags.
    breaks = breaks_of(words.offsets, words.word_index)
    for found, predicted in zip(*(read_spans(c, breaks, tag_set) for c in (changed, words.predicted)), strict=True):
        assert found.tolist() == predicted.tolist()
    assert not any(map(len, malformed_words(changed, words.offsets, words.word_index, tag_set).values()))


@pytest.mark.parametrize(
    ("scheme", "letters"), [("IOB1", "BI"), ("IOB2", "BI"), ("IOBES", "BIES"), ("BILOU", "BILU"), ("IO", "I")]
)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_written_spans_read_the_same_in_strict_mode(scheme, letters, data):
    tag_set = read_tag_set(("O", *(f"{x}-{kind}" for kind in ("PER", "LOC") for x in letters)), scheme)
    length = data.draw(st.integers(1, 12))
    codes = np.array(data.draw(st.lists(st.integers(0, 2 * len(letters)), min_size=length, max_size=length)))
    breaks = breaks_of(np.array([0, length]), np.arange(length))
    spans = read_spans(codes, breaks, tag_set)
    again = read_spans(write_spans(spans, length, tag_set), breaks, tag_set, "strict")
    assert [values.tolist() for values in again] == [values.tolist() for values in spans]


PARTIALS = {
    "label": (label_issues.label_issues_partial, label_issues.label_issues_combine, label_issues.label_issues_merge),
    "sentence": (
        label_issues.sentence_issues_partial,
        label_issues.sentence_issues_combine,
        label_issues.sentence_issues_merge,
    ),
    "entity": (
        entity_issues.entity_issues_partial,
        entity_issues.entity_issues_combine,
        entity_issues.entity_issues_merge,
    ),
}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", PARTIALS)
@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_any_split_and_tree_of_merges_gives_the_same_table(name, rank, data):
    partial, combine, merge = PARTIALS[name]
    words = demo_words()
    values = pa.array([None if i % 5 == 0 else "ab"[i % 2] for i in range(len(words.offsets) - 1)])
    words = replace(words, by={"slice": values} if data.draw(st.booleans()) else {})
    by, limit = list(words.by), data.draw(st.sampled_from([1, 30]))
    labels = Counter(words.tags[code] for code in words.label)
    cuts = data.draw(st.lists(st.integers(0, len(words.offsets) - 1), max_size=4))
    ranked = {"rank": rank} if name == "label" else {}
    counts = count_words(words)
    parts = [partial(rank_labels(part, labels, rank, counts=counts), limit) for part in split(words, cuts)]
    at = data.draw(st.integers(0, len(parts)))
    tree = [combine(some, by, limit=limit, **ranked) for some in (parts[:at], parts[at:]) if some]
    expected = merge([partial(rank_labels(words, labels, rank), EVERYTHING)], by, limit=EVERYTHING, **ranked)
    rows = expected.to_pylist()
    seen = Counter()
    kept = []
    for i, row in enumerate(rows):
        seen[row.get("slice")] += 1
        if seen[row.get("slice")] <= limit:
            kept.append(i)
    assert merge(tree, by, limit=limit, **ranked).to_pylist() == expected.take(kept).to_pylist()
    assert len(kept) == limit * (3 if by else 1)


def test_what_cannot_be_ranked_is_refused():
    words = replace(demo_words(), probs=None)
    with pytest.raises(Refused, match="unknown rank best: choose one of surface, prior-adjusted, loss"):
        rank_labels(words, rank="best")
    with pytest.raises(Refused, match="--keep-probs"):
        rank_labels(words, rank="confidence-weighted-entropy")


def test_part_of_speech_tags_have_label_issues_and_no_entities():
    words = replace(demo_words(), tags=("NOUN", "VERB", "ADJ", "ADV", "DET", "NUM", "X"))
    assert label_issues.label_issues_partial(rank_labels(words), limit=5).num_rows == 5
    empty, full = (entity_issues.entity_issues_partial(rank_labels(w)) for w in (words, demo_words()))
    assert empty.num_rows == 0
    assert empty.schema == full.schema


def test_default_rank_finds_seeded_errors_better_than_loss_and_margin():
    """The whole measurement, with four languages and cleanlab's scores, is benchmarks/label_noise.py."""
    spec = importlib.util.spec_from_file_location("label_noise", ROOT / "benchmarks/label_noise.py")
    label_noise = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(label_noise)
    words = demo_words()
    tag_set = read_tag_set(words.tags)
    gains = []
    for kind in ("type", "boundary", "drop"):
        found = []
        for seed in range(3):
            label = label_noise.corrupted(words, tag_set, kind, 0.1, seed)
            noisy = label_noise.with_labels(words, label)
            wrong = label != words.label
            assert 0.05 < wrong.sum() / (words.label > 0).sum() < 0.15
            ranks = (DEFAULT, "loss", "margin")
            found.append([label_noise.precision(words, wrong, label_scores(noisy, rank=r)[0]) for r in ranks])
        default, loss, margin = np.mean(found, axis=0)
        gains.append(default - np.maximum(loss, margin))
    by_word, by_sentence = np.array(gains).T
    assert (by_word > 0).all()
    assert by_sentence.mean() > 0  # a thousand sentences are too few to tell each kind


def test_sequences_without_words_and_a_model_of_one_tag():
    words = split(demo_words(), [3])[0]
    gaps = replace(
        words,
        offsets=np.array([0, 0, words.offsets[1], *words.offsets[1:], words.offsets[-1]]),
        example_id=pa.array([f"s{i}" for i in range(6)]),
        source=pa.array(["x"] * 6),
        source_row=np.arange(6),
    )
    for partial, _, merge in PARTIALS.values():
        found = merge([partial(rank_labels(gaps))])
        assert found.num_rows
        assert set(found["example_id"].to_pylist()) <= {"s1", "s3", "s4"}
        none, all_ = rank_labels(split(words, [0])[0]), rank_labels(words)
        assert merge([partial(none), partial(all_)]).num_rows == partial(all_).num_rows
        assert merge([partial(none)]).num_rows == 0
    zeros = np.zeros(len(words), dtype=np.int32)
    one = replace(
        words, tags=("X",), label=zeros, predicted=zeros, second=zeros - 1, loss=zeros.astype(np.float32), probs=None
    )
    table = label_issues.label_issues_partial(rank_labels(one))
    assert table["suggested_label"].null_count == table.num_rows == len(one)
    assert not np.isnan(table["score"].to_numpy()).any()
    for rank in ("loss", "margin", "confident-joint", "confident-learning"):
        label_issues.label_issues_merge([label_issues.label_issues_partial(rank_labels(one, rank=rank))], rank=rank)
