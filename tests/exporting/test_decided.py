"""From decisions to a fixed dataset: only decided words change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support import mining_outputs
from tests.support.mining_outputs import TAGS
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.export import export
from tokloss_ray.output.decisions import Decision, to_line

Decide = Callable[..., None]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pq.read_table(DATA).slice(0, 60)


@pytest.fixture
def decide(tmp_path: Path, table: pa.Table) -> Decide:
    """Writes decisions on rows of the table, as a review does."""
    (tmp_path / "out/review").mkdir(parents=True)
    numbers: dict[str, int] = {}

    def write(who: str, row: int, start: int, tags: list[str], source: str = "a.parquet", **more: Any) -> None:
        numbers[who] = batch = numbers.get(who, 0) + 1
        stop = start + len(tags)
        labels = [TAGS[t] for t in table.column("ner_tags")[row].as_py()[start:stop]]
        decision = Decision(
            **{
                "reviewer": who, "batch": batch, "time": f"2026-01-01T00:{batch:02}:00.000+00:00",
                "action": "keep" if labels == tags else "edit", "example_id": f"id{row}", "source": source,
                "source_row": row, "word_index": start, "start": start, "stop": stop, "tags": tuple(tags),
                "words": tuple(table.column("tokens")[row].as_py()[start:stop]), "labels": tuple(labels),
            } | more
        )  # fmt: skip
        with (tmp_path / f"out/review/{who}.jsonl").open("ab") as file:
            file.write(to_line(decision))

    return write


def changed(old: list[list[Any]], new: list[list[Any]]) -> dict[tuple[int, int], str]:
    """Row and word of each tag that is another, and what it is."""
    assert [len(row) for row in old] == [len(row) for row in new]
    return {
        (i, j): TAGS[b] for i, (x, y) in enumerate(zip(old, new, strict=True))
        for j, (a, b) in enumerate(zip(x, y, strict=True)) if a != b
    }  # fmt: skip


DECIDED = {(3, 0): "B-ORG", (3, 1): "I-ORG", (7, 1): "B-PER", (50, 0): "I-LOC"}


def decided(decide: Decide, table: pa.Table, source: str = "a.parquet") -> None:
    """Two reviewers: edits, a label that is kept, one that is skipped, one that was undone."""
    tags = table.column("ner_tags").to_pylist()
    decide("anna", 3, 0, ["B-ORG", "I-ORG"], source)
    decide("anna", 4, 0, [TAGS[t] for t in tags[4][:2]], source)
    decide("anna", 5, 0, ["B-LOC"], source, action="skip")
    decide("anna", 6, 0, ["B-LOC"], source)
    decide("anna", 0, 0, [], "", action="undo", undoes=4, word_index=-1, source_row=-1, stop=0)
    decide("ben", 3, 0, ["B-ORG"], source)
    decide("ben", 7, 1, ["B-PER"], source)
    decide("ben", 50, 0, ["I-LOC"], source)


def test_only_decided_words_change_in_parquet(decide: Decide, table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=25)
    decided(decide, table)
    done = apply_fixes(str(tmp_path / "out"), str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    assert (done.rows_read, done.rows_changed, done.words_changed) == (4, 3, 4)
    new = pq.read_table(tmp_path / "b.parquet")
    assert new.drop_columns(["ner_tags"]).equals(table.drop_columns(["ner_tags"]))
    assert new.schema.equals(table.schema, check_metadata=True)
    assert changed(table.column("ner_tags").to_pylist(), new.column("ner_tags").to_pylist()) == DECIDED
    assert pd.read_parquet(tmp_path / "b.parquet").shape == table.to_pandas().shape
    again = apply_fixes(str(tmp_path / "out/review"), str(tmp_path / "b.parquet"), str(tmp_path / "c.parquet"))
    assert (again.words_changed, again.words_same) == (0, 4)


def test_only_decided_words_change_in_a_saved_dataset(decide: Decide, table: pa.Table, tmp_path: Path) -> None:
    datasets.Dataset(table).save_to_disk(tmp_path / "saved", num_shards=1)
    decided(decide, table, "data-00000-of-00001.arrow")
    apply_fixes(str(tmp_path / "out"), str(tmp_path / "saved"), str(tmp_path / "fixed"))
    old, new = (datasets.load_from_disk(str(tmp_path / name)) for name in ("saved", "fixed"))
    assert new.features == old.features
    assert changed(old["ner_tags"], new["ner_tags"]) == DECIDED
    assert old.remove_columns("ner_tags").to_pandas().equals(new.remove_columns("ner_tags").to_pandas())
    new.to_parquet(tmp_path / "new.parquet")
    assert pq.read_table(tmp_path / "new.parquet").column("ner_tags").to_pylist() == [*new["ner_tags"]]


def test_conflicts(decide: Decide, table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    decide("anna", 3, 0, ["B-ORG", "I-ORG", "I-ORG"], time="2026-02-01")
    decide("anna", 9, 0, ["B-LOC"])
    decide("ben", 3, 1, ["B-PER"], time="2026-03-01")

    def apply(to: str, **options: Any) -> dict[tuple[int, int], str]:
        apply_fixes(str(tmp_path / "out"), str(tmp_path / "a.parquet"), str(tmp_path / to), **options)
        new = pq.read_table(tmp_path / to).column("ner_tags").to_pylist()
        return changed(table.column("ner_tags").to_pylist(), new)

    with pytest.raises(Refused, match=r"word 1 of id3 .* was tagged I-ORG by anna but B-PER by ben: settle that"):
        apply("refused.parquet")
    assert not (tmp_path / "refused.parquet").exists()
    kept = {(9, 0): "B-LOC"} if TAGS[table.column("ner_tags")[9][0].as_py()] != "B-LOC" else {}
    tags = [TAGS[t] for t in table.column("ner_tags")[3].as_py()[:3]]

    def of_row_3(new: list[str]) -> dict[tuple[int, int], str]:
        return {(3, i): b for i, (a, b) in enumerate(zip(tags, new, strict=True)) if a != b}

    assert apply("left.parquet", conflicts="leave") == kept, "half of a decision was applied"
    assert apply("late.parquet", conflicts="latest") == kept | of_row_3(["B-ORG", "B-PER", "I-ORG"])
    assert apply("anna.parquet", reviewers=["anna"]) == kept | of_row_3(["B-ORG", "I-ORG", "I-ORG"])
    with pytest.raises(Refused, match=r"--reviewer cora: no decisions by this name; there are some by anna, ben"):
        apply("cora.parquet", reviewers=["cora"])
    with pytest.raises(Refused, match="--conflicts x"):
        apply("x.parquet", conflicts="x")


def test_what_does_not_match_is_refused(decide: Decide, table: pa.Table, tmp_path: Path) -> None:
    decide("anna", 3, 0, ["B-ORG", "I-ORG"], words=("other", "words"))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(Refused, match="word 0 of id3 is 'other' in the labels"):
        apply_fixes(str(tmp_path / "out"), str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="has no decisions: run tokloss review"):
        apply_fixes(str(tmp_path / "empty"), str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    (tmp_path / "file.csv").write_text("x")
    with pytest.raises(Refused, match="for an output that was reviewed"):
        apply_fixes(str(tmp_path / "file.csv"), str(tmp_path / "a.parquet"), str(tmp_path / "b"), reviewers=["anna"])


@pytest.mark.parametrize("format", ["csv", "conll", "label-studio"])
def test_export_of_what_was_reviewed(decide: Decide, table: pa.Table, tmp_path: Path, format: str) -> None:
    (tmp_path / "s").mkdir()
    source = mining_outputs.demo_sentences(tmp_path / "s", 0, 60)
    scored = mining_outputs.score_demo(tmp_path / "s", source)
    decided(decide, table, "rows.parquet")
    (tmp_path / "out/review").rename(scored / "review")
    file = tmp_path / "reviewed"
    assert export(str(scored), str(file), format, reviewed=True) == 4
    if format == "label-studio":
        tasks = json.loads(file.read_bytes())
        for task in tasks:
            (review,) = (p for p in task["predictions"] if p["model_version"] == "review")
            task["annotations"] = [{"was_cancelled": False, "result": review["result"]}]
        file.write_text(json.dumps(tasks))
    result = CliRunner().invoke(app, ["apply-fixes", str(file), "--to", str(source), "-o", str(tmp_path / "b.parquet")])
    assert result.exit_code == 0, result.output
    new = pq.read_table(tmp_path / "b.parquet").column("ner_tags").to_pylist()
    assert (
        changed(table.column("ner_tags").to_pylist(), new).items()
        >= {k: v for k, v in DECIDED.items() if k[0] != 50}.items()
    )
    assert export(str(scored), str(tmp_path / "others"), format, reviewed=False) == 56
    assert export(str(scored), str(tmp_path / "worst"), format, worst=60, reviewed=False) == 56
    result = CliRunner().invoke(app, ["export", str(scored), "-f", format, "-o", str(tmp_path / "x"), "--reviewed"])
    assert "Wrote 4 sentences" in result.output
