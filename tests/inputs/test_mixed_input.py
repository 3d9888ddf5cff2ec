"""Files that disagree with each other, columns of unusual types, folders of unusual shapes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import models
from tests.support.inline import Inline, score_inline, write_jsonl
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import JobFailed, Refused, StorageFailed
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages import cutting
from tokloss_ray.scoring.stages.commit import commit_shard
from tokloss_ray.scoring.stages.decode import Decoded

TAGS = ["O", "B-PER"]
ENCODED = {"input_ids": [2, 7, 3], "labels": [-100, 1, -100]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build("bert", tmp_path_factory.mktemp("model"), [["Anna", "und", "Otto"]], TAGS, max_length=32)


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., Inline]:
    def run_one(*source: Path, **options: Any) -> Inline:
        inputs = tuple(str(path) for path in source)
        return score_inline(ScoreConfig(model=str(model), input=inputs, output=str(tmp_path / "out"), **options))

    return run_one


def parquet(path: Path, *rows: dict[str, Any], **types: pa.DataType) -> Path:
    table = pa.Table.from_pylist(list(rows))
    for name, type_ in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(type_))
    pq.write_table(table, path)
    return path


def row(**more: Any) -> dict[str, Any]:
    return {"tokens": ["Anna", "und"], "tags": ["B-PER", "O"], **more}


def test_attention_mask_in_a_later_json_file_counts(run: Callable[..., Inline], tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", [ENCODED])
    masked = write_jsonl(tmp_path / "b.jsonl", [ENCODED | {"attention_mask": [1, 1, 0]}])
    first, second = run(plain, masked).rows
    assert first["input_ids"] == second["input_ids"]
    assert first["total_loss"] != second["total_loss"]


def test_attention_mask_in_some_parquet_files_is_refused(run: Callable[..., Inline], tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ENCODED)
    parquet(tmp_path / "b.parquet", ENCODED | {"attention_mask": [1, 1, 0]})
    with pytest.raises(Refused, match=r"b\.parquet has a column attention_mask, a\.parquet has none"):
        run(tmp_path / "*.parquet")


def test_pre_encoded_and_words_do_not_mix(run: Callable[..., Inline], tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ENCODED)
    parquet(tmp_path / "b.parquet", {"tokens": ["Anna"], "labels": [1]})
    with pytest.raises(Refused, match=r"no column input_ids.*b\.parquet has the columns tokens, labels"):
        run(tmp_path / "*.parquet")


def test_two_columns_of_one_name(run: Callable[..., Inline], tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([["Anna"]])] * 2 + [pa.array([["O"]])], ["tokens", "tokens", "tags"])
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(Refused, match="two columns named tokens"):
        run(tmp_path / "in.parquet")


def test_kept_integers_of_parquet_and_json(run: Callable[..., Inline], tmp_path: Path) -> None:
    packed = parquet(tmp_path / "a.parquet", row(year=1999), year=pa.int32())
    lines = write_jsonl(tmp_path / "b.jsonl", [row(year=2000), row(year="2001"), row(year=2**40)])
    result = run(packed, lines, keep=("year",), max_error_rate=0.5)
    assert [found["year"] for found in result.rows] == [1999, 2000]
    assert {error["reason"] for error in result.errors} == {"malformed"}
    assert [json.loads(error["payload"])["year"] for error in result.errors] == ["2001", 2**40]


def test_kept_json_values_of_several_types_become_text(run: Callable[..., Inline], tmp_path: Path) -> None:
    values = ["a", 1, 2.5, True, [1], {"b": None}, None]
    result = run(write_jsonl(tmp_path / "in.jsonl", [row(meta=value) for value in values]), keep=("meta",))
    assert [found["meta"] for found in result.rows] == ["a", "1", "2.5", "true", "[1]", '{"b": null}', None]


def test_id_of_a_bad_record_with_a_lone_surrogate(run: Callable[..., Inline], tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row(id="x")) + '\n{"id": "\\ud800", "tokens": 3, "tags": []}\n')
    (error,) = run(source, id_column="id", max_error_rate=0.5).errors
    assert error["example_id"] == "?"


def test_tags_beyond_int64(run: Callable[..., Inline], tmp_path: Path) -> None:
    rows = [{"tokens": ["Anna"], "tags": [1]}, {"tokens": ["Otto"], "tags": [2**64 - 1]}]
    table = pa.table(
        {"tokens": [r["tokens"] for r in rows], "tags": pa.array([r["tags"] for r in rows], pa.list_(pa.uint64()))}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    (error,) = run(tmp_path / "in.parquet", max_error_rate=0.5).errors
    assert error["reason"] == "label_out_of_range"
    assert str(2**64 - 1) in error["detail"]


@pytest.mark.parametrize("type_", [pa.binary(), pa.float64(), pa.binary(16)])
def test_ids_are_text_or_integers(run: Callable[..., Inline], tmp_path: Path, type_: pa.DataType) -> None:
    value = 0.5 if type_ == pa.float64() else b"0123456789abcdef"
    table = pa.table({"tokens": [["Anna"]], "tags": [["O"]], "id": pa.array([value], type_)})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(Refused, match=r"column id of in\.parquet is .*, but text or an integer per row"):
        run(tmp_path / "in.parquet", id_column="id")


def test_partition_column_named_twice(run: Callable[..., Inline], tmp_path: Path) -> None:
    run(write_jsonl(tmp_path / "in.jsonl", [row(lang="de")]), partition_by=("lang", "lang"))
    (file,) = (tmp_path / "out" / "scores").rglob("*.parquet")
    assert file.parent == tmp_path / "out" / "scores" / "lang=de"


def test_linked_folders_are_read_and_rings_end(run: Callable[..., Inline], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_jsonl(tmp_path / "elsewhere" / "b.jsonl", [row()])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", [row()])
    (corpus / "linked").symlink_to(tmp_path / "elsewhere")
    (corpus / "ring").symlink_to(corpus)
    assert [found["source"] for found in run(corpus).rows] == ["a.jsonl", "linked/b.jsonl"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is damaged"),
        (lambda folder: (folder / "state.json").write_text("[]"), "state.json is damaged"),
        (lambda folder: next(folder.glob("*.arrow")).unlink(), "is incomplete: data-00000-of-00001.arrow is missing"),
    ],
    ids=["cut-off", "list", "lost-file"],
)
def test_damaged_saved_dataset(
    run: Callable[..., Inline], tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    datasets.Dataset.from_list([row()]).save_to_disk(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(Refused, match=sentence):
        run(tmp_path / "saved")


def test_output_that_cannot_be_made(model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [row()])
    config = ScoreConfig(model=str(model), input=(str(source),), output=str(source / "out"))
    with pytest.raises(StorageFailed, match=r"cannot write .*: not a directory"):
        score_inline(config)


def test_bad_rows_alone_make_shards_too(
    run: Callable[..., Inline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a file of nothing but bad rows would have to fit into memory, payloads and all."""
    monkeypatch.setattr(cutting, "MAX_ERROR_ROWS", 1000)
    source = write_jsonl(tmp_path / "in.jsonl", [row(), *[row(tags=[])] * 4000, row()])
    result = run(source, max_error_rate=1)
    assert [record.rows for record in result.records] == [1024, 1024, 1024, 930]
    assert [record.scored_rows for record in result.records] == [1, 0, 0, 1]
    assert result.totals.error_rows == len({error["source_row"] for error in result.errors}) == 4000


def test_rows_that_get_lost_on_the_way_are_noticed(run: Callable[..., Inline], tmp_path: Path) -> None:
    decoded = Decoded(pa.table({}), pa.table({}), {"rows": 2})
    with pytest.raises(JobFailed, match="3 rows were encoded, but 2 were scored"):
        commit_shard(None, {"rows": 3, "unit": 0, "index": 0}, decoded)  # type: ignore[arg-type]


def test_input_that_changes_after_the_plan(model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [row()])
    config = ScoreConfig(model=str(model), input=(str(source),), output=str(tmp_path / "out"))
    plan = make_plan(preflight(config), False, False)
    os.utime(source, (1, 1))
    with pytest.raises(JobFailed, match=r"in\.jsonl has changed since the run began"):
        next(read_unit(plan.job, plan.units[0]))
