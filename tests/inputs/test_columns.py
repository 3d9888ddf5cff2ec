"""Which columns are used, and which tags their numbers stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.inline import Inline, score_inline, write_jsonl
from tests.support.tiny import (
    Row,
    class_labels,
    labels_by_first_word,
    row,
    saved,
)
from tokloss_ray import ScoreConfig
from tokloss_ray.inputs.columns import ColumnOptions, find_columns
from tokloss_ray.inputs.listing import inspect_files, list_inputs


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "settings", "wanted"),
    [
        (("text", "ner_tags"), {}, ["no column with words", "--tokens-column", "text, ner_tags"]),
        (("tokens", "gold"), {}, ["no column with tags", "--labels-column", "tokens, gold"]),
        (("tokens", "tags"), {"tokens_column": "words"}, ["no column words", "--tokens-column", "tokens, tags"]),
        (("tokens", "tags"), {"labels_column": "ner"}, ["no column ner", "--labels-column", "tokens, tags"]),
        (("tokens", "tags"), {"id_column": "key"}, ["no column key", "--id-column", "tokens, tags"]),
        (("tokens", "tags"), {"keep": ["year"]}, ["no column year", "--keep", "tokens, tags"]),
        (("tokens", "tags"), {"partition_by": ["lang"]}, ["no column lang", "--partition-by", "tokens, tags"]),
    ],
    ids=["words", "labels", "tokens-column", "labels-column", "id-column", "keep", "partition-by"],
)
def test_missing_column(
    refused: Callable[..., str],
    tmp_path: Path,
    file_format: str,
    columns: tuple[str, str],
    settings: Row,
    wanted: list[str],
) -> None:
    """The sentence names the option and lists the columns there are."""
    sentence = {columns[0]: ["Anna"], columns[1]: ["B-PER"]}
    if file_format == "jsonl":
        source = write_jsonl(tmp_path / "in.jsonl", [sentence])
    else:
        source = parquet(tmp_path / "in.parquet", **{name: [value] for name, value in sentence.items()})
    message = refused(input=source, **settings)
    assert "in." + file_format in message
    for words in wanted:
        assert words in message


PROPOSED = [
    (
        {"id": "x", "sentence_tokens": ["Anna"], "bio": ["O"]},
        "; column sentence_tokens is a list of strings and column bio is a list of strings: "
        "use --tokens-column sentence_tokens --labels-column bio",
    ),
    (
        {"gold_ner": ["O"], "sentence": ["Anna"], "ids": [3]},
        "column sentence is a list of strings and column gold_ner is a list of strings: "
        "use --tokens-column sentence --labels-column gold_ner",
    ),
    (
        {"tags": [1], "sentence": ["Anna"]},
        "; column sentence is a list of strings: use --tokens-column sentence",
    ),
    (
        {"tokens": ["Anna"], "x": [0], "n": 3},
        "no column with tags: in has the columns tokens, x, n; column x is a list of integers: use --labels-column x",
    ),
    (
        {"data": {"words": ["Anna"], "tags": ["O"]}},
        "column data.words is a list of strings and column data.tags is a list of strings: "
        "use --tokens-column data.words --labels-column data.tags",
    ),
    ({"text": "Anna", "tags": ["O"]}, "; select one with --tokens-column"),
    ({"tokens": ["Anna"], "label": "O"}, "; select one with --labels-column"),
]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize(("sentence", "wanted"), PROPOSED)
def test_columns_that_are_proposed(
    refused: Callable[..., str], tmp_path: Path, file_format: str, sentence: Row, wanted: str
) -> None:
    """And with the options that are proposed, the columns are found."""
    path = tmp_path / f"in.{file_format}"
    if file_format == "jsonl":
        write_jsonl(path, [sentence, sentence])
    else:
        pq.write_table(pa.Table.from_pylist([sentence]), path)
    message = refused(input=path)
    assert wanted in message.replace(path.name, "in")
    words = message.partition("use ")[2].split()
    options = ColumnOptions(**{words[i][2:].replace("-", "_"): words[i + 1] for i in range(0, len(words), 2)})
    if words:
        found = find_columns(options, inspect_files(list_inputs([str(path)])))
        assert found.words in (options.tokens_column, "tokens")


def test_another_column_is_proposed_for_one_of_a_wrong_type(refused: Callable[..., str], tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", tokens=["Anna"], ner_tags=[["O"]], words_split=[["Anna"]])
    message = refused(input=source)
    assert message.endswith("; column words_split is a list of strings: use --tokens-column words_split")


def test_column_missing_in_a_later_file(refused: Callable[..., str], tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", tokens=[["Anna"]], ner_tags=[["O"]])
    parquet(tmp_path / "b.parquet", tokens=[["Anna"]], tags=[["O"]])
    message = refused(input=tmp_path / "*.parquet")
    assert "no column ner_tags" in message
    assert "b.parquet has the columns tokens, tags" in message


@pytest.mark.parametrize(
    ("columns", "settings", "wanted"),
    [
        ({"tokens": ["Anna wohnt"], "ner_tags": [[0]]}, {}, ["tokens", "is string", "a list of strings"]),
        ({"tokens": [[1, 2]], "ner_tags": [[0, 0]]}, {}, ["tokens", "int64", "a list of strings"]),
        ({"tokens": [["a"]], "ner_tags": [[0.5]]}, {}, ["ner_tags", "double", "a list of tags"]),
        ({"tokens": [["a"]], "ner_tags": ["O"]}, {}, ["ner_tags", "is string", "a list of tags"]),
        ({"input_ids": [["a"]], "labels": [[0]]}, {}, ["input_ids", "string", "a list of integers"]),
        ({"tokens": [["a"]], "tags": [["O"]], "k": [["x"]]}, {"id_column": "k"}, ["column k", "text or an integer"]),
        (
            {"tokens": [["a"]], "tags": [["O"]], "k": [["x"]]},
            {"partition_by": ["k"]},
            ["column k", "one value per row"],
        ),
    ],
    ids=["words-string", "words-numbers", "tags-floats", "tags-string", "ids-strings", "id-list", "partition-list"],
)
def test_column_of_the_wrong_type(
    refused: Callable[..., str], tmp_path: Path, columns: Row, settings: Row, wanted: list[str]
) -> None:
    message = refused(input=parquet(tmp_path / "in.parquet", **columns), **settings)
    for words in wanted:
        assert words in message


def test_kept_column_of_two_types(refused: Callable[..., str], tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", tokens=[["Anna"]], tags=[["O"]], year=[1999])
    parquet(tmp_path / "b.parquet", tokens=[["Anna"]], tags=[["O"]], year=["1999"])
    message = refused(input=tmp_path / "*.parquet", keep=["year"])
    assert "column year is int64 in a.parquet and string in b.parquet" in message


@pytest.mark.parametrize("option", ["keep", "partition_by", "add_column"])
@pytest.mark.parametrize("name", ["loss", "example_id", "probs"])
def test_column_name_that_the_output_has(refused: Callable[..., str], option: str, name: str) -> None:
    message = refused(**{option: {name: "x"} if option == "add_column" else [name]})
    assert name in message
    assert "reserved column name" in message


def test_kept_column_that_is_the_words(refused: Callable[..., str]) -> None:
    assert "column tokens is already in the output, as words" in refused(keep=["tokens"])


def test_column_kept_and_added(refused: Callable[..., str]) -> None:
    message = refused(keep=["lang"], add_column={"lang": "de"})
    assert "lang: both kept from the input and added as a constant" in message


def test_declared_tags_that_the_model_lacks(refused: Callable[..., str]) -> None:
    message = refused(tags=["O", "B-PER", "B-MISC"])
    assert "--tags names tags that the model does not have: B-MISC" in message
    assert "data: O, B-PER, B-MISC" in message
    assert "model: O, B-PER, I-PER, B-LOC" in message


def test_tag_declared_twice(refused: Callable[..., str]) -> None:
    assert "duplicate name" in refused(tags=["O", "B-PER", "O"])


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_class_labels_that_the_model_lacks(refused: Callable[..., str], tmp_path: Path, kind: str) -> None:
    data = class_labels(["O", "B-MISC", "I-MISC"])
    if kind == "saved":
        data.save_to_disk(tmp_path / "in")
    else:
        data.to_parquet(tmp_path / "in")
        (tmp_path / "in").rename(tmp_path / "in.parquet")
    message = refused(input=tmp_path / ("in" if kind == "saved" else "in.parquet"))
    assert "tags that the model does not have: B-MISC, I-MISC" in message
    assert "model: O, B-PER, I-PER, B-LOC" in message


def test_files_that_declare_different_tags(refused: Callable[..., str], tmp_path: Path) -> None:
    class_labels(["O", "B-PER"]).to_parquet(tmp_path / "a.parquet")
    class_labels(["B-PER", "O"]).to_parquet(tmp_path / "b.parquet")
    message = refused(input=tmp_path / "*.parquet")
    assert "a.parquet and b.parquet declare different tag names" in message


def test_string_tags_of_another_scheme(refused: Callable[..., str], tmp_path: Path) -> None:
    """More than half of the sample has tags that the model lacks: both lists of names are shown."""
    rows = [row("Anna", tags=["PERSON"]), row("Otto", tags=["PERSON"]), row("See", tags=["O"])]
    message = refused(input=write_jsonl(tmp_path / "in.jsonl", rows))
    assert "tags that the model does not know" in message
    assert "O, B-PER, I-PER, B-LOC" in message
    assert "PERSON" in message


def test_string_tags_half_unknown_are_bad_rows(model: Path, tmp_path: Path) -> None:
    """Exactly half is not more than half."""
    rows = [row("Anna", tags=["PERSON"]), row("See", tags=["O"])]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    config = ScoreConfig(model=str(model), input=str(source), output=str(tmp_path / "out"), max_error_rate=0.5)
    assert score_inline(config).totals.errors == {"unknown_tag": 1}


def test_ign_among_declared_tags(run: Callable[..., Inline], tmp_path: Path) -> None:
    """The preflight lets `IGN` pass as a name of the data: its positions are ignored."""
    source = write_jsonl(tmp_path / "in.jsonl", [row("Anna", "am", "See", tags=[2, 1, 0])])
    (found,) = run(source, tags=["B-LOC", "IGN", "B-PER"]).rows
    assert found["labels"] == ["IGN", "B-PER", "IGN", "B-LOC", "IGN"]


def test_class_labels_in_parquet(run: Callable[..., Inline], tmp_path: Path) -> None:
    saved(3).to_parquet(tmp_path / "in.parquet")
    assert set(map(tuple, labels_by_first_word(run(tmp_path / "in.parquet")).values())) == {
        ("O", "B-LOC", "B-PER", "O")
    }
