"""Tables as CSV and TSV: which cells are lists, what is wrong with a row, and which files are tables at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.inline import Inline
from tests.support.tiny import TAGS, zero_bytes
from tokloss_ray.inputs import csv_records
from tokloss_ray.inputs.csv_records import records_in
from tokloss_ray.inputs.csv_table import is_table

HEADER = b"id,tokens,ner_tags\n"
GOOD = b'%d,"[""Anna"", ""Otto""]","[""B-PER"", ""O""]"\n'


def table(path: Path, *lines: bytes) -> Path:
    """A table in which good rows stand before, between and after the lines."""
    text = HEADER + GOOD % 0
    for number, line in enumerate(lines, 1):
        text += line + GOOD % number
    return zero_bytes(path, text)


BROKEN = {
    "cells": (b'x,"[""a""]"\n', "malformed", "2 cells, but the first line names 3 columns"),
    "more-cells": (b"x,[],[],[]\n", "malformed", "4 cells, but the first line names 3 columns"),
    "quote": (b'x,"[""a""]" ,[]\n', "malformed", "not a row of CSV: ',' expected after '\"'"),
    "utf-8": (b"x,\xff,[]\n", "malformed", "not UTF-8"),
    "no-list": (b"x,Anna,[]\n", "malformed", "tokens: neither a list as JSON nor as Python prints it"),
    "numpy": (b"x,['a' 'b'],['O' 'O']\n", "malformed", "numpy printed it, without commas"),
    "object": (b'x,"[""a""]","{""a"": 1}"\n', "malformed", "ner_tags: not a list"),
    "number": (b'x,"[""a"", 1]","[""O"", ""O""]"\n', "not_a_string", "tokens holds 1"),
    "lengths": (b'x,"[""a""]","[""O"", ""O""]"\n', "length_mismatch", "1 tokens, 2 ner_tags"),
    "empty": (b"x,[],[]\n", "empty", "tokens has no words"),
    "null": (b"x,,\n", "null_field", "tokens is null"),
    "null-word": (b'x,"[""a"", null]","[""O"", ""O""]"\n', "null_field", "tokens[1] is null"),
    "tag": (b'x,"[""a""]","[""B-X""]"\n', "unknown_tag", "['B-X'] not in"),
    "surrogate": (b'x,"[""\\ud800""]","[""O""]"\n', "malformed", "surrogates not allowed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row(run: Callable[..., Inline], tmp_path: Path, name: str) -> None:
    """It is a row of errors/ with its reason, where it stands; those around it are read."""
    line, reason, detail = BROKEN[name]
    path = table(tmp_path / "in.csv", line)
    result = run(path, max_error_rate=1.0)
    at = len(HEADER) + len(GOOD % 0)
    assert [row["source_row"] for row in result.rows] == [len(HEADER), at + len(line)]
    (error,) = result.errors
    assert (error["source_row"], error["reason"]) == (at, reason)
    assert detail in error["detail"]


def test_id_of_a_broken_row(run: Callable[..., Inline], tmp_path: Path) -> None:
    result = run(table(tmp_path / "in.csv", BROKEN["number"][0]), id_column="id", max_error_rate=1.0)
    assert [row["example_id"] for row in result.rows] == ["0", "1"]
    assert result.errors[0]["example_id"] == "x"


def test_a_quote_that_is_not_closed_takes_no_more_than_a_record_may_have(
    run: Callable[..., Inline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one row of errors/, as far as the end of the file, or the most that a row may have."""
    path = table(tmp_path / "in.csv", b'x,"[\n')
    result = run(path, max_error_rate=1.0)
    assert len(result.rows) == 1
    assert [error["reason"] for error in result.errors] == ["malformed"]
    monkeypatch.setattr(csv_records, "MAX_RECORD", 200)
    plain = b"1,\"['a']\",\"['O']\"\n"
    path = zero_bytes(
        tmp_path / "in2.csv", HEADER + plain + b'x,"\n' + b"# nothing but lines without a quote\n" * 10 + plain
    )
    rows = list(records_in(io.BytesIO(path.read_bytes())))
    assert "a record may have at most" in rows[2].problem
    assert rows[-1].cells == ["1", "['a']", "['O']"]
    assert [row.offset for row in rows] == sorted({row.offset for row in rows})


CELL = st.text(st.sampled_from("ab,;\"\n\r\t é ['"), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CELL, min_size=2, max_size=3), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_records_are_those_of_csv(rows: list[list[str]], end: str) -> None:
    """Offsets and bytes as well: together they are the file, but for blank lines."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    data = text.getvalue().encode()
    found = list(records_in(io.BytesIO(data)))
    assert [record.cells for record in found] == [["a", "b", "c"], *rows]
    assert b"".join(record.data for record in found) == data
    for record in found:
        assert data[record.offset :].startswith(record.data)
        assert not record.problem
        assert [r.cells for r in records_in(io.BytesIO(data), record.offset)] == [
            r.cells for r in found if r.offset < record.offset
        ]


def test_what_pandas_writes(run: Callable[..., Inline], tmp_path: Path) -> None:
    words = [["Anna", "it's"], ['"', "Otto"]]
    frame = pd.DataFrame({"tokens": words, "ner_tags": [[1, 0], [0, 1]], "lang": ["de", None]})
    frame.to_csv(tmp_path / "in.csv")
    frame.to_csv(tmp_path / "in.tsv", sep="\t", index=False)
    frame.map(lambda x: x if not isinstance(x, list) else " ".join(map(str, x))).to_csv(tmp_path / "in2.csv", sep=";")
    for name in ("in.csv", "in.tsv", "in2.csv"):
        rows = run(tmp_path / name, tags=TAGS, keep=["lang"]).rows
        assert [row["words"] for row in rows] == words, name
        assert [[x for x in row["labels"] if x != "IGN"] for row in rows] == [["B-PER", "O"], ["O", "B-PER"]]
        assert [row["lang"] for row in rows] == ["de", None]


def test_words_with_spaces_between(run: Callable[..., Inline], tmp_path: Path) -> None:
    lines = b"words;tags\nAnna und Otto;B-PER O B-PER\nOtto;B-PER\nAnna  Otto;B-PER O\n Anna;O\nAnna;O O\n"
    result = run(zero_bytes(tmp_path / "in.csv", lines), max_error_rate=1.0)
    assert [row["words"] for row in result.rows] == [["Anna", "und", "Otto"], ["Otto"]]
    assert [error["reason"] for error in result.errors] == ["malformed", "malformed", "length_mismatch"]
    assert result.errors[0]["detail"] == "words: words are not separated by single spaces"


def test_limit(run: Callable[..., Inline], tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", *[BROKEN["cells"][0]] * 4)
    result = run(path, limit=4, max_error_rate=1.0)
    assert (len(result.rows), len(result.errors)) == (2, 2)


REFUSED = {
    "no-header": (GOOD % 1 * 2, "cannot read in.csv as CSV: its first line must name the columns"),
    "word-a-line": (
        b"tokens,ner_tags\n" + b"Anna,B-PER\nwohnt,O\n" * 10,
        "files of one word per line are read as CoNLL columns",
    ),
    "numbered": (b"n,word,tag\n" + b"1,Anna,B-PER\n2,wohnt,O\n" * 10, "files of one word per line"),
    "no-words": (
        b'a,ner_tags\n"x","[""O""]"\n',
        "no column with words: in.csv has the columns a, ner_tags; a cell must hold a list; files of one word per line",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_no_such_tables(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    content, sentence = REFUSED[name]
    assert sentence in refused(input=zero_bytes(tmp_path / "in.csv", content))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("tokens\tner_tags\nAnna\tB-PER\nwohnt\tO\n", False),
        ("tokens\tner_tags\nNew York\tB-LOC\nwohnt\tO\n", False),
        ("tokens\tner_tags\n[\tO\n]\tO\n", False),
        ("Anna\tB-PER\n\nOtto\tB-PER\n", False),
        ("[a]\tO\n[b]\tO\n", False),
        ("Anna B-PER\n[x] [y]\n", False),
        ("", False),
        ("tokens\tner_tags\n", False),
        ("tokens\ttags\nAnna wohnt\tB-PER O\nOtto\tO\n", True),
        ("sentence\tlabels2\n['a']\t['O']\n", True),
        ('a,b\n"[""a""]","[""O""]"\n', True),
    ],
)
def test_tables_and_conll_columns_are_told_apart(tmp_path: Path, text: str, wanted: bool) -> None:
    (tmp_path / "x.tsv").write_text(text)
    assert is_table(str(tmp_path / "x.tsv")) == wanted


def test_tables_in_a_folder_are_left_alone(
    refused: Callable[..., str], run: Callable[..., Inline], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = table(tmp_path / "in" / "a.csv")
    named = str(tmp_path / "in" / "*.csv")
    assert f".csv files are read only if --input names them: {named}" in refused(input=tmp_path / "in")
    assert len(run(path.parent / "*.csv").rows) == 1
