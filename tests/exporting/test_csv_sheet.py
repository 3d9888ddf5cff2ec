"""CSV for annotators, whose spreadsheets take text for formulas."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.corrections import texts, whole
from tokloss_ray.exporting.csv_sheet import csv_words, read_csv_words
from tokloss_ray.exporting.sentences import Correction, Sentence


@pytest.mark.parametrize("word", ["=1+1", "+1", "-1", "@SUM(A1)", "\t1", "'=1", "1-2", "＝1", "007"])
def test_no_cell_of_the_csv_is_a_formula_or_a_number(word: str) -> None:
    sentence = Sentence(word, word, 0, [word], ["O"], ["O"], [0.5], [0.5])
    rows = list(csv.DictReader(io.StringIO(whole(csv_words([sentence])).decode("utf-8-sig"), newline="")))
    for name in ("example_id", "source", "word"):
        assert rows[0][name] == f"'{word}"


risky = st.text(st.sampled_from(",;\t\r\n=+-@＝'\" \xa0a1x"), max_size=9)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@settings(max_examples=400, deadline=None)
@given(words=st.lists(risky | texts, min_size=1, max_size=4), name=risky | texts)
def test_no_cell_is_a_formula_wherever_a_spreadsheet_cuts(separator: str, words: list[str], name: str) -> None:
    """A spreadsheet goes by its own separator, and may also read with the file's and save with its own."""
    n = len(words)
    sentence = Sentence(name, name, 3, words, ["O"] * n, [None] * n, [None] * n, [None] * n)
    text = whole(csv_words([sentence])).decode("utf-8-sig")
    cut = [
        row
        for quotes in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quotes)
    ]
    cut += [line.split(separator) for line in re.split("[\r\n]", text)]
    assert [cell for row in cut for cell in row if cell.strip()[:1] in tuple("=+-@＝＋－＠")] == []
    saved = io.StringIO(newline="")
    csv.writer(saved, delimiter=separator).writerows(csv.reader(io.StringIO(text, newline="")))
    found = list(read_csv_words(saved.getvalue().encode()))
    assert found == [Correction(name, name, 3, dict(enumerate(words)))]


def test_a_formula_inside_a_word_is_none_where_semicolons_separate() -> None:
    sentence = Sentence("a", "f", 0, ["x;=HYPERLINK(A1);y", "1,5"], ["O"] * 2, ["O"] * 2, [0.5] * 2, [0.5] * 2)
    text = whole(csv_words([sentence])).decode("utf-8-sig")
    cells = [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=";") for cell in row]
    assert "'=HYPERLINK(A1)" in cells
    assert "=HYPERLINK(A1)" not in cells
    assert [row[4] for row in csv.reader(io.StringIO(text, newline=""))][2] == "'1,5"


def test_a_spreadsheet_may_sort_and_use_semicolons() -> None:
    given_sentences = [
        Sentence(f"s{i}", "f", i, ["a", "b"], ["O", "O"], ["O"] * 2, [0.5] * 2, [0.5] * 2) for i in (0, 1)
    ]
    rows = list(csv.reader(io.StringIO(whole(csv_words(given_sentences)).decode("utf-8-sig"), newline="")))
    rows[2][-1] = " B-PER "
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([rows[0], *sorted(rows[1:], key=lambda row: row[4])])
    from tokloss_ray.exporting.apply import merged

    found = merged(read_csv_words(text.getvalue().encode()), "x")
    assert found["f", 0] == Correction("s0", "f", 0, {0: "a", 1: "b"}, {1: ("O", "B-PER")})
    assert not found["f", 1].changes
