"""Corrections reach every kind of dataset, and nothing else of it changes."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import inline
from tests.support.corrections import FORMATS, TAGS, annotated_if, correct, scored
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.apply import apply_fixes
from tokloss_ray.exporting.export import export
from tokloss_ray.exporting.sentences import read_sentences, worst_keys


@pytest.mark.parametrize("format", FORMATS)
def test_corrections_reach_the_dataset_and_nothing_else_changes(folder: Path, tmp_path: Path, format: Any) -> None:
    file, out = tmp_path / "fix", str(folder / "out")
    export(out, str(file), format, worst=20)
    same = apply_fixes(annotated_if(file, format), str(folder / "data"), str(tmp_path / "same"))
    assert (same.rows_read, same.rows_changed, same.words_changed, same.files_changed) == (20, 0, 0, 0)
    for path in sorted((folder / "data").rglob("*")):
        if path.is_file():
            assert (tmp_path / "same" / path.relative_to(folder / "data")).read_bytes() == path.read_bytes()

    chosen = [(s.example_id, s.labels) for s in read_sentences(out, worst_keys(out, 20))]
    changes = {(n, len(labels) - 1): "B-LOC" for n, labels in chosen if labels[-1] == "O"}
    changes |= {(n, 0): "O" for n, labels in chosen[:6] if labels[0] != "O" and labels[1:2] in ([], ["O"])}
    correct(file, format, changes)
    done = apply_fixes(str(file), str(folder / "data"), str(tmp_path / "new"))
    assert (done.rows_read, done.words_changed) == (20, len(changes))
    assert done.rows_changed == len({n for n, _ in changes})
    assert (tmp_path / "new" / "README.md").read_text() == "about\n"
    for name in ("a.parquet", "more/b.parquet"):
        before, after = (pq.read_table(base / name) for base in (folder / "data", tmp_path / "new"))
        assert after.schema.equals(before.schema, check_metadata=True)
        expected = before["ner_tags"].to_pylist()
        for row, key in zip(expected, before["id"].to_pylist(), strict=True):
            for i in range(len(row)):
                row[i] = TAGS.index(changes[key, i]) if (key, i) in changes else row[i]
        assert after["ner_tags"].to_pylist() == expected
        assert after.drop_columns(["ner_tags"]).equals(before.drop_columns(["ner_tags"]))
        old, new = (pq.ParquetFile(base / name).metadata for base in (folder / "data", tmp_path / "new"))
        assert new.num_row_groups == old.num_row_groups
        assert new.row_group(0).column(0).compression == old.row_group(0).column(0).compression
    # Once more: the tags are there already.
    again = apply_fixes(str(file), str(tmp_path / "new"), str(tmp_path / "again"))
    assert (again.words_changed, again.words_same) == (0, len(changes))


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2"])
def test_json_lines_keep_every_other_byte(folder: Path, tmp_path: Path, packing: str) -> None:
    lines = [
        '{"n": 1.0e5, "tokens": ["Anna", "in", "Rom"], "ner_tags":["B-PER","O", "O"],  "z": {"ner_tags": [1]}}\r\n',
        "\n",
        '{"tokens":["\\u00e9","=1"],"ner_tags":["O","O"],"ner_tags":["B-LOC","O"]}\n',
        "no JSON\n",
        '{"tokens": ["Rom", "😀"], "ner_tags": [null, "O"]}',
    ]
    data = tmp_path / f"in.jsonl{packing}"
    packs: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
    data.write_bytes(packs[packing]("".join(lines).encode()))
    output = scored(folder, tmp_path, data, max_error_rate=1.0)
    export(output, str(tmp_path / "x.csv"), "csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "x.csv").read_text("utf-8-sig"), newline="")))
    assert [row[4] for row in rows[1:]] == ["Anna", "in", "Rom", "é", "'=1", "Rom", "😀"]
    for at, new in ((3, "B-LOC"), (5, "B-PER"), (6, "B-LOC")):
        rows[at][-1] = new
    with (tmp_path / "x.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    done = apply_fixes(str(tmp_path / "x.csv"), str(data), str(tmp_path / f"new.jsonl{packing}"))
    assert (done.rows_changed, done.words_changed) == (3, 3)
    unpack: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.decompress, ".bz2": bz2.decompress}
    text = unpack[packing]((tmp_path / f"new.jsonl{packing}").read_bytes()).decode()
    lines[0] = lines[0].replace('["B-PER","O", "O"]', '["B-PER", "O", "B-LOC"]')
    lines[2] = lines[2].replace('["B-LOC","O"]', '["B-LOC", "B-PER"]')
    lines[4] = lines[4].replace('[null, "O"]', '["B-LOC", "O"]')
    assert text == "".join(lines)


def test_string_tags_dictionaries_and_nulls_keep_their_type(folder: Path, tmp_path: Path) -> None:
    tags = pa.array([["O", None], ["B-PER", "O"], None], pa.list_(pa.dictionary(pa.int8(), pa.string())))
    table = pa.table({"words": pa.array([["a", "b"], ["c", "d"], ["e"]], pa.large_list(pa.string())), "tags": tags})
    pq.write_table(table, tmp_path / "in.parquet")
    output = scored(folder, tmp_path, tmp_path / "in.parquet", max_error_rate=1.0)
    export(output, str(tmp_path / "x.conll"), "conll")
    text = (tmp_path / "x.conll").read_text()
    assert "b\t_\t" in text
    (tmp_path / "x.conll").write_text(
        text.replace("d\tO\t", "d\tO\tX\t", 1).replace("X\t", "").replace("\tO\n\n", "\tB-PER\n\n")
    )
    apply_fixes(str(tmp_path / "x.conll"), str(tmp_path / "in.parquet"), str(tmp_path / "new.parquet"))
    new = pq.read_table(tmp_path / "new.parquet")
    assert new.schema == pq.read_table(tmp_path / "in.parquet").schema
    assert new["tags"].to_pylist() == [["O", None], ["B-PER", "B-PER"], None]


def test_a_saved_dataset_and_one_split_of_it(folder: Path, tmp_path: Path) -> None:
    import datasets

    table = pq.read_table(folder / "data" / "a.parquet").slice(0, 30)
    saved = datasets.DatasetDict({"train": datasets.Dataset(table), "test": datasets.Dataset(table.slice(0, 5))})
    saved.save_to_disk(tmp_path / "saved")
    output = scored(folder, tmp_path, tmp_path / "saved", split="train", id_column="id")
    export(output, str(tmp_path / "x.conll"), "conll", ids=["de-val-3"])
    correct(tmp_path / "x.conll", "conll", {("de-val-3", 0): "I-LOC"})
    apply_fixes(str(tmp_path / "x.conll"), str(tmp_path / "saved"), str(tmp_path / "new"), split="train")
    old, new = (datasets.load_from_disk(str(tmp_path / name)) for name in ("saved", "new"))
    assert new["test"].to_dict() == old["test"].to_dict()
    assert new["train"].features == old["train"].features
    expected = old["train"].to_dict()
    expected["ner_tags"][3][0] = TAGS.index("I-LOC")
    assert new["train"].to_dict() == expected


def test_ids_join_a_dataset_of_other_files(folder: Path, tmp_path: Path) -> None:
    export(str(folder / "out"), str(tmp_path / "x.csv"), "csv", ids=["de-val-120", "de-val-4"])
    correct(tmp_path / "x.csv", "csv", {("de-val-120", 0): "I-LOC", ("de-val-4", 0): "I-LOC"})
    both = pa.concat_tables([pq.read_table(folder / "data" / name) for name in ("more/b.parquet", "a.parquet")])
    pq.write_table(both, tmp_path / "both.parquet")
    with pytest.raises(Refused, match="--id-column"):
        apply_fixes(str(tmp_path / "x.csv"), str(tmp_path / "both.parquet"), str(tmp_path / "new.parquet"))
    done = apply_fixes(
        str(tmp_path / "x.csv"), str(tmp_path / "both.parquet"), str(tmp_path / "new.parquet"), id_column="id"
    )
    assert done.rows_changed == 2
    new = {row["id"]: row for row in pq.read_table(tmp_path / "new.parquet").to_pylist()}
    assert TAGS[new["de-val-120"]["ner_tags"][0]] == TAGS[new["de-val-4"]["ner_tags"][0]] == "I-LOC"


def _with_line(text: str, number: int, line: str) -> str:
    lines = text.split("\n")
    lines[number] = line.format(*lines[number].split("\t"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: _with_line(t, 4, "{0}\tI-LOC\tO\tI-PER"), "exported as I-LOC but is .* in the dataset"),
        (lambda t: _with_line(t, 4, "{0}\t{1}\tO\tI-MISC"), "gets the tag I-MISC, which the dataset does not have"),
        (lambda t: t.replace("\n\n", "\nextra\tO\tO\tO\n\n", 1), "missing in the dataset"),
        (lambda t: _with_line(t, 4, "Zebra\t{1}\tO\t{1}"), "'Zebra'"),
        (lambda t: t.replace("source_row = ", "source_row = 9", 1), "has no row|missing|but '"),
        (lambda t: t.replace("# source = ", "# source = other/", 1), "which .* does not have"),
        (lambda t: t.replace("# source_row", "# row", 1), "line 5"),
        (lambda t: t.replace("\t", "", 1), "line 5 does not have the exported columns"),
        (lambda t: t.split("\n", 1)[1], "no columns|no line"),
        (lambda t: "[" + t, "not valid JSON"),
        (lambda t: "", "it has no columns"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(folder: Path, tmp_path: Path, edit: Any, says: str) -> None:
    export(str(folder / "out"), str(tmp_path / "x"), "conll", worst=1)
    (tmp_path / "x").write_text(edit((tmp_path / "x").read_text()))
    with pytest.raises(Refused, match=says):
        apply_fixes(str(tmp_path / "x"), str(folder / "data"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_tags_and_places_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "in.jsonl"
    inline.write_jsonl(data, [{"tokens": ["a"], "tags": [0]}, {"tokens": ["b"], "tags": [1]}])
    output = scored(folder, tmp_path, data)
    export(output, str(tmp_path / "x"), "csv")
    text = (tmp_path / "x").read_text("utf-8-sig")
    (tmp_path / "x").write_text(
        "O,".join(text.split("O,", 1)).replace(",O\r\n", ",B-PRE\r\n").replace(",O\n", ",B-PRE\n")
    )
    with pytest.raises(Refused, match="list them in order with --tags"):
        apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"))
    with pytest.raises(Refused, match="gets the tag B-PRE"):
        apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"), tags=tuple(TAGS))
    inline.write_jsonl(data, [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["B-PER"]}])
    shutil.rmtree(tmp_path / "out")
    export(scored(folder, tmp_path, data), str(tmp_path / "x"), "csv", overwrite=True)
    correct(tmp_path / "x", "csv", {("in.jsonl:0", 0): "B-PRE"})
    with pytest.raises(Refused, match="which no word has yet"):
        apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"))
    assert apply_fixes(str(tmp_path / "x"), str(data), str(tmp_path / "new.jsonl"), tags=("B-PRE",)).words_changed == 1
    for place, says in ((str(data), "already exists"), (str(tmp_path / "new.jsonl"), "already exists")):
        with pytest.raises(Refused, match=says):
            apply_fixes(str(tmp_path / "x"), str(data), place)
    with pytest.raises(Refused, match="is inside the dataset"):
        apply_fixes(str(tmp_path / "x"), str(folder / "data"), str(folder / "data" / "new"))
    with pytest.raises(Refused, match="no such file"):
        apply_fixes(str(tmp_path / "nothing"), str(data), str(tmp_path / "new2"))
