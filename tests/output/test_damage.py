"""Bytes that change on the way: `verify` names the file, and the same command does no more again than it must."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import models
from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.output.records import read_records
from tokloss_ray.output.run import read_run
from tokloss_ray.output.status import read_status
from tokloss_ray.output.verify import verify
from tokloss_ray.storage.sealed import DamagedError, sealed, unsealed

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Settings and output of a run with two units, partitions, several shards and bad rows."""
    folder = tmp_path_factory.mktemp("damage")
    table = pq.read_table(DATA)
    model = models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS, max_length=64)
    rows = table.slice(100, 160).to_pylist()
    for number, row in enumerate(rows):
        row["part"] = "ab"[number % 2]
    for bad in (17, 90, 150):
        rows[bad]["ner_tags"] = rows[bad]["ner_tags"][1:]
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:90]), folder / "in" / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[90:]), folder / "in" / "b.parquet")
    settings: dict[str, Any] = {"model": str(model), "input": str(folder / "in"), "shard_tokens": 600}
    settings |= {"partition_by": ["part"], "max_error_rate": 0.1}
    score_inline(ScoreConfig(output=str(folder / "out"), **settings))
    return settings, folder / "out"


@pytest.fixture
def output(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[1], tmp_path / "out"))


def flip(path: Path, rng: random.Random, count: int = 4) -> None:
    """Change some bytes of a file, wherever they are."""
    data = bytearray(path.read_bytes())
    for at in rng.sample(range(len(data)), count):
        data[at] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def scored_again(config: ScoreConfig) -> list[str]:
    """The shards that another attempt scores."""
    shards: list[str] = []
    score_inline(config, committed=lambda record: shards.append(record.shard))
    return shards


def content(output: Path) -> dict[str, bytes]:
    """Data files, without those of the system."""
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*.parquet")}


@pytest.mark.parametrize("seed", range(8))
def test_each_of_ten_damaged_files_is_named(seed: int, finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Data files of both kinds, records, the plan, `_run.json` and `_SUCCESS`, ten of them for each seed."""
    rng = random.Random(seed)
    kinds = {
        "scores": sorted(finished[1].glob("scores/**/*.parquet")),
        "errors": sorted(finished[1].glob("errors/*.parquet")),
        "_commits": sorted(finished[1].glob("_commits/*.json")),
        "plan": [finished[1] / "_plan.parquet", finished[1] / "_inputs.parquet"],
        "run": [finished[1] / "_run.json"],
        "success": [finished[1] / "_SUCCESS"],
    }
    output = Path(shutil.copytree(finished[1], tmp_path / "out"))
    for number in range(10):
        kind = rng.choices(list(kinds), weights=[4, 1, 3, 1, 1, 1])[0]
        victim = output / rng.choice(kinds[kind]).relative_to(finished[1])
        before = victim.read_bytes()
        flip(victim, rng, rng.choice([1, 4]))
        try:
            problems = verify(str(output)).problems
        except Refused as error:
            problems = [str(error)]
        assert any(str(victim.relative_to(output)) in problem for problem in problems), (number, victim, problems)
        victim.write_bytes(before)
        (output / "_damaged.json").unlink(missing_ok=True)
    assert verify(str(output)).problems == []


def test_the_damaged_shard_alone_is_scored_again(finished: tuple[dict[str, Any], Path], output: Path) -> None:
    settings, _ = finished
    before = content(output)
    victim = sorted(output.glob("scores/part=a/*.parquet"))[1]
    flip(victim, random.Random(1))
    found = verify(str(output))
    assert (found.beyond_repair, len(found.redo)) == (0, 1)
    (shard,) = found.redo
    assert scored_again(ScoreConfig(output=str(output), **settings)) == [shard]
    assert verify(str(output)).problems == []
    assert not (output / "_damaged.json").exists()
    assert content(output).keys() == before.keys()
    assert content(output) == before, "what was scored again is not the same"


def test_a_lost_or_cut_file_is_scored_again_without_verify(finished: tuple[dict[str, Any], Path], output: Path) -> None:
    """Both before `_SUCCESS` and after it: today's listing tells."""
    settings, _ = finished
    config = ScoreConfig(output=str(output), **settings)
    for done in (True, False):
        files = sorted(output.glob("scores/**/*.parquet"))
        files[0].unlink()
        files[-1].write_bytes(files[-1].read_bytes()[:-20])
        (output / "_commits" / "000001-000.json").write_text('{"shard"')
        if not done:
            (output / "_SUCCESS").unlink()
        again = scored_again(config)
        assert 2 <= len(again) <= 3
        assert "000001-000" in again
        assert verify(str(output)).problems == []


@pytest.mark.parametrize("name", ["_plan.parquet", "_inputs.parquet"])
def test_a_plan_that_is_lost_is_made_again(finished: tuple[dict[str, Any], Path], output: Path, name: str) -> None:
    settings, _ = finished
    before = (output / name).read_bytes()
    for damage in (lambda p: p.unlink(), lambda p: flip(p, random.Random(2))):
        damage(output / name)
        assert any(f"{name} is damaged" in problem for problem in verify(str(output)).problems)
        assert score_inline(ScoreConfig(output=str(output), **settings)).totals.rows == 160
        assert (output / name).read_bytes() == before
        assert verify(str(output)).problems == []


def test_readers_say_what_is_damaged_and_status_counts_it_as_missing(output: Path) -> None:
    flip(output / "_commits" / "000000-001.json", random.Random(3))
    with pytest.raises(JobFailed, match=r"_commits/000000-001\.json is damaged .* same tokloss score command"):
        read_records(str(output))
    assert read_status(str(output)).missing == ["000000-001"]
    flip(output / "_run.json", random.Random(3))
    with pytest.raises(Refused, match=r"_run\.json is damaged"):
        read_run(str(output))


def test_a_record_under_another_name_is_damaged(output: Path) -> None:
    shutil.copy(output / "_commits" / "000000-000.json", output / "_commits" / "000000-001.json")
    assert any("it is the record of shard 000000-000" in problem for problem in verify(str(output)).problems)


def test_every_byte_counts() -> None:
    data = sealed({"a": 1.5, "ü": ["x", None], "n": 12345678901234567890})
    assert unsealed(data, strict=True) == {"a": 1.5, "ü": ["x", None], "n": 12345678901234567890}
    assert json.loads(data)["a"] == 1.5
    for at in range(len(data)):
        for bit in range(8):
            other = bytearray(data)
            other[at] ^= 1 << bit
            with pytest.raises(DamagedError):
                unsealed(bytes(other), strict=True)


def test_a_lone_damaged_or_lost_record_is_repaired(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Its files belong to no shard then, and its rows are missing: all that goes with the record."""
    settings, whole = finished
    other = unsealed((whole / "_commits" / "000000-002.json").read_bytes()) | {"fingerprint": "ffffff"}
    for number, damage in enumerate(
        [
            lambda file: flip(file, random.Random(1), 1),
            lambda file: file.unlink(),
            lambda file: file.write_bytes(sealed(other)),
        ]
    ):
        output = Path(shutil.copytree(whole, tmp_path / str(number)))
        damage(output / "_commits" / "000000-002.json")
        flip(sorted(output.glob("scores/**/000001-000-*.parquet"))[0], random.Random(2))
        found = verify(str(output))
        assert found.problems
        assert found.beyond_repair == 0, found.problems
        again = scored_again(ScoreConfig(output=str(output), **settings))
        assert again == ["000000-002", "000001-000"]
        assert verify(str(output)).problems == []


def test_what_no_record_names_goes(finished: tuple[dict[str, Any], Path], output: Path) -> None:
    """A file of an attempt in which a row did not fit into memory, which it did in the end; and a late record."""
    settings, _ = finished
    errors = next((output / "errors").iterdir())
    late = errors.with_name(errors.name.replace(errors.name[:10], "000000-001"))
    shutil.copy(errors, late)
    record = unsealed((output / "_commits" / "000000-001.json").read_bytes())
    stranger = output / "_commits" / "000000-099.json"
    stranger.write_bytes(sealed(record | {"shard": "000000-099", "fingerprint": "ffffff"}))
    found = verify(str(output))
    assert (len(found.problems), found.beyond_repair) == (2, 0)
    assert scored_again(ScoreConfig(output=str(output), **settings)) == []
    assert not late.exists()
    assert not stranger.exists()
    assert verify(str(output)).problems == []
    (output / "scores" / "notes.parquet").write_text("mine")
    (output / "_SUCCESS").unlink()
    with pytest.raises(JobFailed, match=r"scores/notes\.parquet belongs to no shard: move it away and run again"):
        score_inline(ScoreConfig(output=str(output), **settings))
    assert (output / "scores" / "notes.parquet").exists()
