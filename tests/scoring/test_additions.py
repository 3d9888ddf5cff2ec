"""Files added to an output with --append: the result is that of one run over all files, whatever happens in between."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, read_rows, score_inline, write_jsonl
from tests.support.tiny import SENTENCES, TAGS, row
from tokloss_ray import ScoreConfig, diff, load, mine
from tokloss_ray.errors import Refused, TokLossError
from tokloss_ray.mining.diff.matching import same_files
from tokloss_ray.output.names import SUCCESS
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.output.run import is_finished, read_run
from tokloss_ray.output.status import read_status
from tokloss_ray.output.verify import verify
from tokloss_ray.scoring import folder as folder_module

Score = Callable[..., Inline]


class Killed(Exception):
    """In place of SIGKILL."""


def add_files(folder: Path, start: int, files: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(start, start + files):
        rows = [row(*SENTENCES[(number + i) % 3], tags=[TAGS[(number + i) % 4]] * 4) for i in range(5)]
        rows = [{**r, "ner_tags": r["ner_tags"][: len(r["tokens"])]} for r in rows]
        if number % 3 == 1:
            rows[2]["ner_tags"] = ["X"] * len(rows[2]["tokens"])
        write_jsonl(folder / f"{number:02d}.jsonl", rows)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    add_files(tmp_path / "in", 0, 6)
    return tmp_path / "in"


@pytest.fixture
def score(model: Path, corpus: Path, tmp_path: Path) -> Score:
    def run(output: str = "out", source: Path | list[str] = corpus, committed: Any = None, **options: Any) -> Inline:
        source = source if isinstance(source, list) else [str(source)]
        settings = {"shard_tokens": 60, "max_error_rate": 0.2} | options
        config = ScoreConfig(model=str(model), input=source, output=str(tmp_path / output), **settings)
        return score_inline(config, **({"committed": committed} if committed else {}))

    return run


def contents(result: Inline) -> list[list[Any]]:
    """Rows by source; losses may differ in their last digits, as micro-batches do."""
    kept = ("source", "source_row", "words", "labels", "predicted_label")
    rows = [[*(r[name] for name in kept), [round(x, 4) for x in r["loss"]]] for r in result.rows]
    return sorted([*rows, *([e["source"], e["source_row"], e["reason"]] for e in result.errors)], key=lambda r: r[:2])


def test_adding_equals_one_run_over_all(score: Score, corpus: Path, tmp_path: Path) -> None:
    score()
    before = {p: p.read_bytes() for p in (tmp_path / "out" / "scores").rglob("*.parquet")}
    for start in (6, 9):
        add_files(corpus, start, 3)
        added = score(append=True)
    every = score("whole")
    assert contents(added) == contents(every)
    assert added.totals.rows == every.totals.rows == 60
    assert added.totals.errors == every.totals.errors
    assert {p: p.read_bytes() for p in before} == before
    assert verify(str(tmp_path / "out")).problems == []
    run = read_run(str(tmp_path / "out"))
    assert run is not None
    assert [g.units for g in run.generations] == [run.plan.units, 1, 1]
    state = read_status(str(tmp_path / "out"))
    assert (state.finished, state.missing, state.units) == (True, [], run.units)
    # The same command, with and without the option, finds nothing to do.
    for append in (True, False):
        assert score(append=append).totals.shards == added.totals.shards


def test_only_the_new_files_need_to_be_named(score: Score, corpus: Path, tmp_path: Path) -> None:
    score()
    add_files(tmp_path / "new", 6, 2)
    added = score(source=tmp_path / "new", append=True)
    assert {r["source"] for r in added.rows} == {f"{i:02d}.jsonl" for i in range(8)}
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.parametrize("after", range(1, 4))
def test_killed_while_files_are_added(score: Score, corpus: Path, tmp_path: Path, after: int) -> None:
    score(committed=None)
    add_files(corpus, 6, 6)
    left = [after]

    def kill(record: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    with pytest.raises(Killed):
        score(append=True, committed=kill)
    assert not is_finished(str(tmp_path / "out"))
    done = score(append=after % 2 == 0)  # what was begun goes on without the option
    assert contents(done) == contents(score("whole"))
    assert verify(str(tmp_path / "out")).problems == []


@pytest.mark.parametrize("point", ["append.begin", "append.unfinished", "append.planned", "append.written"])
def test_killed_while_the_plan_grows(
    score: Score, corpus: Path, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score()
    add_files(corpus, 6, 2)

    def die(at: str, name: str = "") -> None:
        if at == point:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "fault_point", die)
        with pytest.raises(Killed):
            score(append=True)
    assert contents(score(append=True)) == contents(score("whole"))
    assert verify(str(tmp_path / "out")).problems == []


def test_an_unfinished_run_is_finished_with_what_is_added(score: Score, corpus: Path, tmp_path: Path) -> None:
    def kill(record: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        score(committed=kill)
    add_files(corpus, 6, 2)
    assert contents(score(append=True)) == contents(score("whole"))


def test_a_new_output_takes_everything(score: Score) -> None:
    assert contents(score(append=True)) == contents(score("whole"))


def test_what_cannot_be_added_is_refused(score: Score, corpus: Path, tmp_path: Path, model: Path) -> None:
    def refusal(**options: Any) -> str:
        before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        with pytest.raises(Refused) as caught:
            score(**options)
        assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
        return str(caught.value)

    score()
    old = (corpus / "03.jsonl").read_bytes()
    add_files(corpus, 6, 1)
    assert "it differs in input (06.jsonl)" in refusal()
    assert "it differs in label-all-subtokens" in refusal(append=True, label_all_subtokens=True)
    (corpus / "03.jsonl").write_bytes(old + old)
    assert refusal(append=True).startswith(f"03.jsonl is no longer what {tmp_path / 'out'} has of it")
    shutil.copy2(corpus / "03.jsonl", tmp_path / "kept")
    (corpus / "03.jsonl").unlink()
    score(append=True)
    add_files(corpus, 7, 2)
    assert "07.jsonl and 1 more file are not in" in refusal()
    (corpus / "07.jsonl").unlink()
    (corpus / "08.jsonl").unlink()
    assert "03.jsonl is in" in refusal()
    (tmp_path / "out" / "_inputs-001.parquet").unlink()
    assert "_inputs.parquet is lost or damaged" in refusal(append=True)
    assert verify(str(tmp_path / "out")).problems == ["_inputs.parquet is damaged or missing"]


def test_files_that_are_gone_before_they_were_scored(score: Score, corpus: Path, tmp_path: Path) -> None:
    def kill(record: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        score(committed=kill)
    add_files(tmp_path / "new", 6, 1)
    with pytest.raises(TokLossError, match=r"0\d\.jsonl is not scored yet, and not in --input any more: name it too"):
        score(source=tmp_path / "new", append=True)


def test_a_generation_can_be_mined_alone(score: Score, corpus: Path, tmp_path: Path) -> None:
    first = score()
    add_files(corpus, 6, 2)
    score(append=True)
    output = str(tmp_path / "out")
    assert {r["source"] for r in load(output, where=["generation=1"]).to_pylist()} == {"06.jsonl", "07.jsonl"}
    tables = mine(output, where=["generation=0"])
    assert tables["tags"].column("count").to_pylist() != []
    assert sum(tables["tags"].column("count").to_pylist()) == first.totals.labels


def test_overwrite_forgets_what_was_added(score: Score, corpus: Path, tmp_path: Path) -> None:
    score()
    add_files(corpus, 6, 2)
    score(append=True)
    score(overwrite=True)
    assert {p.name for p in (tmp_path / "out").glob("*.parquet")} == {"_plan.parquet", "_inputs.parquet"}
    assert (tmp_path / "out" / SUCCESS).exists()
    assert pq.read_table(tmp_path / "out" / "_inputs.parquet").num_rows == 8


def test_outputs_with_additions_are_compared_by_place(score: Score, corpus: Path, tmp_path: Path) -> None:
    """Whether files came at once or later; and not, if one output lacks some."""
    score()
    add_files(corpus, 6, 2)
    score(append=True)
    score("whole")
    add_files(corpus, 8, 1)
    score("more")
    out, whole, more = (open_outputs(str(tmp_path / name)) for name in ("out", "whole", "more"))
    assert same_files(out, whole)
    assert not same_files(out, more)
    rows = {(r["source"], r["source_row"]) for r in read_rows(str(tmp_path / "out"))}
    assert diff(str(tmp_path / "out"), str(tmp_path / "whole")).matched.rows == len(rows)
