"""Units of several files: empty ones, row groups, and where a limit falls."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, write_jsonl
from tests.support.tiny import (
    EMPTY,
    SENTENCES,
    TAGS,
    ids,
    row,
    zero_bytes,
)
from tokloss_ray.errors import TokLossError
from tokloss_ray.inputs import listing
from tokloss_ray.inputs.input_files import INPUT_FILES, InputFile, InputFiles
from tokloss_ray.inputs.unit import FilePart, parts_table
from tokloss_ray.inputs.units import make_units
from tokloss_ray.output.verify import verify
from tokloss_ray.scoring.plan import _auto_shard_tokens
from tokloss_ray.storage import zstd
from tokloss_ray.storage.files import Listed


def test_empty_files_among_others(run: Callable[..., Inline], tmp_path: Path) -> None:
    """First in the list, so that columns and preflight must be taken from a later file."""
    empty = [make(tmp_path) for make in EMPTY.values()]
    full = write_jsonl(tmp_path / "full.jsonl", [row("Anna", lang="de"), row("Otto", lang=None)])
    result = run([*map(str, empty), str(full)], partition_by=["lang"])
    assert ids(result) == ["full.jsonl:0", f"full.jsonl:{len(full.read_bytes().splitlines()[0]) + 1}"]
    folders = {file.parent.name for file in Path(result.plan.job.output, "scores").rglob("*.parquet")}
    assert folders == {"lang=de", "lang=__HIVE_DEFAULT_PARTITION__"}


def test_many_row_groups(run: Callable[..., Inline], tmp_path: Path) -> None:
    sentences = [row(*SENTENCES[i % 3][: 1 + i % 4], tags=[i % 4] * (1 + i % 4)) for i in range(40)]
    pq.write_table(pa.Table.from_pylist(sentences), tmp_path / "in.parquet", row_group_size=3)
    result = run(tmp_path / "in.parquet", tags=TAGS, shard_tokens=14)
    assert len(result.plan.units) > 3
    assert sum(unit.rows for unit in result.plan.units) == 40
    assert [r["source_row"] for r in result.rows] == list(range(40))
    assert [r["words"] for r in result.rows] == [sentence["tokens"] for sentence in sentences]
    assert [r["labels"][1] for r in result.rows] == [TAGS[i % 4] for i in range(40)]
    assert all(record.tokens <= 14 for record in result.records)


@pytest.mark.parametrize(("limit", "shard_tokens"), [(1, 4), (3, 1000), (4, 4), (9, 4), (10, 1000), (11, 4), (30, 4)])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
def test_limit_across_files(
    run: Callable[..., Inline], tmp_path: Path, limit: int, suffix: str, shard_tokens: int
) -> None:
    """The first rows in the order of the files, wherever the limit falls: in a row group, at its end, in no file."""
    names = []
    for file in range(3):
        sentences = [row(f"{file}-{i}", tags=["O"]) for i in range(5)]
        names += [sentence["tokens"][0] for sentence in sentences]
        path = tmp_path / f"{file}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(sentences), path, row_group_size=2)
        else:
            lines = "\n".join(json.dumps(sentence) for sentence in sentences).replace("\n", "\n\n").encode()
            path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    result = run(tmp_path / f"*.{suffix}", limit=limit, shard_tokens=shard_tokens)
    assert [r["words"][0] for r in result.rows] == names[:limit]
    assert result.totals.rows == result.plan.rows == min(limit, 15)


def test_limit_counts_bad_rows(run: Callable[..., Inline], tmp_path: Path) -> None:
    """`--limit` is about rows read: 3 rows in, whatever becomes of them."""
    source = zero_bytes(tmp_path / "in.jsonl", b'{"tokens": ["a"], "ner_tags": [0]}\nnot json\n\n[]\n{"tokens": []}\n')
    result = run(source, limit=3, max_error_rate=1)
    assert (result.totals.rows, result.totals.scored_rows, result.totals.error_rows) == (3, 1, 2)


def conll(sentence: dict) -> str:
    pairs = zip(sentence["tokens"], sentence["ner_tags"], strict=True)
    return "".join(f"{word} {tag}\n" for word, tag in pairs) + "\n"


ENDINGS = ("parquet", "jsonl", "jsonl.gz", "conll", "feather", "csv", "jsonl.zst")


def small_files(folder: Path, sentences: list[dict]) -> list[Path]:
    """The same sentences in files of one to four rows and of `ENDINGS`, in the order of their names."""
    folder.mkdir()
    paths, start = [], 0
    while start < len(sentences):
        number, count = len(paths), 1 + len(paths) % 4
        rows = sentences[start : start + count]
        path = folder / f"{number:03d}.{ENDINGS[number % len(ENDINGS)]}"
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".feather":
            feather.write_feather(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            with open(path, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([list(rows[0]), *([json.dumps(cell) for cell in row.values()] for row in rows)])
        elif path.suffix == ".conll":
            path.write_text("".join(map(conll, rows)))
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes({".gz": gzip.compress, ".zst": zstd.packed}.get(path.suffix, bytes)(text))
        paths.append(path)
        start += count
    return paths


def test_small_files_share_units_and_shards(run: Callable[..., Inline], tmp_path: Path) -> None:
    """The rows, their order and their losses are those of one file, cut into the same shards."""
    sentences = [row(*SENTENCES[i % 3][: 1 + i % 4], tags=[TAGS[i % 4]] * (1 + i % 4)) for i in range(90)]
    pq.write_table(pa.Table.from_pylist(sentences), tmp_path / "one.parquet")
    paths = small_files(tmp_path / "many", sentences)
    one = run(tmp_path / "one.parquet", shard_tokens=100)
    many = run(tmp_path / "many" / "*", shard_tokens=100)
    assert len(paths) > 30
    assert len(many.plan.units) < len(paths) / 4
    assert len(many.records) < len(paths) / 4
    assert [r["source"] for r in many.rows] == sorted(r["source"] for r in many.rows)
    assert {r["source"] for r in many.rows} == {path.name for path in paths}
    kept = ("words", "labels", "loss", "predicted_label", "input_ids")
    assert [[r[name] for name in kept] for r in many.rows] == [[r[name] for name in kept] for r in one.rows]
    assert verify(many.plan.job.output).problems == []
    records = sorted(many.records, key=lambda record: record.shard)
    assert [(r.unit, r.start) for r in records if r.index] == [
        (r.unit, before.stop) for before, r in pairwise(records) if r.index
    ]
    assert any(record.source != record.last_source for record in records)
    for record in records:
        (file,) = record.files
        rows = pq.read_table(Path(many.plan.job.output, file.path), partitioning=None).to_pylist()
        assert (rows[0]["source"], rows[0]["source_row"]) == (record.source, record.first_row)
        assert (rows[-1]["source"], rows[-1]["source_row"]) == (record.last_source, record.last_row)


def test_bad_rows_of_small_files_keep_their_place(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Rows with the same number in neighbouring files, good in one and bad in the other, are told apart."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(12):
        rows = [row("Anna", "wohnt", tags=["B-PER", "O"]), row("hier", tags=["O"])]
        rows[i % 2]["ner_tags"] = ["X"] * (2 - i % 2) if i % 3 else rows[i % 2]["ner_tags"]
        write_jsonl(folder / f"{i:02d}.jsonl", rows)
    (folder / "05.jsonl").write_text('{"tokens": \nno json\n')
    result = run(folder, shard_tokens=10, max_error_rate=1.0)
    refused = [(e["source"], e["reason"]) for e in result.errors]
    wanted = [(f"{i:02d}.jsonl", "unknown_tag") for i in range(12) if i % 3 and i != 5] + [
        ("05.jsonl", "malformed")
    ] * 2
    assert refused == sorted(wanted)
    assert len(result.rows) == 24 - len(refused)
    assert verify(result.plan.job.output).problems == []


def test_a_file_that_breaks_among_small_ones_is_named(run: Callable[..., Inline], tmp_path: Path) -> None:
    paths = small_files(tmp_path / "in", [row("Anna", tags=["O"]) for _ in range(30)])
    broken = paths[len(ENDINGS)]
    assert broken.suffix == ".parquet"
    data = broken.read_bytes()
    broken.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    with pytest.raises(TokLossError, match=rf"cannot read {broken.name}"):
        run(tmp_path / "in" / "*")


@pytest.fixture
def few_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_LOOKED_AT", 3)


def declared(rows: list[dict], names: tuple[str, ...]) -> pa.Table:
    feature = {"feature": {"names": list(names), "_type": "ClassLabel"}, "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}})}
    return pa.Table.from_pylist(rows).replace_schema_metadata(metadata)


def test_files_that_were_not_looked_into_are_scored_alike(
    run: Callable[..., Inline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = [row(*SENTENCES[i % 3][: 1 + i % 4], tags=[TAGS[i % 4]] * (1 + i % 4)) for i in range(60)]
    small_files(tmp_path / "in", sentences)
    every = run(tmp_path / "in" / "*", shard_tokens=60)
    monkeypatch.setattr(listing, "MOST_LOOKED_AT", 3)
    few = run(tmp_path / "in" / "*", shard_tokens=60)
    kept = ("source", "source_row", "words", "labels", "input_ids")
    wanted = [[r[name] for name in kept] for r in every.rows]
    assert [[r[name] for name in kept] for r in few.rows] == wanted
    assert any(part.rows is None and part.format == "parquet" for unit in few.plan.units for part in unit.parts)
    assert [[r[name] for name in kept] for r in run(tmp_path / "in" / "*", limit=25).rows] == wanted[:25]


UNLIKE: dict[str, tuple[Callable[[list[dict]], pa.Table], str]] = {
    "no-column": (lambda rows: pa.Table.from_pylist(rows).drop_columns("ner_tags"), "it has no column ner_tags"),
    "type": (lambda rows: pa.table({"tokens": ["a"], "ner_tags": [[0]], "n": [1]}), "its column tokens is string"),
    "carried": (
        lambda rows: pa.Table.from_pylist([{**row, "n": "x"} for row in rows]),
        "its column n is string, but int64 in the files looked into first",
    ),
    "tags": (lambda rows: declared(rows, tuple(reversed(TAGS))), "it declares other tag names for column ner_tags"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_a_file_unlike_those_looked_into_is_named(
    run: Callable[..., Inline], tmp_path: Path, few_looked_into: None, name: str
) -> None:
    make, sentence = UNLIKE[name]
    rows = [{"tokens": ["Anna"], "ner_tags": [1], "n": 1}]
    (tmp_path / "in").mkdir()
    for i in range(12):
        table = make(rows) if i == 5 else declared(rows, tuple(TAGS))
        pq.write_table(table, tmp_path / "in" / f"{i:02d}.parquet")
    with pytest.raises(TokLossError, match=rf"cannot read 05\.parquet: {sentence}"):
        run(tmp_path / "in", keep=["n"])


def test_tags_that_are_given_count_more_than_declared_ones(
    run: Callable[..., Inline], tmp_path: Path, few_looked_into: None
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        names = TAGS if i != 5 else tuple(reversed(TAGS))
        pq.write_table(declared([{"tokens": ["Anna"], "ner_tags": [1]}], names), tmp_path / "in" / f"{i:02d}.parquet")
    result = run(tmp_path / "in", tags=TAGS)
    assert [r["labels"][1] for r in result.rows] == [TAGS[1]] * 12


def test_a_plan_of_many_files_is_columns() -> None:
    """Python objects for each of a million files would take most of a gigabyte."""
    files = 20_000
    table = pa.table([[f"/in/{i:06d}.parquet" for i in range(files)], [1_000] * files, ["1"] * files,
                      [f"{i:06d}.parquet" for i in range(files)], ["parquet"] * files], INPUT_FILES)  # fmt: skip
    tracemalloc.start()
    units = make_units(InputFiles(table), [], 1 << 16, None)
    recorded = parts_table(units)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 60 * files  # numbers that numpy holds
    assert peak < 250 * files
    assert recorded.column("source").to_pylist() == table.column("source").to_pylist()
    assert recorded.column("number").to_pylist() == [unit.number for unit in units for _ in unit.parts]
    one = FilePart("004096.parquet", "/in/004096.parquet", "1", "parquet", 0, -1, None, 1_000, 0, 1_000)
    assert next(part for unit in units for part in unit.parts if part.source == one.source) == one


def test_shards_grow_with_the_corpus(tmp_path: Path) -> None:
    """A million files of 100 kB come to 20,000 shards at most, as long as these are no larger than on a GPU."""
    made = InputFile(Listed("", 100_000, ""), "", "parquet")
    sizes = [
        _auto_shard_tokens(SimpleNamespace(files=InputFiles.of([made] * n)), False, 1024)
        for n in (10, 100_000, 1_000_000)
    ]
    assert sizes == [1 << 16, 1 << 17, 1 << 20]
    assert _auto_shard_tokens(SimpleNamespace(files=InputFiles.of([made])), True, 1 << 15) == 1 << 20
