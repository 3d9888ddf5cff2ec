"""Issues in their order, filters, groups, decisions and undoing, held to the tables as pandas reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from seqeval.metrics.sequence_labeling import get_entities

from tests.support import inline, mining_outputs, models
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import Refused
from tokloss_ray.mining import write
from tokloss_ray.mining.mine import mine
from tokloss_ray.output.decisions import read_decisions
from tokloss_ray.review import issues, session
from tokloss_ray.review.issues import Filter
from tokloss_ray.review.session import Review
from tokloss_ray.tags.sentence_spans import Span

Begin = Callable[..., Review]


def table(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "mining/label_issues.parquet")


def keys(items: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [tuple(item["key"]) for item in items]


def all_items(review: Review, chosen: Filter = Filter(), step: int = 20) -> list[dict[str, Any]]:  # noqa: B008
    found, start = [], 0
    while True:
        answer = review.next(chosen, start, step)
        found += answer["items"]
        start = answer["next"]
        if start >= answer["total"]:
            return found


def test_each_word_is_shown_once_the_most_suspicious_first(review: Begin, output: Path) -> None:
    rows = table(output).head(300)
    one = review()
    shown = one.next(Filter(), 0, 300)["items"]
    order = {key: i for i, key in enumerate(zip(rows["source"], rows["source_row"], rows["word_index"], strict=True))}
    places = [order[key] for key in keys(shown) if key in order]
    assert places == sorted(places)
    words = [(*item["key"][:2], word) for item in shown for word in range(item["start"], item["stop"])]
    hidden = [key for key in list(order)[:250] if key not in words]
    for source, row, word in hidden:  # the entities are there already, whatever the model calls their first word
        item = one._shown(one.table.walk(Filter(), order[source, row, word], 1, lambda issue: True)[0][0])
        labels, after = item.sentence.labels, item.after()
        assert get_entities([t or "O" for t in labels]) == get_entities([t or "O" for t in after])
    assert len(hidden) < 25
    assert len({(*item["key"][:2], item["start"], item["stop"]) for item in shown}) == len(shown)


def test_what_is_shown_of_an_issue(review: Begin, output: Path) -> None:
    by_key = {(row["source"], row["source_row"]): row for row in inline.read_rows(output)}
    entities = pd.read_parquet(output / "mining/entity_issues.parquet")
    suggested = {
        (row.source, row.source_row, row.start, row.stop): (list(row.label_tags), list(row.suggested_tags))
        for row in entities.itertuples()
    }
    compared = 0
    for item in review().next(Filter(), 0, 200)["items"]:
        row = by_key[tuple(item["key"][:2])]
        first = [row["word_ids"].index(i) for i in range(len(row["words"]))]
        assert item["words"] == row["words"]
        assert item["losses"] == [round(row["loss"][i], 4) for i in first]
        assert item["labels"] == [row["labels"][first[i]] for i in range(item["start"], item["stop"])]
        assert item["predicted"] == row["predicted_label"][first[item["word"]]]
        if item["suggested"] == item["predicted"]:
            labels, tags = suggested[(*item["key"][:2], item["start"], item["stop"])]
            assert (item["labels"], item["tags"]) == (labels, tags), "not the region of the table of entities"
            compared += 1
    assert compared > 50


def test_filters(review: Begin, output: Path) -> None:
    frame = table(output)
    one = review()
    pairs = frame.groupby(["label", "suggested_label"]).size()
    assert {(a, b): n for a, b, n in one.table.pairs()} == pairs.to_dict()
    label, suggested = pairs.idxmax()
    word = frame.loc[frame["label"] == label, "word"].mode()[0]
    for chosen, keep in (
        (Filter(label=label), frame["label"] == label),
        (Filter(label=label, suggested=suggested), (frame["label"] == label) & (frame["suggested_label"] == suggested)),
        (Filter(word=word), frame["word"] == word),
        (Filter(min_score=1.0, max_score=4.0), frame["score"].between(1.0, 4.0)),
        (Filter(word="no such word"), frame["word"] == ""),
    ):
        assert one.table.count(chosen) == keep.sum()
        mine_, _ = one.table.walk(chosen, 0, 10**6, lambda issue: True)
        theirs = frame[keep]
        assert [(i.source_row, i.word_index) for i in mine_] == [
            *zip(theirs["source_row"], theirs["word_index"], strict=True)
        ]


def test_slices_are_merged_by_score(review: Begin, output: Path) -> None:
    mine(str(output), by=["genre"])
    frame = table(output).sort_values("score", ascending=False, kind="stable")
    one = review()
    found, _ = one.table.walk(Filter(), 0, 500, lambda issue: True)
    assert [issue.score for issue in found] == frame["score"].head(500).tolist()
    web, _ = one.table.walk(Filter(slices={"genre": "web"}), 0, 500, lambda issue: True)
    assert [i.score for i in web] == frame.loc[frame["genre"] == "web", "score"].head(500).tolist()
    assert one.choices()["slices"] == {"genre": ["news", "web"]}
    with pytest.raises(Refused, match="--by lang"):
        one.table.count(Filter(slices={"lang": "de"}))


def test_rows_of_other_outputs_are_left_out(output: Path, mined: Path, tmp_path: Path, review: Begin) -> None:
    (tmp_path / "other").mkdir()
    other = mining_outputs.score_demo(tmp_path / "other", mining_outputs.demo_sentences(tmp_path / "other", 400, 60))
    mine([str(output), str(other)])
    frame = table(output)
    found, _ = review().table.walk(Filter(), 0, 10**6, lambda issue: True)
    assert len(found) == (frame["output"] == str(output)).sum() < len(frame)


def test_long_tables_are_read_in_parts(
    review: Begin, output: Path, monkeypatch: pytest.MonkeyPatch, mined: Path
) -> None:
    monkeypatch.setattr(write, "GROUP_ROWS", 64)
    mine(str(output), limit=1000)
    frame = table(output)
    one = review()
    read: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, *a, **k: (read.append(i), real(self, i, *a, **k))[1]
    )
    found, place = one.table.walk(Filter(), 0, 3, lambda issue: True)
    assert (len(found), place, read) == (3, 3, [0])
    found, _ = one.table.walk(Filter(), 400, 40, lambda issue: True)
    assert read == [0, 6, 7]
    assert [issue.score for issue in found] == frame["score"][400:440].tolist()
    one.table.walk(Filter(), 0, 1000, lambda issue: True)
    assert len(one.table._groups) <= issues._GROUPS_KEPT


def test_decisions_and_undo(review: Begin, output: Path) -> None:
    one = review()
    first, second, third = one.next(Filter(), 0, 3)["items"]
    one.decide("accept", [tuple(first["key"])], None, 1.5)
    one.decide("keep", [tuple(second["key"])], None, 2.5)
    written = read_decisions(str(output))["anna"]
    assert [(d.action, list(d.tags), d.seconds) for d in written] == [
        ("accept", first["tags"], 1.5),
        ("keep", second["labels"], 2.5),
    ]
    assert keys(one.next(Filter(), 0, 1)["items"]) == keys([third])
    undone = one.undo()
    assert keys(undone["items"]) == keys([second])
    assert undone["progress"]["decided"] == 1
    one.close()
    again = review()
    assert keys(again.next(Filter(), 0, 2)["items"]) == keys([second, third])
    again.decide("skip", [tuple(third["key"])], None, None)
    assert keys(again.next(Filter(), 0, 1)["items"]) == keys([second])
    assert keys(again.decided("skipped")["items"]) == keys([third])
    assert keys(again.decided("decided")["items"]) == keys([first])
    for _ in range(2):
        again.undo()
    with pytest.raises(Refused, match="nothing to undo"):
        again.undo()
    assert keys(again.next(Filter(), 0, 1)["items"]) == keys([first])


def test_an_edit_is_written_by_the_rules_of_the_scheme(review: Begin) -> None:
    one = review()
    item = next(i for i in one.next(Filter(), 0, 300)["items"] if i["word"] == 2 and len(i["words"]) > 4)
    one.decide("edit", [tuple(item["key"])], [Span(0, 2, "LOC"), Span(2, 3, "LOC")], None)
    (done,) = one.standing
    assert (done.start, done.tags[:3]) == (0, ("B-LOC", "I-LOC", "B-LOC"))
    assert set(done.tags[3:]) <= {"O"}
    assert one.decided("decided")["items"][0]["own"]["spans"] == [[0, 2, "LOC"], [2, 3, "LOC"]]
    with pytest.raises(Refused):
        one.decide("edit", [tuple(item["key"])], [Span(0, 2, "TIME")], None)
    with pytest.raises(Refused, match="not shown"):
        one.decide("keep", [("elsewhere", 0, 0)], None, None)
    for action, spans in (("edit", None), ("undo", None), ("accept", []), ("", None)):
        with pytest.raises(Refused, match="not a decision"):
            one.decide(action, [tuple(item["key"])], spans, None)
    assert len(one.standing) == 1


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    """The same mistake in eight sentences, and a similar one in another."""
    tags = ["O", "B-LOC", "I-LOC"]
    rows = [{"tokens": ["in", "Bayern", f"{i}"], "ner_tags": ["O", "O", "O"]} for i in range(8)]
    rows.append({"tokens": ["Bayern", "!"], "ner_tags": ["I-LOC", "O"]})
    model = models.build("bert", tmp_path / "model", [row["tokens"] for row in rows], tags)
    source = inline.write_jsonl(tmp_path / "rows.jsonl", rows)
    inline.score_inline(ScoreConfig(model=str(model), input=(str(source),), output=str(tmp_path / "repeated")))
    mine(str(tmp_path / "repeated"))
    # The tiny model knows nothing: let the table suggest the same everywhere.
    path = tmp_path / "repeated/mining/label_issues.parquet"
    found = pq.read_table(path)
    at = found.column_names.index("suggested_label")
    words, labels = found.column("word").to_pylist(), found.column("label").to_pylist()
    new = [
        "B-LOC" if (w, t) == ("Bayern", "O") else ("O" if t != "O" else "I-LOC")
        for w, t in zip(words, labels, strict=True)
    ]
    pq.write_table(found.set_column(at, "suggested_label", pa.array(new)), path)
    return tmp_path / "repeated"


def test_groups_are_decided_at_once(review: Begin, repeated: Path) -> None:
    one = review(of=repeated)
    item = next(i for i in all_items(one) if i["label"] == "O" and i["words"][i["word"]] == "Bayern")
    one.next(Filter(word="Bayern"), 0, 20)
    group = one.group(tuple(item["key"]))["items"]
    # All with these words, label and suggestion; the model may have another reason to change more in some sentences.
    same = [
        i
        for i in all_items(one, Filter(word="Bayern", label="O"))
        if (i["labels"], i["tags"]) == (item["labels"], item["tags"])
    ]
    assert set(keys(group)) == set(keys(same))
    assert group[0]["key"] == item["key"]
    answer = one.decide("accept", [tuple(i["key"]) for i in group], None, 3.0)
    assert len(answer["decided"]) == len(group) == answer["progress"]["accept"]
    assert {d.batch for d in one.standing} == {1}
    assert len(one.undo()["items"]) == len(group)
    assert one.standing == []


def test_two_reviewers(review: Begin, output: Path) -> None:
    anna, ben = review("anna"), review("ben")
    items = anna.next(Filter(), 0, 3)["items"]
    ben.next(Filter(), 0, 3)
    for item, action in zip(items, ("accept", "accept", "keep"), strict=True):
        anna.decide(action, [tuple(item["key"])], None, None)
    assert keys(ben.next(Filter(), 0, 3)["items"]) == keys(items), "each sees all"
    assert ben.next(Filter(), 0, 3)["items"][0]["others"] == [], (
        "before one has decided, others' opinions are not shown"
    )
    for item, action in zip(items, ("accept", "keep", "keep"), strict=True):
        ben.decide(action, [tuple(item["key"])], None, None)
    (disputed,) = ben.decided("conflicts")["items"]
    assert disputed["key"] == items[1]["key"]
    assert [(o["reviewer"], o["action"]) for o in disputed["others"]] == [("anna", "accept")]
    between = anna.agreement()
    changed = sum(a != b for a, b in zip(items[1]["labels"], items[1]["tags"], strict=True))
    assert between["conflicts"] == changed
    (pair,) = between["pairs"]
    assert pair["words"] - pair["same"] == changed
    ben.decide("accept", [tuple(items[1]["key"])], None, None)
    assert ben.decided("conflicts")["items"] == []


def test_elsewhere_counts_every_word(review: Begin, output: Path) -> None:
    one = review()
    item = one.next(Filter(), 0, 1)["items"][0]
    assert one.elsewhere(tuple(item["key"]), False)["done"] == 0
    one.start()
    one.places.wait()
    tokens = mining_outputs.explode(output)
    counts = tokens.groupby(["word", "labels"]).size()
    for word in [",", ".", "(", "von", *tokens["word"].sample(40, random_state=1), item["words"][item["word"]]]:
        assert {u.label: u.times for u in one.places.of(word)} == counts[word].to_dict()
    assert one.places.of("no such word") == []
    (first, *_) = one.elsewhere(tuple(item["key"]), True)["words"]
    for usage in first["usages"]:
        assert len(usage["examples"]) == min(usage["count"], 4)
        assert {example["word"] for example in usage["examples"]} == {first["word"]}


def test_places_of_many_parts_are_those_of_one(mined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokloss_ray.output.opened import open_outputs
    from tokloss_ray.review import places

    found = []
    for batch, rows in ((1 << 19, 1 << 30), (300, 500)):
        monkeypatch.setattr(places, "_COMPACT_ROWS", rows)
        monkeypatch.setattr(
            places, "file_batches", lambda files, n=batch: [[file] for file in files] if n < 1000 else [files]
        )
        made = places.Places(open_outputs(str(mined)))
        made.start()
        made.wait()
        assert (made.failed, made.done) == ("", 1.0)
        found.append({word: made.of(word) for word in made._words.to_pylist()})
    assert found[0] == found[1]


def test_why_is_shown_where_the_table_has_it(review: Begin, output: Path) -> None:
    path = output / "mining/label_issues.parquet"
    found = pq.read_table(path)
    if "why" in found.column_names:
        found = found.drop_columns(["why"])
        pq.write_table(found, path)
    assert review("before").next(Filter(), 0, 1)["items"][0]["why"] == ""
    why = pa.array(["O in 3 of 214 other places"] * found.num_rows)
    pq.write_table(found.append_column("why", why), path)
    assert review("after").next(Filter(), 0, 1)["items"][0]["why"] == "O in 3 of 214 other places"


def test_long_sentences_are_cut_around_the_issue(tmp_path: Path, review: Begin) -> None:
    words = [f"w{i % 50}" for i in range(900)]
    tags = ["B-X" if i == 449 else "I-X" if 449 < i < 700 else "O" for i in range(900)]
    model = models.build("bert", tmp_path / "model", [words], ["O", "B-X", "I-X"], max_length=64)
    source = inline.write_jsonl(tmp_path / "rows.jsonl", [{"tokens": words, "ner_tags": tags}])
    out = tmp_path / "long"
    inline.score_inline(ScoreConfig(model=str(model), input=(str(source),), output=str(out), max_length=64, overlap=8))
    mine(str(out))
    one = review(of=out)
    for item in one.next(Filter(), 0, 10)["items"]:
        first, last = item["first"], item["first"] + len(item["words"])
        assert first <= item["start"] < item["stop"] <= last
        assert item["words"] == words[first:last]
        for start, end, _ in [*item["label_spans"], *item["suggested_spans"]]:
            assert first <= start < end <= last
        one.decide("edit", [tuple(item["key"])], [Span(*span) for span in item["label_spans"]], None)
        assert one.standing[-1].tags == one.standing[-1].labels, "an edit that changes nothing changed a word"


def test_what_cannot_be_reviewed(output: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"not an output|no output|has no"):
        Review(str(tmp_path), "anna")
    path = output / "mining/label_issues.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(Refused, match="mine again"):
        Review(str(output), "anna")
    path.unlink()
    with pytest.raises(Refused, match="run tokloss mine"):
        Review(str(output), "anna")
    path.write_bytes(data)
    record = next((output / "_commits").iterdir())
    record.unlink()
    with pytest.raises(Refused, match=r"mine .* again"):
        Review(str(output), "anna")
    assert not (output / "review").exists()
    assert session.GROUP_MOST == 200
