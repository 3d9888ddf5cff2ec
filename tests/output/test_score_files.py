"""Outputs with files that are damaged, missing or of nobody: readers name the file, or give what was written."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tokloss_ray
from tests.support.mining_outputs import demo_sentences, score_demo
from tokloss_ray.cli.app import app
from tokloss_ray.errors import JobFailed, TokLossError
from tokloss_ray.exporting.sentences import read_sentences
from tokloss_ray.mining.diff.row_ranges import place_files
from tokloss_ray.mining.words.load import read_tokens
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.output.search import find_sequences, open_scores, sequences_by_id
from tokloss_ray.storage.sealed import sealed, unsealed

ROWS = 40


def rewrite(output: Path, checksums: bool) -> None:
    """Write the data files again with checksums of pages and of files, or with neither."""
    for path in (output / "_commits").glob("*.json"):
        record = unsealed(path.read_bytes())
        for file in [*record["files"], *([record["errors_file"]] if record["errors_file"] else [])]:
            place = output / file["path"]
            table = pq.ParquetFile(place).read()
            pq.write_table(table, place, compression="zstd", write_page_checksum=checksums)
            file["bytes"] = place.stat().st_size
            file.pop("sha256", None)
            if checksums:
                file["sha256"] = hashlib.sha256(place.read_bytes()).hexdigest()
        path.write_bytes(sealed(record))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A small output of one file, with checksums and without."""
    folder = tmp_path_factory.mktemp("whole")
    source = demo_sentences(folder, 0, ROWS)
    found = {}
    for checksums in (True, False):
        score_demo(folder, source, output=str(folder / f"out{checksums}"), shard_tokens=65536)
        found[checksums] = folder / f"out{checksums}"
        rewrite(found[checksums], checksums)
    return found


def data_file(output: Path) -> Path:
    (found,) = (output / "scores").rglob("*.parquet")
    return found


def show(output: str) -> Any:
    found, count = find_sequences(open_scores(output), 5)
    return found.to_pylist(), count


READERS: dict[str, Callable[[str], Any]] = {
    "show": show,
    "show --id": lambda output: sequences_by_id(open_scores(output), "de-val-7").to_pylist(),
    "export": lambda output: list(read_sentences(output)),
    "load": lambda output: tokloss_ray.load(output).to_pylist(),
    "mine": lambda output: [
        (w.label.tolist(), w.loss.tolist(), w.word.to_pylist(), w.example_id.to_pylist())
        for scores in [open_outputs(output)]
        for w in read_tokens(scores.files, scores.tags)
    ],
    "diff": lambda output: [place[:2] for place in place_files([open_outputs(output).files])[1][0]],
}


def flips(path: Path, seed: int, most: int) -> Iterator[tuple[str, bytes]]:
    """The file with one to four bytes changed: in page headers and pages, and everywhere in the footer."""
    data = path.read_bytes()
    metadata = pq.ParquetFile(path).metadata
    footer = len(data) - 8 - metadata.serialized_size
    columns = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    starts = [c.dictionary_page_offset or c.data_page_offset for c in columns]
    draw = random.Random(seed)
    places = {
        "magic": [0, 3, len(data) - 1, len(data) - 6],
        "page header": [start + draw.randrange(12) for start in starts],
        "page": [start + draw.randrange(c.total_compressed_size) for start, c in zip(starts, columns, strict=True)],
        "footer": draw.sample(range(footer, len(data)), most),
    }
    for where, offsets in places.items():
        for offset in offsets:
            changed = bytearray(data)
            for at in range(offset, min(offset + draw.choice([1, 1, 4]), len(data))):
                changed[at] ^= draw.randrange(1, 256)
            yield f"{where} at {offset}", bytes(changed)


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_file_is_named_or_makes_no_difference(whole: dict[bool, Path], checksums: bool) -> None:
    output = whole[checksums]
    path = data_file(output)
    says = f"cannot read {output}/{path.relative_to(output)}: "
    expected = {name: reader(str(output)) for name, reader in READERS.items()}
    data = path.read_bytes()
    named = dict.fromkeys(READERS, 0)
    try:
        for where, changed in flips(path, 5, 60):
            path.write_bytes(changed)
            for name, reader in READERS.items():
                found, said = outcome(reader, output)
                if said:
                    assert said.startswith(says), (where, name)
                    assert "run tokloss verify" in said
                    named[name] += 1
                else:
                    # Without checksums no reader can see that a figure is another than was written.
                    assert found == expected[name] or not checksums, (where, name)
    finally:
        path.write_bytes(data)
    assert all(named.values()), named


def outcome(reader: Callable[[str], Any], output: Path) -> tuple[Any, str]:
    """What a reader finds, or the sentence it says."""
    try:
        return reader(str(output)), ""
    except JobFailed as error:
        return None, str(error)


def tokloss(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "120"})
    if isinstance(result.exception, TokLossError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_show_names_a_damaged_file(whole: dict[bool, Path], tmp_path: Path) -> None:
    output = Path(shutil.copytree(whole[True], tmp_path / "out"))
    tokloss_ray.mine(str(output))
    data = bytearray(data_file(output).read_bytes())
    data[len(data) // 3] ^= 255
    data_file(output).write_bytes(data)
    for words in (["--worst", "2"], ["--token", "in"], ["--issues"], ["--id", "de-val-7"]):
        code, said = tokloss("show", str(output), *words)
        assert code == 2
        assert said.startswith(f"cannot read {output}/scores/")
    data_file(output).unlink()
    assert "it is missing; run tokloss verify" in tokloss("show", str(output))[1]


def test_records_tables_and_errors_that_are_damaged(whole: dict[bool, Path], tmp_path: Path) -> None:
    output = Path(shutil.copytree(whole[True], tmp_path / "out"))
    page = str(tmp_path / "page.html")
    tokloss_ray.mine(str(output))
    table = output / "mining" / "label_issues.parquet"
    group, data = pq.ParquetFile(table).metadata.row_group(0), bytearray(table.read_bytes())
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "source_row")
    at = column.data_page_offset + column.total_compressed_size // 2  # every command reads this column
    data[at : at + 40] = bytes(40)
    table.write_bytes(data)
    for words in (["show", str(output), "--issues"], ["export", str(output), "-f", "csv", "-o", page, "--issues", "3"]):
        code, said = tokloss(*words)
        assert (code, said.split(":")[0]) == (2, f"cannot read {table}")
        assert "tokloss mine" in said
    assert tokloss("report", str(output), "-o", page)[0] == 0  # made anew
    (record,) = (output / "_commits").iterdir()
    for damaged in (b"{", b"\xff\xfe", b"[]", b"{}", record.read_bytes()[:-30]):
        record.write_bytes(damaged)
        for words in (["show", str(output)], ["mine", str(output)], ["report", str(output), "-o", page]):
            code, said = tokloss(*words)
            assert (code, f"_commits/{record.name} is damaged" in said, "same tokloss score" in said) == (2, True, True)


def test_rows_in_errors_that_are_damaged(tmp_path: Path) -> None:
    source = demo_sentences(tmp_path, 0, ROWS)
    rows = pq.read_table(source).to_pylist()
    for row in rows[::3]:
        row["ner_tags"] = row["ner_tags"][:-1]
    pq.write_table(pa.Table.from_pylist(rows), source)
    output = score_demo(tmp_path, source, max_error_rate=0.9)
    rewrite(output, True)
    page = str(tmp_path / "page.html")
    assert tokloss("report", str(output), "-o", page)[0] == 0
    file = next((output / "errors").iterdir())
    data = bytearray(file.read_bytes())
    data[40] ^= 255
    file.write_bytes(data)
    code, said = tokloss("report", str(output), "-o", page)
    assert code == 2
    assert said.startswith(f"cannot read {output}/errors/{file.name}: ")


@pytest.fixture
def with_strangers(tmp_path: Path) -> Path:
    """An unfinished output of two shards of which one is committed, with files of other runs and of nobody."""
    source = demo_sentences(tmp_path, 0, ROWS)
    output = score_demo(tmp_path, source, shard_tokens=800)
    records = sorted((output / "_commits").iterdir())
    assert len(records) > 1
    for record in records[1:]:
        record.unlink()
    (output / "_SUCCESS").unlink()
    ours = next((output / "scores").glob("000000-000-*.parquet"))
    shutil.copy(ours, ours.with_name("000000-000-ffffff.parquet"))
    foreign = unsealed(records[0].read_bytes()) | {"fingerprint": "ffffff", "shard": "000007-000"}
    (output / "_commits" / "000007-000.json").write_bytes(sealed(foreign))
    ours.with_name("notes.parquet").write_bytes(b"not Parquet")
    return output


def test_show_goes_by_commit_records(with_strangers: Path) -> None:
    output = with_strangers
    record = unsealed((output / "_commits" / "000000-000.json").read_bytes())
    committed = [row for file in record["files"] for row in pq.read_table(output / file["path"]).to_pylist()]
    there = {
        row["example_id"] for path in (output / "scores").glob("0*.parquet") for row in pq.read_table(path).to_pylist()
    }
    lost = sorted(there - {row["example_id"] for row in committed})
    assert lost
    _, count = find_sequences(open_scores(str(output)), ROWS)
    assert count == len(committed)
    code, said = tokloss("show", str(output), "--worst", str(ROWS))
    assert code == 0
    assert sum("total loss" in line for line in said.splitlines()) == len(committed)
    assert f"{output} is not finished: showing only what is committed" in " ".join(said.split())
    assert tokloss("show", str(output), "--id", lost[0]) == (2, f"{output} has no sequence with the id {lost[0]}")
    assert tokloss("show", str(output), "--id", committed[0]["example_id"])[0] == 0
    shutil.rmtree(output / "_commits")
    assert tokloss("show", str(output)) == (2, f"{output} has no committed shard yet")


def test_show_on_object_storage(whole: dict[bool, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails now and then is asked again; `--id` fetches a file in full only if the id is in it."""
    memory = fsspec.filesystem("memory")
    memory.put(str(whole[True]), "/kept", recursive=True)
    failed: list[str] = []
    read: list[tuple[str, int | None]] = []
    cat_file = type(memory).cat_file

    def unsteady(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        if path not in failed:
            failed.append(path)
            raise TimeoutError
        read.append((path, start))
        return cat_file(self, path, start, end, **more)

    monkeypatch.setattr(type(memory), "cat_file", unsteady)
    monkeypatch.setattr("time.sleep", lambda _: None)
    code, said = tokloss("show", "memory://kept", "--worst", "3")
    assert (code, said.count("total loss")) == (0, 3)
    assert any(path.endswith(".parquet") for path in failed)
    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    assert said == tokloss("show", str(whole[True]), "--worst", "3")[1]
    assert tokloss("show", "memory://kept", "--id", "de-val-7")[0] == 0
    read.clear()
    monkeypatch.setattr(type(memory), "cat_file", unsteady)
    assert "no sequence with the id x" in tokloss("show", "memory://kept", "--id", "x")[1]
    assert all(start is not None for path, start in read if path.endswith(".parquet"))
    memory.rm("/kept", recursive=True)
