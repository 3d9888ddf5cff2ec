"""`tokloss verify` finds what is wrong with an output, and nothing in one that is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support import models
from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.cli import app as cli
from tokloss_ray.demo import DATA
from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.output.verify import verify
from tokloss_ray.storage.sealed import sealed, unsealed

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two input files, partitions, windows, some bad rows, several shards."""
    folder = tmp_path_factory.mktemp("verify")
    table = pq.read_table(DATA)
    model = models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS, max_length=24)
    rows = table.slice(100, 200).to_pylist()
    for bad in (17, 90, 150):
        rows[bad]["ner_tags"] = rows[bad]["ner_tags"][1:]
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:120]), folder / "in" / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[120:]), folder / "in" / "b.parquet")
    settings = {"model": str(model), "input": str(folder / "in"), "id_column": "id", "shard_tokens": 600}
    score_inline(
        ScoreConfig(output=str(folder / "out"), partition_by=["lang"], overlap=8, max_error_rate=0.1, **settings)
    )
    return folder / "out"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.fixture(autouse=True)
def a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are decoded in many pieces, as large ones are."""
    monkeypatch.setattr("tokloss_ray.output.verify_unit._TOKENS", 40)


def test_a_good_output_has_no_problems(finished: Path) -> None:
    found = verify(str(finished))
    assert found.problems == []
    assert (found.totals.rows, found.totals.error_rows) == (200, 3)
    assert found.totals.sequences > found.totals.scored_rows, "no windows"
    assert found.repeated_ids == 0
    assert found.files == len(list(finished.rglob("*.parquet"))) - 2  # plan and inputs


def a_file(output: Path, folder: str = "scores") -> Path:
    return sorted((output / folder).rglob("*.parquet"))[1 if folder == "scores" else 0]


def rewrite(output: Path, change: Callable[[pa.Table], pa.Table], folder: str = "scores") -> str:
    """Change a file, and let its record say what it is now, as only the content is to be wrong."""
    path = a_file(output, folder)
    pq.write_table(change(pq.read_table(path, partitioning=None)), path, compression="zstd")
    relative = str(path.relative_to(output))
    for record in (output / "_commits").iterdir():
        content = unsealed(record.read_bytes())
        for file in [*content["files"], content["errors_file"] or {}]:
            if file.get("path") == relative:
                file["bytes"] = path.stat().st_size
                file["sha256"] = sha256(path.read_bytes()).hexdigest()
                file["rows"] = pq.read_metadata(path).num_rows
                record.write_bytes(sealed(content))
    return relative


def changed(name: str, change: Callable[[list[Any]], Any]) -> Callable[[pa.Table], pa.Table]:
    """A table with the first value of one column changed."""

    def apply(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[0] = change(values[0])
        field = table.schema.field(name)
        return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))

    return apply


CONTENT: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "short-list": (changed("loss", lambda loss: loss[1:]), "loss is not as long as input_ids"),
    "short-words": (changed("word_ids", lambda ids: ids[1:]), "word_ids is not as long"),
    "nan": (changed("loss", lambda loss: [*loss[:1], float("nan"), *loss[2:]]), "a loss is not finite"),
    "ignored": (changed("loss", lambda loss: [1.0, *loss[1:]]), "a position without a label has a loss"),
    "sum": (changed("total_loss", lambda total: total + 1), "total_loss is wrong"),
    "labels": (changed("num_labels", lambda count: count + 1), "num_labels is wrong"),
    "source": (changed("source", lambda source: "c.parquet"), "has rows of c.parquet, which is not one of its files"),
    "twice": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "appears more than once"),
    "lost": (lambda t: t.filter(pc.not_equal(t["source_row"], t["source_row"][0])), "119 rows, but the plan says 120"),
    "foreign": (changed("source_row", lambda row: 500), "row 500 is not one of its rows"),
    "scored-and-refused": (changed("source_row", lambda row: 17), "row 17 is scored and in errors"),
    "window": (changed("window", lambda window: 7), "is missing a window"),
}


@pytest.mark.parametrize("name", CONTENT)
def test_wrong_content(output: Path, name: str) -> None:
    change, sentence = CONTENT[name]
    rewrite(output, change)
    assert any(sentence in problem for problem in verify(str(output)).problems), verify(str(output)).problems


def test_wrong_errors(output: Path) -> None:
    rewrite(output, changed("reason", lambda _: "unknown"), "errors")
    assert any("has an unknown reason" in problem for problem in verify(str(output)).problems)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "lost": (lambda out: a_file(out).unlink(), "is missing"),
    "cut-off": (lambda out: a_file(out).write_bytes(a_file(out).read_bytes()[:-9]), " bytes, not "),
    "orphan": (lambda out: shutil.copy(a_file(out), out / "scores" / "new.parquet"), "new.parquet belongs to no shard"),
    "record": (lambda out: (out / "_commits" / "000000-001.json").unlink(), "shard 000000-001 is missing"),
    "plain": (lambda out: (out / "_SUCCESS").write_text("{}"), "_SUCCESS is damaged: it has no checksum"),
    "totals": (lambda out: (out / "_SUCCESS").write_bytes(sealed({"rows": 7})), "_SUCCESS says 7"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_wrong_files(output: Path, name: str) -> None:
    damage, sentence = FILES[name]
    damage(output)
    assert any(sentence in problem for problem in verify(str(output)).problems), verify(str(output)).problems


def test_unfinished_and_foreign_folders_are_refused(output: Path, tmp_path: Path) -> None:
    (output / "_SUCCESS").unlink()
    with pytest.raises(Refused, match="is not finished: tokloss status"):
        verify(str(output))
    with pytest.raises(Refused, match="not an output of tokloss"):
        verify(str(tmp_path))


def test_command(output: Path) -> None:
    good = CliRunner().invoke(cli.app, ["verify", str(output)], catch_exceptions=False)
    assert good.exit_code == 0
    assert "200  (197 scored, 3 in errors/)" in good.stdout
    a_file(output).unlink()
    with pytest.raises(JobFailed, match="problems in"):
        CliRunner().invoke(cli.app, ["verify", str(output)], catch_exceptions=False)


def test_repeated_ids_are_kept_and_counted(finished: Path, tmp_path: Path) -> None:
    model = json.loads((finished / "_run.json").read_text())["settings"].get("model") or str(finished.parent / "model")
    rows = [{"id": name, "tokens": ["Anna"], "ner_tags": [1]} for name in ("a", "b", "a", "c", "a")]
    rows.append({"id": "d", "tokens": ["Anna"] * 60, "ner_tags": [1] * 60})  # windows repeat no id
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    result = score_inline(
        ScoreConfig(model=model, input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), id_column="id")
    )
    assert result.totals.scored_rows == 6
    assert result.totals.repeated_ids == verify(str(tmp_path / "out")).repeated_ids == 2
