"""Why a label is suspected, in words, and issues that one decision may settle."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from tests.support.demo_words import demo_scores, demo_words
from tokloss_ray.mining.passes import final_tables, partial_tables
from tokloss_ray.mining.ranks.label_scores import rank_labels
from tokloss_ray.mining.settings import MiningSettings
from tokloss_ray.mining.tables.entity_issues import entity_issues_merge, entity_issues_partial
from tokloss_ray.mining.tables.issue_groups import issue_groups, words_as_issues
from tokloss_ray.mining.tables.label_issues import label_issues_merge, label_issues_partial
from tokloss_ray.mining.tables.reasons import probability, reasons
from tokloss_ray.mining.words.occurrences import count_words
from tokloss_ray.mining.words.words import concat_words

EVERYTHING = 10**6


def issues(rank: str = "surface", limit: int = EVERYTHING) -> pa.Table:
    return label_issues_merge(
        [label_issues_partial(rank_labels(demo_words(), rank=rank), limit)], rank=rank, limit=limit
    )


def row(**values: Any) -> dict[str, Any]:
    usual = {
        "label": "O", "predicted": "B-ORG", "suggested_label": "B-ORG", "suggested_prob": 0.97, "other_places": 214,
        "same_label": 3, "same_suggestion": 0, "issue_words": 1,
    }  # fmt: skip
    return usual | values


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "O in 3 of 214 other places; the model gives B-ORG 0.97"),
        ({"same_suggestion": 209}, "O in 3 of 214 other places, B-ORG in 209; the model gives B-ORG 0.97"),
        ({"other_places": 1, "same_label": 0}, "O in 0 of 1 other place; the model gives B-ORG 0.97"),
        ({"other_places": 1_234_567}, "O in 3 of 1,234,567 other places; the model gives B-ORG 0.97"),
        ({"other_places": 0, "same_label": 0}, "in no other place; the model gives B-ORG 0.97"),
        (dict.fromkeys(("other_places", "same_label", "same_suggestion")), "the model gives B-ORG 0.97"),
        ({"issue_words": 2, "suggested_prob": 0.999}, "O in 3 of 214 other places; the model gives B-ORG >0.99; "
         "1 more word of the entity differs"),
        ({"issue_words": 4, "suggested_prob": 0.001}, "O in 3 of 214 other places; the model gives B-ORG <0.01; "
         "3 more words of the entity differ"),
        ({"issue_words": 4, "predicted": "O"}, "O in 3 of 214 other places; the model gives B-ORG 0.97"),
        ({"suggested_label": None, "suggested_prob": None}, None),
    ],
)  # fmt: skip
def test_reasons(values: dict[str, Any], says: str | None) -> None:
    types = {name: pa.int64() for name in ("other_places", "same_label", "same_suggestion")} | {
        "issue_words": pa.int32(),
        "suggested_prob": pa.float32(),
    }
    one = row(**values)
    table = pa.table({name: pa.array([value], types.get(name, pa.string())) for name, value in one.items()})
    assert reasons(table).to_pylist() == [says]


def test_probabilities_are_never_shown_as_certain() -> None:
    values = pa.array([0.0, 0.004, 0.006, 0.1, 0.994, 0.996, 1.0, None], pa.float32())
    expected = ["<0.01", "<0.01", "0.01", "0.10", "0.99", ">0.99", ">0.99", None]
    assert probability(values).to_pylist()[:7] == expected[:7]


def test_counts_and_reasons_of_real_words() -> None:
    words = demo_words()
    text = words.word.to_pylist()
    seen, pairs = Counter(text), Counter(zip(text, (words.tags[code] for code in words.label), strict=True))
    for one in issues(limit=300).to_pylist():
        assert one["other_places"] == seen[one["word"]] - 1
        assert one["same_label"] == pairs[one["word"], one["label"]] - 1
        assert one["same_suggestion"] == pairs[one["word"], one["suggested_label"]]
        start = "in no other place; " if seen[one["word"]] == 1 else f"{one['label']} in {one['same_label']:,} of "
        assert one["why"].startswith(start)
        assert f"the model gives {one['suggested_label']} " in one["why"]


def test_other_ranks_say_what_the_model_gives() -> None:
    table = issues("loss", 50)
    assert table["other_places"].null_count == 50
    assert all(why.startswith("the model gives ") for why in table["why"].to_pylist())


def test_words_of_one_entity_stand_together() -> None:
    ranking = rank_labels(demo_words())
    entities = {
        (e["example_id"], e["start"]): e
        for e in entity_issues_merge([entity_issues_partial(ranking, EVERYTHING)], limit=EVERYTHING).to_pylist()
    }
    rows = [r for r in issues().to_pylist() if r["label"] != r["predicted"]]
    order = [(r["example_id"], r["issue_start"]) for r in rows]
    runs = [key for i, key in enumerate(order) if i == 0 or order[i - 1] != key]
    assert len(runs) == len(set(runs)) > 100
    sizes = Counter(order)
    assert all(sizes[r["example_id"], r["issue_start"]] == r["issue_words"] for r in rows)
    assert max(sizes.values()) > 3
    assert all(len({r["score"] for r in rows if (r["example_id"], r["issue_start"]) == key}) == 1 for key in runs[:50])
    assert set(entities) <= set(runs)


def entities() -> pa.Table:
    """Of the demo's sentences, and some of them once more: in so few, no entity is wrong twice."""
    words = concat_words([demo_words(), demo_scores().words[1]])
    return entity_issues_merge([entity_issues_partial(rank_labels(words), EVERYTHING)], limit=EVERYTHING)


@pytest.mark.parametrize("of", ["entities", "words"])
def test_groups_equal_a_plain_count(of: str) -> None:
    table = entities() if of == "entities" else words_as_issues(issues())
    groups = issue_groups(table).to_pylist()
    members: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in table.to_pylist():
        members.setdefault(key(one), []).append(one)
    expected = {key: found for key, found in members.items() if len(found) > 1}
    assert {key(group) for group in groups} == expected.keys()
    assert len(groups) == len(expected) > 3
    for group in groups:
        found = expected[key(group)]
        assert group["count"] == len(found)
        assert group["score"] == max(r["score"] for r in found)
        assert group["mean_score"] == pytest.approx(sum(r["score"] for r in found) / len(found))
        assert [group[name] for name in ("example_id", "start", "stop")] == [
            found[0][name] for name in ("example_id", "start", "stop")
        ]
        labels, suggested = (" ".join(group[name]) for name in ("label_tags", "suggested_tags"))
        assert group["summary"] == f"{group['text']}: {len(found)} times {labels}, suggested {suggested}"
    assert [(-g["count"], -g["score"]) for g in groups] == sorted((-g["count"], -g["score"]) for g in groups)
    assert issue_groups(table.slice(0, 0)).num_rows == 0


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["text"], tuple(row["label_tags"]), tuple(row["suggested_tags"])


def test_words_that_the_model_agrees_with_are_in_no_group() -> None:
    rows = [r for r in issues().to_pylist() if r["label"] != r["predicted"]]
    assert [(r["word"], r["word_index"], r["word_index"] + 1) for r in rows] == [
        (r["text"], r["start"], r["stop"]) for r in words_as_issues(issues()).to_pylist()
    ]


def test_words_of_part_of_speech_are_groups_of_their_own() -> None:
    words = replace(demo_words(), tags=("NOUN", "VERB", "ADJ", "ADV", "DET", "NUM", "X"))
    settings = MiningSettings(tags=words.tags, labels={}, counts=count_words(words))
    table = final_tables(partial_tables(words, settings), settings)["label_issue_groups"]
    assert table.num_rows > 3
    assert all(len(tags) == 1 for tags in table["label_tags"].to_pylist())
