"""Several models in one pass write what each would write by itself, whatever happens in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support import models
from tests.support.inline import write_jsonl
from tests.support.tiny import MAX_LENGTH, SENTENCES, TAGS, row
from tests.support.watchers import StopAfter
from tests.support.without_ray import take_ray_away
from tokloss_ray import RunSummary, ScoreConfig, diff, score
from tokloss_ray.cli.views.summary import print_summaries
from tokloss_ray.errors import Interrupted, JobFailed, Refused, TooManyBadRows
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.status import read_status
from tokloss_ray.output.verify import verify
from tokloss_ray.scoring.job import _OF_THE_MODEL, Job
from tokloss_ray.scoring.on_ray import workers
from tokloss_ray.scoring.stages import scorer
from tokloss_ray.scoring.watcher import Watcher
from tokloss_ray.storage.sealed import unsealed

Files = dict[str, Any]
TIMES = ("seconds", "device_wait", "storage_retries")


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    take_ray_away(monkeypatch)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` and `b` have one tokenizer; `other` has another, and `turned` the tags in another order."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, seed in (("a", 0), ("b", 1)):
        models.build("bert", folder / name, SENTENCES, TAGS, seed=seed, max_length=MAX_LENGTH)
    models.build("roberta", folder / "other", [*SENTENCES, ["Rom", "ist", "weit"]], TAGS, max_length=MAX_LENGTH)
    models.build("bert", folder / "turned", SENTENCES, TAGS[::-1], max_length=MAX_LENGTH)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        rows = [row(*SENTENCES[i % 3], tags=[TAGS[(number + i) % 4]] * len(SENTENCES[i % 3])) for i in range(40)]
        rows = [{**r, "lang": "de" if i % 2 else "en", "pos": r["ner_tags"][::-1]} for i, r in enumerate(rows)]
        rows[7 + number] = row(lang="de", pos=[])
        write_jsonl(folder / f"{number}.jsonl", rows)
    return folder


Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(checkpoints: Path, corpus: Path, tmp_path: Path) -> Settings:
    def make(*names: str, output: str = "out", **more: Any) -> dict[str, Any]:
        model = [str(checkpoints / name) for name in names]
        common = {"input": str(corpus), "shard_tokens": 100, "max_error_rate": 0.1, "partition_by": "lang"}
        return {"model": model, "output": str(tmp_path / output), **common, **more}

    return make


def several(settings: dict[str, Any], watcher: Watcher | None = None) -> list[RunSummary]:
    return score(ScoreConfig.several(**settings), watcher)


def alone(settings: dict[str, Any], watcher: Watcher | None = None) -> RunSummary:
    (config,) = ScoreConfig.several(**settings)
    return score(config, watcher)


def files(output: Path) -> Files:
    """Every file of an output, records and `_run.json` without what differs from run to run."""
    found: Files = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        content: Any = path.read_bytes()
        if path.name == "_run.json":
            content = unsealed(content)
            del content["settings"]["output"]
        elif path.parent.name == "_commits":
            content = {name: value for name, value in unsealed(content).items() if name not in TIMES}
        found[str(path.relative_to(output))] = content
    return found


@pytest.fixture(scope="module")
def separate(checkpoints: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """What a run of each model by itself writes."""
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        take_ray_away(patched)
        for name in ("a", "b", "other", "turned"):
            output = tmp_path_factory.mktemp("separate") / name
            config = ScoreConfig(
                model=checkpoints / name, input=corpus, output=output, shard_tokens=100, max_error_rate=0.1,
                partition_by="lang",
            )  # fmt: skip
            score(config)
            found[name] = files(output)
    return found


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    real = workers.read_unit

    def counted(job: Any, unit: Any) -> Any:
        read.append(unit.number)
        return real(job, unit)

    monkeypatch.setattr(workers, "read_unit", counted)
    return read


def test_two_models_equal_separate_runs(
    settings: Settings, separate: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    one, other = several(settings("a", "b"))
    assert files(tmp_path / "out" / "a") == separate["a"]
    assert files(tmp_path / "out" / "b") == separate["b"]
    assert read == sorted(set(read)), "each unit is read once"
    assert (one.totals.rows, other.totals.rows) == (120, 120)
    assert one.new_shards == other.new_shards > 5
    assert (one.output, other.output) == (str(tmp_path / "out" / "a"), str(tmp_path / "out" / "b"))
    assert one.totals.mean_loss != other.totals.mean_loss
    assert diff(one.output, other.output).matched.rows == 117
    for summary in (one, other):
        assert not verify(summary.output).problems
    with pytest.raises(Refused, match=r"out is not an output .* but holds some: name \S+/out/a and \S+/out/b$"):
        read_status(str(tmp_path / "out"))
    console = Console(record=True, width=200)
    print_summaries(console, [one, other])
    said = console.export_text()
    assert f"diff {one.output} {other.output}" in said
    assert said.count(" 120 ") == 2


@pytest.mark.parametrize("names", [("a", "other", "b"), ("a", "turned")])
def test_models_that_do_not_encode_alike(
    names: tuple[str, ...], settings: Settings, separate: dict[str, Files], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Those that do share the reading; each other one reads by itself."""
    read = count_reads(monkeypatch)
    several(settings(*names))
    for name in names:
        assert files(tmp_path / "out" / name) == separate[name]
    assert len(read) == 2 * len(set(read))


@pytest.mark.parametrize(
    "attempts",
    [
        [(["a"], 3), (["a", "b"], None)],
        [(["a", "b"], 1), (["a", "b"], None)],
        [(["a", "b"], 4), (["b"], 2), (["a"], None), (["b", "a"], None)],
        [(["a"], None), (["a", "b"], 3), (["a", "b"], None)],
    ],
)
def test_one_and_several_resume_each_other(
    attempts: list[tuple[list[str], int | None]], settings: Settings, separate: dict[str, Files], tmp_path: Path
) -> None:
    """Whoever has committed a shard, nobody scores it again."""
    commits = []

    class Counting(StopAfter):
        def committed(self, record: CommitRecord) -> None:
            commits.append((record.fingerprint, record.shard))
            super().committed(record)

    for names, shards in attempts:
        watcher = Counting(shards or 10**6)
        outputs = [str(tmp_path / "out" / name) for name in names]
        if shards is None:
            several(settings(*names) | {"output": outputs}, watcher)
        else:
            with pytest.raises(Interrupted):
                several(settings(*names) | {"output": outputs}, watcher)
    assert len(commits) == len(set(commits))
    for name in ("a", "b"):
        assert files(tmp_path / "out" / name) == separate[name]


def test_a_death_between_two_commits_of_a_shard(
    settings: Settings, separate: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a has committed its shard, b has not."""
    died: list[str] = []

    def die(name: str, subject: str = "") -> None:
        if name == "commit.record" and subject == "000000-002" and not died:
            died.append(subject)
            raise KeyboardInterrupt

    monkeypatch.setattr("tokloss_ray.scoring.stages.commit.fault_point", die)
    with pytest.raises(KeyboardInterrupt):
        several(settings("a", "b"))
    there = [(tmp_path / "out" / name / "_commits" / "000000-002.json").exists() for name in ("a", "b")]
    assert there == [True, False]
    several(settings("a", "b"))
    for name in ("a", "b"):
        assert files(tmp_path / "out" / name) == separate[name]


def test_a_model_that_fails_does_not_end_the_other(
    settings: Settings, separate: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scorer.load_model

    def load(job: Any) -> Any:
        if job.output.endswith("/a"):
            raise JobFailed("the weights are gone")
        return real(job)

    with monkeypatch.context() as broken:
        broken.setattr(scorer, "load_model", load)
        with pytest.raises(JobFailed, match=r"out/a: the weights are gone; \S+/out/b is finished$") as caught:
            several(settings("a", "b"))
    assert "Traceback" in caught.value.detail
    assert files(tmp_path / "out" / "b") == separate["b"]
    assert not (tmp_path / "out" / "a" / "_SUCCESS").exists()
    one, other = several(settings("a", "b"))
    assert (one.finished_before, other.finished_before) == (False, True)
    assert files(tmp_path / "out" / "a") == separate["a"]


def test_both_fail(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(job: Any) -> Any:
        raise JobFailed("no memory")

    monkeypatch.setattr(scorer, "load_model", load)
    with pytest.raises(JobFailed, match=r"^\S+/out/a: no memory; \S+/out/b: no memory$"):
        several(settings("a", "b"))
    with pytest.raises(JobFailed, match=r"^no memory$"):
        alone(settings("a", output="alone"))


def test_too_many_bad_rows_of_one(
    settings: Settings, checkpoints: Path, tmp_path: Path, separate: dict[str, Files]
) -> None:
    """`few` lacks a tag that some rows have."""
    models.build("bert", tmp_path / "few", SENTENCES, TAGS[:-1], max_length=MAX_LENGTH)
    given = settings("a", tags=None)
    given["model"] = [*given["model"], str(tmp_path / "few")]
    with pytest.raises(TooManyBadRows, match=r"^\S+/out/few: 31 of 120 rows cannot be scored"):
        several(given)
    assert files(tmp_path / "out" / "a") == separate["a"]
    assert not (tmp_path / "out" / "few" / "_SUCCESS").exists()


def test_two_label_columns(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model for each, in one pass."""
    read = count_reads(monkeypatch)
    several(settings("a", "b", labels_column=["ner_tags", "pos"]))
    assert len(read) == 2 * len(set(read))
    alone(settings("b", output="alone", labels_column="pos"))
    assert files(tmp_path / "out" / "b") == files(tmp_path / "alone")


def test_files_are_added_to_each(
    settings: Settings, corpus: Path, checkpoints: Path, tmp_path: Path, separate: dict[str, Files]
) -> None:
    """a has the first two files already, b nothing."""
    early = [str(corpus / f"{number}.jsonl") for number in range(2)]
    alone(settings("a", output="out/a", input=early))
    several(settings("a", "b", append=True))
    found = files(tmp_path / "out" / "b")
    del found["_run.json"]["settings"]["append"]
    assert found == separate["b"]
    alone(settings("a", output="grown", input=early))
    alone(settings("a", output="grown", append=True))
    grown = files(tmp_path / "grown")
    assert files(tmp_path / "out" / "a") == grown
    assert "_plan-001.parquet" in grown


def test_overwriting(settings: Settings, separate: dict[str, Files], tmp_path: Path) -> None:
    several(settings("a", "b", keep="lang", partition_by=()))
    with pytest.raises(Refused, match="belongs to another run"):
        several(settings("a", "b"))
    several(settings("a", "b", overwrite=True))
    for name in ("a", "b"):
        found = files(tmp_path / "out" / name)
        del found["_run.json"]["settings"]["overwrite"]
        assert found == separate[name]


def test_nothing_is_written_where_one_is_refused(settings: Settings, tmp_path: Path) -> None:
    given = settings("a", "b")
    shutil.copytree(given["model"][1], tmp_path / "no-tags")
    config = tmp_path / "no-tags" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["BertModel"]}))
    with pytest.raises(Refused, match="not a token-classification model"):
        several(given | {"model": [given["model"][0], str(tmp_path / "no-tags")]})
    assert not (tmp_path / "out").exists()


def test_what_one_pass_cannot_do(settings: Settings, tmp_path: Path) -> None:
    one, other = ScoreConfig.several(**settings("a", "b"))
    with pytest.raises(Refused, match="runs in one pass share their --limit"):
        score([one, other.model_copy(update={"limit": 3})])
    with pytest.raises(Refused, match="two runs would write to"):
        score([one, other.model_copy(update={"output": one.output + "/"})])
    with pytest.raises(Refused, match=f"{one.output}/b is inside"):
        score([one, other.model_copy(update={"output": f"{one.output}/b"})])
    with pytest.raises(Refused, match="no runs"):
        score([])
    alone(settings("a"))
    with pytest.raises(Refused, match=f"{tmp_path}/out is the output of one model"):
        score([one, other])


def test_what_reading_and_encoding_depend_on_keeps_runs_apart() -> None:
    """A field that is new keeps them apart until somebody says that it does not matter there."""
    of_encoding = {
        "columns", "partition_by", "tags", "data_tags", "tokenizer_json", "tokenizers_version", "embedding_rows",
        "max_length", "overflow", "overlap", "context", "label_all_subtokens", "shard_tokens",
    }  # fmt: skip
    assert {field.name for field in fields(Job)} >= _OF_THE_MODEL | of_encoding
    assert not _OF_THE_MODEL & of_encoding
