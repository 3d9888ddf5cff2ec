"""Which files are input: names, folders, patterns, saved datasets and their splits."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, write_jsonl
from tests.support.tiny import (
    TAG_LIST,
    TAGS,
    class_labels,
    ids,
    labels_by_first_word,
    row,
    saved,
)


def test_no_such_file(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(input=tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl does not exist" in message


def test_one_of_several_inputs_is_missing(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    assert "gone.jsonl does not exist" in refused(input=[str(good), str(tmp_path / "gone.jsonl")])


def test_no_match_for_a_pattern(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(input=tmp_path / "*.parquet")
    assert "nothing matches" in message
    assert "*.parquet" in message


def test_folder_without_input(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.xml").write_text("a,b\n", encoding="utf-8")
    assert "holds no Parquet (.parquet, .pq) or JSON Lines (.jsonl, " in refused(input=tmp_path / "folder")


def test_format_that_is_not_known(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "data.xml").write_text("a,b\n", encoding="utf-8")
    assert "data.xml is neither Parquet (.parquet, .pq) nor JSON Lines (.jsonl" in refused(input=tmp_path / "data.xml")


@pytest.mark.parametrize("content", [b"", b"not Parquet at all, whatever the name says"])
def test_file_that_is_not_parquet(refused: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.parquet").write_bytes(content)
    assert "cannot read in.parquet as Parquet" in refused(input=tmp_path / "in.parquet")


def test_splits(refused: Callable[..., str], tmp_path: Path) -> None:
    one = class_labels(["O", "B-PER"])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "dict")
    one.save_to_disk(tmp_path / "single")
    message = refused(input=tmp_path / "dict")
    assert "holds the splits train, test: choose one with --split" in message
    message = refused(input=tmp_path / "dict", split="dev")
    assert "has no split dev; it has train, test" in message
    message = refused(input=tmp_path / "single", split="train")
    assert "a single dataset without splits: leave out --split" in message


@pytest.mark.parametrize("pattern", ["good.jsonl", "", "*.jsonl"], ids=["file", "folder", "glob"])
def test_split_of_input_that_has_none(refused: Callable[..., str], good: Path, tmp_path: Path, pattern: str) -> None:
    """A split that is asked for and cannot be chosen must not be passed over in silence."""
    (tmp_path / "data").mkdir()
    shutil.copy(good, tmp_path / "data")
    assert "--split" in refused(input=tmp_path / "data" / pattern, split="train")


def test_saved_dataset_of_no_rows(run: Callable[..., Inline], tmp_path: Path) -> None:
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": TAG_LIST})
    datasets.Dataset.from_dict({"tokens": [], "ner_tags": []}, features=features).save_to_disk(tmp_path / "saved")
    assert run(tmp_path / "saved").totals.rows == 0


def test_saved_dataset(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Three Arrow files, tag names from the ClassLabel feature, mapped by name."""
    saved(11).save_to_disk(tmp_path / "saved", num_shards=3)
    result = run(tmp_path / "saved")
    assert labels_by_first_word(result) == {f"w{i}": ["O", "B-LOC", "B-PER", "O"] for i in range(11)}
    assert len({r["source"] for r in result.rows}) == 3
    assert len({r["example_id"] for r in result.rows}) == 11
    assert not result.plan.warnings


def test_saved_dataset_that_was_filtered(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Rows that were filtered away before saving do not come back."""
    kept = saved(20).shuffle(seed=0).filter(lambda row: int(row["tokens"][0][1:]) % 3 == 0)
    kept.save_to_disk(tmp_path / "saved")
    assert set(labels_by_first_word(run(tmp_path / "saved"))) == {f"w{i}" for i in range(0, 20, 3)}


def test_saved_dataset_dict(run: Callable[..., Inline], tmp_path: Path) -> None:
    data = datasets.DatasetDict({"train": saved(7), "validation": saved(3)})
    data.save_to_disk(tmp_path / "saved")
    result = run(tmp_path / "saved", split="validation")
    assert len(result.rows) == 3
    assert all(r["source"].startswith("validation/") for r in result.rows)
    assert len(run(tmp_path / "saved" / "train").rows) == 7


def test_saved_dataset_dict_of_one_split_needs_no_choice(run: Callable[..., Inline], tmp_path: Path) -> None:
    datasets.DatasetDict({"validation": saved(3)}).save_to_disk(tmp_path / "saved")
    assert len(run(tmp_path / "saved").rows) == 3


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five files of two rows each, in folders, and some that are not input."""
    root = tmp_path / "data"
    for name in ("b.parquet", "a.jsonl", "sub/c.parquet", "sub/deep/d.ndjson", "sub/e.jsonl.gz"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sentences = [row(name, "eins"), row(name, "zwei")]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(sentences), path)
        else:
            write_jsonl(path, sentences)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    for name in ("README.md", ".hidden.jsonl", "_old/x.jsonl", "_SUCCESS"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no input\n", encoding="utf-8")
    return root


def names_and_sources(result: Inline) -> list[tuple[str, str]]:
    """(the file's name as its rows say, source) in the order of the output, each once."""
    return list(dict.fromkeys((r["words"][0], r["source"]) for r in result.rows))


def test_folder(run: Callable[..., Inline], tree: Path) -> None:
    result = run(tree)
    assert len(result.rows) == 10
    wanted = ["a.jsonl", "b.parquet", "sub/c.parquet", "sub/deep/d.ndjson", "sub/e.jsonl.gz"]
    assert names_and_sources(result) == [(name, name) for name in wanted]


def test_files_of_a_folder_that_are_no_input_are_named(run: Callable[..., Inline], tree: Path) -> None:
    """Not those that nobody expects to be read, and not those that are named themselves."""
    assert not run(tree, tags=TAGS).plan.warnings
    for name in ("notes.txt", "sub/f.csv", "sub/deep/g.TSV.gz", "z.bin", "zz.bin"):
        (tree / name).write_text("Anna O\n")
    (warning,) = run(tree, tags=TAGS).plan.warnings
    assert warning == (
        f"5 files in {tree} are not input, judging by the name, and skipped: notes.txt, sub/deep/g.TSV.gz, sub/f.csv "
        "and 2 more; CoNLL columns in files named .txt or .tsv and CSV in files named .csv are read only if --input "
        "names them"
    )
    named = run([str(tree / "sub"), str(tree / "notes.txt")], limit=3, tags=TAGS)
    (warning,) = named.plan.warnings
    assert warning.startswith(f"2 files in {tree / 'sub'} are not input")
    assert not run([str(tree / "*.parquet"), str(tree / "a.jsonl")], tags=TAGS).plan.warnings


def test_files_beside_a_saved_dataset_are_named(run: Callable[..., Inline], tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": saved(1), "test": saved(2)})
    both.save_to_disk(tmp_path / "both")
    (tmp_path / "both" / "README.md").write_text("no input")
    (tmp_path / "both" / "train" / "cache-123.arrow").write_bytes(b"")
    (tmp_path / "both" / "test" / "more.jsonl").write_text("")
    assert not run(tmp_path / "both", split="train").plan.warnings
    (warning,) = run(tmp_path / "both", split="test").plan.warnings
    assert warning == f"1 file in {tmp_path / 'both'} is not input, judging by the name, and skipped: test/more.jsonl"


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.parquet", {"b.parquet": "b.parquet"}),
        ("sub/*.*", {"sub/c.parquet": "c.parquet", "sub/e.jsonl.gz": "e.jsonl.gz"}),
        ("**/*.parquet", {"b.parquet": "b.parquet", "sub/c.parquet": "sub/c.parquet"}),
        ("s*/deep/?.ndjson", {"sub/deep/d.ndjson": "sub/deep/d.ndjson"}),
    ],
)
def test_glob(run: Callable[..., Inline], tree: Path, pattern: str, wanted: dict[str, str]) -> None:
    """`source` is relative to the folder before the first wildcard."""
    assert dict(names_and_sources(run(tree / pattern))) == wanted


def test_several_inputs(run: Callable[..., Inline], tree: Path) -> None:
    """In the order given, a file that is named twice only once, names relative to what they have in common."""
    result = run([str(tree / "sub" / "*.parquet"), str(tree / "a.jsonl"), str(tree / "sub"), str(tree / "a.jsonl")])
    assert [source for _, source in names_and_sources(result)] == [
        "sub/c.parquet",
        "a.jsonl",
        "sub/deep/d.ndjson",
        "sub/e.jsonl.gz",
    ]
    assert len(result.rows) == 8


def test_default_example_id(run: Callable[..., Inline], tree: Path) -> None:
    result = run(tree)
    assert [r["example_id"] for r in result.rows if r["source"] == "sub/c.parquet"] == [
        "sub/c.parquet:0",
        "sub/c.parquet:1",
    ]
    second = len((tree / "a.jsonl").read_bytes().splitlines()[0]) + 1
    assert [r["example_id"] for r in result.rows if r["source"] == "a.jsonl"] == ["a.jsonl:0", f"a.jsonl:{second}"]


def test_file_whose_name_looks_like_a_pattern(run: Callable[..., Inline], tmp_path: Path) -> None:
    (tmp_path / "x[1]").mkdir()
    source = write_jsonl(tmp_path / "x[1]" / "what?.jsonl", [row("Anna")])
    assert ids(run(source)) == ["what?.jsonl:0"]
