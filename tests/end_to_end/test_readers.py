"""The output opens in other programs: every row, the right types, the partition columns, without this package.

Each program reads in a process of its own in which `tokloss_ray` cannot be imported, and prints what it sees as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import inline, models
from tokloss_ray import ScoreConfig

Row = dict[str, Any]

SENTENCES = [["Anton", "wohnt", "in", "Berlin"], ["Die", "Stadt", "am", "See"], ["Anna", "und", "Otto"], ["Köln"]]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
LANGUAGES = {
    "de": "lang=de",
    "new york": "lang=new%20york",
    "a/b": "lang=a%2Fb",
    "日本": "lang=%E6%97%A5%E6%9C%AC",
    "50%=x": "lang=50%25%3Dx",
    None: "lang=__HIVE_DEFAULT_PARTITION__",
}
SPLIT = "test set"

# DESIGN.md section 4, written out again so that a change of the package's own list is noticed.
STRINGS, FLOATS, INTS = pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.int32())
SCORES = [
    ("example_id", pa.string()),
    ("source", pa.string()),
    ("source_row", pa.int64()),
    ("window", pa.int32()),
    ("words", STRINGS),
    ("input_ids", INTS),
    ("input_tokens", STRINGS),
    ("word_ids", INTS),
    ("labels", STRINGS),
    ("predicted_label", STRINGS),
    ("loss", FLOATS),
    ("predicted_prob", FLOATS),
    ("second_label", STRINGS),
    ("second_prob", FLOATS),
    ("num_tokens", pa.int32()),
    ("num_labels", pa.int32()),
    ("num_dropped_words", pa.int32()),
    ("total_loss", pa.float32()),
    ("mean_loss", pa.float32()),
    ("max_loss", pa.float32()),
]
ERRORS = [(name, pa.int64() if name == "source_row" else pa.string()) for name in
          ("example_id", "source", "source_row", "stage", "reason", "detail", "payload")]  # fmt: skip
PER_TOKEN = [name for name, type_ in SCORES if pa.types.is_list(type_) and name != "words"]
KEPT = [("year", pa.int64()), ("topic", pa.string())]
CONSTANTS = [("release", pa.string())]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build("bert", tmp_path_factory.mktemp("model"), SENTENCES, TAGS)


class Written(NamedTuple):
    scores: Path
    expected: dict[str, Row]
    files: list[Path]


def sentences() -> list[Row]:
    rows = []
    for number in range(48):
        words = SENTENCES[number % len(SENTENCES)] * (1 + number % 3)
        tags = [None if i % 5 == 4 else i % len(TAGS) for i in range(len(words))]
        language = list(LANGUAGES)[number % len(LANGUAGES)]
        rows.append({"id": f"s{number}", "tokens": words, "ner_tags": tags, "lang": language, "year": 1990 + number})
        rows[-1]["topic"] = None if number % 7 == 0 else "news"
    return rows


def write(model: Path, folder: Path, rows: list[Row]) -> Written:
    """Score into several shards, partitioned by a constant and by a column; `expected`: each row with its partition."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet", row_group_size=12)
    config = ScoreConfig(
        model=str(model),
        input=str(folder / "in.parquet"),
        output=str(folder / "out"),
        id_column="id",
        tags=TAGS,
        keep=["year", "topic"],
        add_column={"split": SPLIT, "release": "v1"},
        partition_by=["split", "lang"],
        shard_tokens=100,
    )
    result = inline.score_inline(config)
    assert len(result.records) >= 3, "several shards, so that a partition has several files"
    partitions = {row["id"]: {"split": SPLIT, "lang": row["lang"]} for row in rows}
    expected = {row["example_id"]: row | partitions[row["example_id"]] for row in result.rows}
    assert len(expected) == len(rows)
    return Written(folder / "out" / "scores", expected, sorted((folder / "out" / "scores").rglob("*.parquet")))


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(model, tmp_path_factory.mktemp("run"), sentences())


# The files themselves.


def test_schema_of_the_files(written: Written) -> None:
    wanted = pa.schema([*SCORES, *KEPT, *CONSTANTS])
    for file in written.files:
        found = pq.read_schema(file)
        assert list(zip(found.names, found.types, strict=True)) == list(zip(wanted.names, wanted.types, strict=True))


def test_schema_with_probabilities_and_of_errors(model: Path, tmp_path: Path) -> None:
    source = inline.write_jsonl(
        tmp_path / "in.jsonl",
        [{"tokens": ["Anna"], "ner_tags": ["B-PER"], "year": 1}, {"tokens": [], "ner_tags": [], "year": 2}],
    )
    config = ScoreConfig(
        model=str(model),
        input=str(source),
        output=str(tmp_path / "out"),
        keep=["year"],
        keep_probs=True,
        max_error_rate=1,
    )
    row = inline.score_inline(config).rows[0]
    scores = pq.read_schema(next((tmp_path / "out" / "scores").rglob("*.parquet")))
    probs = ("probs", pa.list_(pa.list_(pa.float32())))
    assert list(zip(scores.names, scores.types, strict=True)) == [*SCORES, probs, ("year", pa.int64())]
    errors = pq.read_schema(next((tmp_path / "out" / "errors").rglob("*.parquet")))
    assert list(zip(errors.names, errors.types, strict=True)) == ERRORS
    assert [len(token) for token in row["probs"]] == [len(TAGS)] * row["num_tokens"]
    assert [sum(token) for token in row["probs"]] == pytest.approx([1.0] * row["num_tokens"], abs=1e-5)
    assert [max(token) for token in row["probs"]] == row["predicted_prob"]


def test_pre_encoded_output_has_null_words(model: Path, tmp_path: Path) -> None:
    """The columns stay, with their types, so that outputs of both kinds can be read together."""
    source = inline.write_jsonl(tmp_path / "in.jsonl", [{"input_ids": [2, 7, 3], "labels": [-100, 1, -100]}])
    row = inline.score_inline(ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"))).rows[0]
    found = pq.read_schema(next((tmp_path / "out" / "scores").rglob("*.parquet")))
    assert list(zip(found.names, found.types, strict=True)) == SCORES
    assert (row["words"], row["word_ids"]) == (None, None)
    assert (row["input_ids"], row["labels"]) == ([2, 7, 3], ["IGN", "B-PER", "IGN"])


def test_partition_folders(written: Written) -> None:
    folders = {file.parent.relative_to(written.scores).as_posix() for file in written.files}
    assert folders == {f"split=test%20set/{folder}" for folder in LANGUAGES.values()}


# Each program.


READ = {
    "pandas": """
        import pandas as pd
        frame = pd.read_parquet(folder)
    """,
    # Plain `read_parquet` makes categories of partition columns, and pyarrow cannot put those with a null together:
    # it fails on a null partition that pandas itself has written, too.
    "pandas with nulls": """
        import pandas as pd
        import pyarrow.dataset as ds
        frame = pd.read_parquet(folder, partitioning=ds.partitioning(flavor="hive"))
    """,
    "pyarrow": """
        import pyarrow.dataset as ds
        table = ds.dataset(folder, partitioning="hive").to_table()
        types = {field.name: str(field.type) for field in table.schema}
        rows = table.to_pylist()
    """,
    "polars": """
        import polars as pl
        frame = pl.scan_parquet(folder + "/**/*.parquet", hive_partitioning=True).collect()
        types = {name: str(dtype) for name, dtype in frame.schema.items()}
        rows = frame.to_dicts()
    """,
    "duckdb": """
        import duckdb
        query = "from read_parquet('" + folder + "/**/*.parquet', hive_partitioning = true)"
        cursor = duckdb.sql(query)
        types = {name: str(type_) for name, type_ in zip(cursor.columns, cursor.types)}
        rows = [dict(zip(cursor.columns, row)) for row in cursor.fetchall()]
    """,
    "datasets": """
        import datasets
        datasets.disable_progress_bars()
        files = folder + "/**/*.parquet"
        data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=scratch)
        types = {name: data.features[name] for name in data.features}
        types = {name: (f.feature if name in lists else f).dtype for name, f in types.items()}
        rows = data.to_list()
    """,
}

PREAMBLE = """
import json, sys
sys.modules["tokloss_ray"] = None  # an import of it now fails
folder, scratch, lists = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
"""
PANDAS = """
types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
types |= {name: type(frame[name].iloc[0]).__name__ + " " + str(frame[name].iloc[0].dtype) for name in lists}
rows = frame.astype({"split": object, "lang": object}).to_dict("records")
# An integer list with nulls, as word_ids is at special tokens, becomes floating point with NaN in pandas.
for row in rows:
    row["word_ids"] = [None if word != word else word for word in row["word_ids"].tolist()]
rows = [{name: None if pd.api.types.is_scalar(v) and pd.isna(v) else v for name, v in row.items()} for row in rows]
"""
PRINT = """
def plain(value):
    return value.tolist() if hasattr(value, "tolist") else str(value)
print(json.dumps({"types": types, "rows": rows}, default=plain))
"""


def read_with(program: str, written: Written, scratch: Path) -> tuple[dict[str, str], list[Row]]:
    """Column types, as the program calls them, and rows."""
    script = PREAMBLE + textwrap.dedent(READ[program]) + (PANDAS if program.startswith("pandas") else "") + PRINT
    lists = ["words", *PER_TOKEN]
    done = subprocess.run(
        [sys.executable, "-c", script, str(written.scores), str(scratch), json.dumps(lists)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    return answer["types"], answer["rows"]


def check_rows(rows: list[Row], written: Written, without: tuple[str, ...] = ()) -> None:
    """Every row once, every value as it is in the files, lists of one length, partition columns as in the input."""
    assert len(rows) == len(written.expected)
    assert {row["example_id"] for row in rows} == set(written.expected)
    for row in rows:
        wanted = {name: value for name, value in written.expected[row["example_id"]].items() if name not in without}
        assert row == wanted
        assert {len(row[name]) for name in PER_TOKEN} == {row["num_tokens"]}


def test_pandas(model: Path, tmp_path: Path) -> None:
    written = write(model, tmp_path, [row for row in sentences() if row["lang"] is not None])
    types, rows = read_with("pandas", written, tmp_path)
    check_rows(rows, written)
    assert types["loss"] == "ndarray float32"
    assert types["input_ids"] == "ndarray int32"
    assert types["input_tokens"] == "ndarray object"
    assert (types["source_row"], types["num_tokens"], types["mean_loss"]) == ("int64", "int32", "float32")
    assert types["year"] == "int64"
    assert types["lang"] == "category"


def test_pandas_with_a_null_partition(written: Written, tmp_path: Path) -> None:
    types, rows = read_with("pandas with nulls", written, tmp_path)
    check_rows(rows, written)
    assert types["lang"] in ("str", "object")


def test_pyarrow(written: Written, tmp_path: Path) -> None:
    types, rows = read_with("pyarrow", written, tmp_path)
    check_rows(rows, written)
    partitions = [("split", pa.string()), ("lang", pa.string())]
    assert {name: type_.replace("element: ", "item: ") for name, type_ in types.items()} == {
        name: str(type_) for name, type_ in [*SCORES, *KEPT, *CONSTANTS, *partitions]
    }


def test_polars(written: Written, tmp_path: Path) -> None:
    types, rows = read_with("polars", written, tmp_path)
    check_rows(rows, written)
    assert types["loss"] == "List(Float32)"
    assert types["word_ids"] == "List(Int32)"
    assert types["labels"] == "List(String)"
    assert (types["source_row"], types["window"], types["total_loss"]) == ("Int64", "Int32", "Float32")
    assert (types["split"], types["lang"]) == ("String", "String")


def test_duckdb(written: Written, tmp_path: Path) -> None:
    types, rows = read_with("duckdb", written, tmp_path)
    check_rows(rows, written)
    assert types["loss"] == "FLOAT[]"
    assert types["word_ids"] == "INTEGER[]"
    assert types["labels"] == "VARCHAR[]"
    assert (types["source_row"], types["window"], types["total_loss"]) == ("BIGINT", "INTEGER", "FLOAT")
    assert (types["split"], types["lang"]) == ("VARCHAR", "VARCHAR")


def test_datasets(written: Written, tmp_path: Path) -> None:
    """`datasets` reads file by file and does not look at folder names: the partition columns are not there."""
    types, rows = read_with("datasets", written, tmp_path)
    check_rows(rows, written, without=("split", "lang"))
    assert types["loss"] == "float32"
    assert types["input_ids"] == "int32"
    assert types["labels"] == "string"
    assert (types["source_row"], types["window"]) == ("int64", "int32")
