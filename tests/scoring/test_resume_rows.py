"""Whatever happens between two attempts, a row is scored or in errors/, once; or the attempt is refused."""

from __future__ import annotations

import json
import random
import shutil
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import models
from tests.support.inline import Inline, score_inline, write_jsonl
from tests.support.records import a_record
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.errors import JobFailed, Refused, TokLossError
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.output.done import Done
from tokloss_ray.output.record import CommitRecord
from tokloss_ray.output.records import read_records
from tokloss_ray.output.verify import verify
from tokloss_ray.scoring.on_ray import workers as stages
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer
from tokloss_ray.storage.sealed import sealed, unsealed

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
ROWS = 60


class Killed(Exception):
    """In place of SIGKILL: the attempt ends at once."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentences = pq.read_table(DATA, columns=["tokens"]).slice(0, 200)["tokens"].to_pylist()
    return models.build("bert", tmp_path_factory.mktemp("resume") / "model", sentences, TAGS, max_length=48)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows, three of them bad, as text (whose units know no row count), as Parquet, and in small files."""
    folder = tmp_path_factory.mktemp("corpora")
    rows = pq.read_table(DATA, columns=["tokens", "ner_tags"]).slice(40, ROWS).to_pylist()
    rows[7]["tokens"] = []
    rows[30]["ner_tags"] = rows[30]["ner_tags"][1:]
    for row in rows:
        row["ner_tags"] = [TAGS[tag] for tag in row["ner_tags"]]
    write_jsonl(folder / "text.jsonl", [*rows[:20], *rows[21:], rows[20]])
    with (folder / "text.jsonl").open("a") as file:
        file.write("no json\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet", row_group_size=25)
    (folder / "files").mkdir()
    for i, start in enumerate(range(0, ROWS, 4)):
        if i % 2:
            write_jsonl(folder / "files" / f"{i:02d}.jsonl", rows[start : start + 4])
        else:
            pq.write_table(pa.Table.from_pylist(rows[start : start + 4]), folder / "files" / f"{i:02d}.parquet")
    return {"text": folder / "text.jsonl", "table": folder / "table.parquet", "files": folder / "files"}


def changed(tokenizer_json: str, seed: int) -> RowTokenizer:
    """A tokenizer that answers differently, as another version might: some words become more or fewer tokens."""
    content = json.loads(tokenizer_json)
    vocabulary = content["model"]["vocab"]
    whole = [token for token in vocabulary if len(token) > 2 and token[0] not in "[#"]
    for token in random.Random(seed).sample(whole, len(whole) * 3 // 4):
        del vocabulary[token]
    return RowTokenizer(json.dumps(content))


def config_of(tiny: Path, source: Path, output: Path, **options: Any) -> ScoreConfig:
    return ScoreConfig(
        model=str(tiny),
        input=str(source),
        output=str(output),
        **({"shard_tokens": 200, "max_error_rate": 0.2} | options),
    )


def attempt(config: ScoreConfig, kill_after: int | None, tokenizer: RowTokenizer | None) -> Inline | None:
    """An attempt that is killed after so many commits; None if it was."""
    left = [kill_after]

    def count(record: CommitRecord) -> None:
        if left[0] is not None:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed

    try:
        return score_inline(config, tokenizer=tokenizer, committed=count)
    except Killed:
        return None


KINDS = st.sampled_from(["text", "table", "files"])
ATTEMPT = st.tuples(
    st.integers(1, 6), st.sampled_from([20, 100, 4000]), st.sampled_from([0.2, 0.5]), st.sampled_from([0, 0, 0, 1, 2])
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=KINDS, attempts=st.lists(ATTEMPT, min_size=1, max_size=3), last=st.sampled_from([0, 0, 1]))
def test_each_row_once_or_refused(
    kind: str, attempts: list[tuple[int, int, float, int]], last: int, tiny: Path, corpora: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Random kills between commits, settings that may change, and a tokenizer that changes between attempts."""
    output = tmp_path_factory.mktemp("out") / "out"
    source, plain = corpora[kind], make_plan(preflight(config_of(tiny, corpora[kind], output)), False, False)
    of_seed = {0: None} | {seed: changed(plain.job.tokenizer_json, seed) for seed in (1, 2)}
    done, refused = None, ""
    try:
        for kill_after, batch_tokens, rate, seed in attempts:
            config = config_of(tiny, source, output, batch_tokens=batch_tokens, max_error_rate=rate)
            done = attempt(config, kill_after, of_seed[seed])
        done = attempt(config_of(tiny, source, output), None, of_seed[last])
    except TokLossError as error:
        refused = str(error)
    if refused:
        assert "--overwrite" in refused
        assert not (output / "_SUCCESS").exists()
        assert len({seed for *_, seed in attempts} | {last}) > 1, "nothing had changed"
        return
    assert done is not None
    expected = ROWS + (kind == "text")
    assert done.totals.rows == done.totals.scored_rows + done.totals.error_rows == expected
    rows = [row for row in done.rows if row["window"] == 0] + done.errors
    keys = [(row["source"], row["source_row"]) for row in rows]
    assert len(keys) == len(set(keys)) == expected
    assert verify(str(output)).problems == []


@pytest.mark.parametrize("kind", ["text", "table", "files"])
def test_other_cuts_are_refused_and_nothing_is_written(
    kind: str, tiny: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    config = config_of(tiny, corpora[kind], tmp_path / "out")
    assert attempt(config, 5, None) is None
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    other = changed(make_plan(preflight(config), False, False).job.tokenizer_json, 1)
    with pytest.raises(JobFailed, match=r"shard 000000-00\d would now be different.*--overwrite"):
        score_inline(config, tokenizer=other)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert score_inline(config).totals.error_rows == 2 + (kind == "text")


def test_another_version_of_tokenizers(
    tiny: Path, corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused while the run is not finished; a finished one needs no tokens."""
    config = config_of(tiny, corpora["table"], tmp_path / "out")
    assert attempt(config, 2, None) is None
    file = tmp_path / "out" / "_run.json"
    run = unsealed(file.read_bytes())
    assert run["versions"]["tokenizers"] == version("tokenizers")
    run["versions"]["tokenizers"] = "0.1.2"
    file.write_bytes(sealed(run, indent=1))
    with pytest.raises(
        Refused, match=r"started with tokenizers 0\.1\.2, but .* install tokenizers==0\.1\.2, or .*--overwrite"
    ):
        score_inline(config)
    run["versions"]["tokenizers"] = version("tokenizers")
    file.write_bytes(sealed(run, indent=1))
    score_inline(config)
    run["versions"]["tokenizers"] = "0.1.2"
    file.write_bytes(sealed(run, indent=1))
    assert score_inline(config).totals.rows == ROWS


def test_a_node_with_another_version_refuses(
    tiny: Path, corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_plan(preflight(config_of(tiny, corpora["table"], tmp_path / "out")), False, False).job
    monkeypatch.setattr(stages, "_jobs", lambda ref: (job,))
    monkeypatch.setattr(stages, "version", lambda name: "0.1.2")
    with pytest.raises(JobFailed, match=r"a node has tokenizers 0\.1\.2, but the driver "):
        stages._tokenizer.__wrapped__(None, 0)


def test_shards_that_were_cut_away(tiny: Path, corpora: dict[str, Path], tmp_path: Path) -> None:
    """Fewer shards than were committed: the ones beyond would be lost, or counted twice."""
    job = make_plan(preflight(config_of(tiny, corpora["table"], tmp_path / "out")), False, False)
    unit, tokenizer = job.units[0], RowTokenizer(job.job.tokenizer_json)
    score_inline(config_of(tiny, corpora["table"], tmp_path / "out"))
    records = read_records(str(tmp_path / "out")).values()
    held = {record.index: record.row_range for record in records if record.unit == 0 and record.row_range}
    held[max(held) + 3] = held[max(held)]
    chunks = read_unit(job.job, unit)
    with pytest.raises(JobFailed, match="it would not exist"):
        list(encode_unit(job.job, tokenizer, unit, chunks, held))


# What `verify` finds. A record is changed and sealed again, so that only its meaning is wrong.


@pytest.fixture(scope="module")
def finished(tiny: Path, corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "out"
    score_inline(config_of(tiny, corpora["text"], output))
    return output


def edit(output: Path, shard: str, **changes: Any) -> None:
    path = output / "_commits" / f"{shard}.json"
    path.write_bytes(sealed(unsealed(path.read_bytes()) | changes))


def without_last_row(output: Path) -> None:
    """A row is missing, and the shard's record and file agree on it."""
    record = unsealed((output / "_commits" / "000000-001.json").read_bytes())
    file = record["files"][0]
    path = output / file["path"]
    table = pq.read_table(path, partitioning=None)
    last = table["source_row"][-1].as_py()
    kept = table.filter(pa.array([row != last for row in table["source_row"].to_pylist()]))
    pq.write_table(kept, path, compression="zstd")
    file |= {"rows": kept.num_rows, "bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
    edit(output, "000000-001", files=[file], sequences=kept.num_rows)


def twice(output: Path) -> None:
    """A whole shard once more, under the next number, and the last one's mark moved to it."""
    records = sorted((output / "_commits").glob("*.json"))
    last = unsealed(records[-1].read_bytes())
    edit(output, last["shard"], last=False)
    name = f"{last['shard'].split('-')[0]}-{last['index'] + 1:03d}"
    files = []
    for file in last["files"]:
        path = file["path"].replace(last["shard"], name)
        shutil.copy(output / file["path"], output / path)
        files.append(file | {"path": path})
    copy = last | {"shard": name, "index": last["index"] + 1, "files": files, "errors_file": None}
    (output / "_commits" / f"{name}.json").write_bytes(sealed(copy))


def of_other_rows(output: Path) -> None:
    edit(output, "000000-002", start=0, stop=unsealed((output / "_commits" / "000000-002.json").read_bytes())["rows"])


def of_another_run(output: Path) -> None:
    (file,) = output.glob("scores/000000-001-*.parquet")
    shutil.copy(file, file.with_name("000000-001-ffffff.parquet"))


def record_of_another_run(output: Path) -> None:
    edit(output, "000000-001", fingerprint="ffffff")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without_last_row, "scored rows, but its record says"),
        (twice, "appears more than once"),
        (of_other_rows, "000000-002: it begins at row 0 of its unit"),
        (of_another_run, "000000-001-ffffff.parquet belongs to no shard"),
        (record_of_another_run, "_commits/000000-001.json belongs to another run"),
    ],
)
def test_verify_finds(damage: Any, sentence: str, finished: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    assert verify(str(output)).problems == []
    damage(output)
    problems = verify(str(output)).problems
    assert any(sentence in problem for problem in problems), problems


def test_ranges() -> None:
    def record(unit: int, index: int, start: int, stop: int, last: bool) -> CommitRecord:
        held = {"start": start, "stop": stop, "first_row": start, "last_row": stop - 1, "rows": stop - start}
        return a_record(unit, index, last, **held)

    whole = [record(0, 0, 0, 30, False), record(0, 1, 30, 60, True), record(1, 0, 0, 12, True)]
    assert list(Done(whole).misfits({0: 60, 1: None})) == []
    assert list(Done([whole[0], whole[2]]).misfits({0: 60, 1: None})) == [], "a missing shard is another matter"
    gap = [whole[0], record(0, 1, 40, 60, True)]
    overlap = [whole[0], record(0, 1, 20, 60, True)]
    short = [whole[0], record(0, 1, 30, 48, True)]
    for records, shard in ((gap, "000000-001"), (overlap, "000000-001"), (short, "000000-001")):
        assert [name for name, _ in Done(records).misfits({0: 60})] == [shard]
    assert [name for name, _ in Done(whole).misfits({0: 60})] == ["000001-000"]
    assert next(Done([*whole[:2], record(0, 2, 60, 90, True)]).misfits({0: 90}))[0] == "000000-001"


def test_new_shards_among_old_ones_are_not_written_before_all_fit(
    tiny: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    """Commits come out of order: the first shards are missing, later ones are there."""
    config = config_of(tiny, corpora["table"], tmp_path / "out")
    score_inline(config)
    for shard in ("000000-000", "000000-002"):
        (tmp_path / "out" / "_commits" / f"{shard}.json").unlink()
    (tmp_path / "out" / "_SUCCESS").unlink()
    other = changed(make_plan(preflight(config), False, False).job.tokenizer_json, 1)
    written: list[str] = []
    with pytest.raises(JobFailed, match="would now be different"):
        score_inline(config, tokenizer=other, committed=lambda record: written.append(record.shard))
    assert written == []
    assert score_inline(config).totals.rows == ROWS
    assert verify(str(tmp_path / "out")).problems == []
