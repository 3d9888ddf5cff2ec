"""The same sentences of the demo in every shape of input: scores are those of the Parquet file, paths aside."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tests.support import models
from tests.support.inline import Inline, Row, score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.output.verify import verify
from tokloss_ray.storage import zstd

NER = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
COUNT = 200
LARGE = 1 << 16
PLACES = ("source", "source_row", "unit", "shard")

READ = ("example_id", "window", "words", "labels", "input_ids", "lang")
"""What does not depend on how rows are cut into micro-batches."""


@functools.cache
def rows() -> list[Row]:
    """Real sentences, of which some have quotes, commas and brackets among their words; tags by name."""
    found = pq.read_table(DATA).slice(0, COUNT).to_pylist()
    return [row | {"ner_tags": [NER[tag] for tag in row["ner_tags"]]} for row in found]


def table() -> pa.Table:
    return pa.Table.from_pylist(rows())


def nested() -> pa.Table:
    inner = pa.StructArray.from_arrays(
        [table().column("tokens").combine_chunks(), table().column("ner_tags").combine_chunks()], ["words", "bio"]
    )
    outer = pa.StructArray.from_arrays([inner, pa.array(range(COUNT))], ["gold", "number"])
    return table().select(["id", "lang"]).append_column("data", outer)


def nested_lines(path: Path) -> None:
    write_packed(path, "".join(json.dumps(row) + "\n" for row in nested().to_pylist()))


def arrow_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table().schema) as writer:
        writer.write_table(table(), max_chunksize=30)


def arrow_file(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table().schema) as writer:
        writer.write_table(table(), max_chunksize=30)


def csv_table(path: Path, separator: str, write: Callable[[list[str]], Any], names: tuple[str, str]) -> None:
    """With a column of text that has quotes, separators and line breaks."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(["id", "text", names[0], names[1], "lang"])
    for row in rows():
        text = ' ,;"\n'.join(row["tokens"])
        writer.writerow([row["id"], text, write(row["tokens"]), write(row["ner_tags"]), row["lang"]])
    write_packed(path, file.getvalue())


def write_packed(path: Path, text: str) -> None:
    pack = {".gz": gzip.compress, ".zst": zstd.packed}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))


def conll(path: Path) -> None:
    text = ""
    for row in rows():
        pairs = zip(row["tokens"], row["ner_tags"], strict=True)
        text += f"# id = {row['id']}\n# lang = {row['lang']}\n" + "".join(f"{a}\t{b}\n" for a, b in pairs) + "\n"
    write_packed(path, text)


def json_lines(path: Path) -> None:
    write_packed(path, "".join(json.dumps(row) + "\n" for row in rows()))


def as_json(items: list[str]) -> str:
    return json.dumps(items, ensure_ascii=False)


USUAL = ("tokens", "ner_tags")
OWN = ("sentence_words", "bio")
NAMED = {"tokens_column": OWN[0], "labels_column": OWN[1]}
NESTED = {"tokens_column": "data.gold.words", "labels_column": "data.gold.bio"}
SHAPES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "stream.arrow": (arrow_stream, {}),
    "file.arrow": (arrow_file, {}),
    "json.csv": (lambda path: csv_table(path, ",", as_json, USUAL), {}),
    "python.csv": (lambda path: csv_table(path, ",", str, OWN), NAMED),
    "spaces.csv": (lambda path: csv_table(path, ";", " ".join, OWN), NAMED),
    "spaces.tsv": (lambda path: csv_table(path, "\t", " ".join, USUAL), {}),
    "json.txt": (lambda path: csv_table(path, "\t", as_json, OWN), NAMED),
    "json.csv.gz": (lambda path: csv_table(path, ",", as_json, USUAL), {}),
    "json.csv.zst": (lambda path: csv_table(path, ",", as_json, USUAL), {}),
    "in.jsonl": (json_lines, {}),
    "in.jsonl.zst": (json_lines, {}),
    "in.conll": (conll, {}),
    "in.conll.zst": (conll, {}),
    "nested.parquet": (lambda path: pq.write_table(nested(), path, row_group_size=50), NESTED),
    "nested.feather": (lambda path: feather.write_feather(nested(), path, chunksize=50), NESTED),
    "nested.jsonl": (nested_lines, NESTED),
    "lz4.feather": (lambda path: feather.write_feather(table(), path, chunksize=50), {}),
}
"""How a file of that name is written, and the settings it needs."""
WHOLE = {name for name in SHAPES if any(part in name for part in (".csv", ".tsv", ".txt", ".gz", ".zst"))}
"""Files that are read in one part, however large."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [row["tokens"] for row in rows()]
    return models.build("bert", tmp_path_factory.mktemp("model"), words, NER, max_length=64)


def scored(model: Path, folder: Path, name: str, shard_tokens: int, source: str = "", **settings: Any) -> Inline:
    output = str(folder / f"out-{name}-{shard_tokens}")
    settings = {"id_column": "id", "keep": ["lang"], "shard_tokens": shard_tokens} | settings
    return score_inline(ScoreConfig(model=str(model), input=(source or str(folder / name),), output=output, **settings))


@pytest.fixture(scope="module")
def wanted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("parquet")
    pq.write_table(table(), folder / "in.parquet")
    result = scored(model, folder, "in.parquet", LARGE)
    assert len({row["example_id"] for row in result.rows}) == COUNT
    return [without(PLACES, row) for row in result.rows]


def without(names: tuple[str, ...], row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize("name", SHAPES)
def test_scores_are_those_of_parquet(model: Path, tmp_path: Path, wanted: list[Row], name: str) -> None:
    """In one shard to the last bit; in parts of a file, whose micro-batches are others, the same rows."""
    write, settings = SHAPES[name]
    write(tmp_path / name)
    result = scored(model, tmp_path, name, LARGE, **settings)
    assert [without(PLACES, row) for row in result.rows] == wanted
    assert verify(result.plan.job.output).problems == []
    parts = scored(model, tmp_path, name, 400, **settings)
    assert (len(parts.plan.units) > 1) == (name not in WHOLE)
    read = [[row[name] for name in READ] for row in wanted]
    assert sorted([row[name] for name in READ] for row in parts.rows) == sorted(read)


REMOTE = ("stream.arrow", "file.arrow", "lz4.feather", "nested.parquet", "json.csv.zst", "spaces.tsv")


@pytest.mark.parametrize("name", REMOTE)
def test_scores_are_those_of_parquet_from_object_storage(
    model: Path, tmp_path: Path, wanted: list[Row], name: str
) -> None:
    """Read by ranges, as from any store that is no local file system."""
    write, settings = SHAPES[name]
    write(tmp_path / name)
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/shapes/{name}", (tmp_path / name).read_bytes())
    try:
        result = scored(model, tmp_path, name, LARGE, f"memory://shapes/{name}", **settings)
    finally:
        store.rm("/shapes", recursive=True)
    assert [without(PLACES, row) for row in result.rows] == wanted
