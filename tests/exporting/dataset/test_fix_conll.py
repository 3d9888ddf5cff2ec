"""Corrected tags back into CoNLL columns: what changes are tags, and not a byte beside them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import models
from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig, apply_fixes, export
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.dataset.fix_conll import fix_conll
from tokloss_ray.inputs.conll_layout import layout_of
from tokloss_ray.inputs.unit import Columns
from tokloss_ray.storage import zstd

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
WORDS = ["Anna", "wohnt", "in", "Ulm", "Otto", "#nlp", "São Paulo", "😀", "-", "x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build("bert", tmp_path_factory.mktemp("model"), [WORDS], TAGS, max_length=64)


# Files are drawn as pieces; a piece that is a list is a sentence, and a line of it (before the tag, tag, after it).
Line = tuple[str, str, str]
ends = st.sampled_from(["\n", "\r\n", " \n"])
between = st.sampled_from(["# a comment\n", "-DOCSTART- -X- O\n\n", " \n", "\n", "\r\n", "# sent_id = s1\n"])


def lines(tabs: bool) -> st.SearchStrategy[Line]:
    separators = st.just("\t") if tabs else st.sampled_from([" ", "  "])
    words = st.sampled_from(WORDS if tabs else [word for word in WORDS if " " not in word])
    padding = st.sampled_from(["", " "]) if tabs else st.just("")
    tags = st.sampled_from([*TAGS, "_"])
    before = st.builds(lambda w, a, b, p: f"{w}{a}X{b}{p}", words, separators, separators, padding)
    return st.tuples(before, tags, ends)


@st.composite
def files(draw: st.DrawFn) -> list[str | list[Line]]:
    pieces: list[str | list[Line]] = []
    tabs = draw(st.booleans())
    for sentence in draw(st.lists(st.lists(lines(tabs), min_size=1, max_size=5), min_size=1, max_size=6)):
        pieces += [*draw(st.lists(between, max_size=3)), sentence, "\n"]
    # What the columns are is found from lines that do not begin with a hash sign.
    return [*pieces, [draw(lines(tabs).filter(lambda line: line[0][0] != "#"))]]


def rendered(pieces: list[str | list[Line]], tags: Callable[[int, str], str]) -> bytes:
    """The file with the tag of each word (counted from 0 over the whole file) as `tags` says."""
    text, number = [], 0
    for piece in pieces:
        if isinstance(piece, str):
            text.append(piece)
            continue
        for before, tag, after in piece:
            text.append(f"{before}{tags(number, tag)}{after}")
            number += 1
    return "".join(text).encode()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=files(), bom=st.booleans(), data=st.data())
def test_tags_change_and_nothing_beside_them(
    tmp_path: Path, pieces: list[str | list[Line]], bom: bool, data: st.DataObject
) -> None:
    mark = b"\xef\xbb\xbf" if bom else b""
    before = mark + rendered(pieces, lambda number, tag: tag)
    path = tmp_path / "in.conll"
    path.write_bytes(before)
    words = sum(len(piece) for piece in pieces if isinstance(piece, list))
    new = data.draw(st.dictionaries(st.integers(0, words - 1), st.sampled_from(TAGS), max_size=4))
    number, seen, given_tags = 0, set(), []

    def fix(offset: int, id_: str | None, words: list[str], tags: list[str | None]) -> list[str | None]:
        nonlocal number
        given_tags.extend(tags)
        number += len(words)
        return [new.get(number - len(words) + i, tag) for i, tag in enumerate(tags)]

    layout = layout_of(str(path), str(hash(before)))
    fixed = fix_conll(before, layout, Columns("1", "3"), lambda offset, id_: True, fix, seen)
    expected = mark + rendered(pieces, lambda number, tag: new.get(number, tag))
    drawn = [tag for piece in pieces if isinstance(piece, list) for _, tag, _ in piece]
    assert given_tags == [None if tag == "_" else tag for tag in drawn]
    assert seen == set(drawn) - {"_"}
    assert (before if fixed is None else fixed) == expected
    assert (fixed is None) == (expected == before)


PACKS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.packed}
UNPACK = {
    "": bytes,
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda data: zstd.unpacked(io.BytesIO(data)).read(),
}


def corrected(output: Path, file: Path, changes: dict[tuple[str, int], str], **options: list[str]) -> str:
    """Export as CSV and do an annotator's work: (example_id, word_index) -> tag."""
    export(str(output), str(file), "csv", overwrite=True, **options)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.reader(opened))
    for row in rows[1:]:
        row[-1] = changes.pop((row[0], int(row[3])), row[-1])
    assert not changes
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return str(file)


FILE = """# global.columns = ID FORM NER MISC
# sent_id = a
1-2\tzum\t_\t_
1\tAnna\tB-PER\tx=1
2\twohnt\tO\t_

# sent_id = b
1\t#nlp\t_\t_
2\tSão Paulo\t B-PER\t_
"""


@pytest.mark.parametrize("packing", PACKS)
def test_from_scores_to_a_corrected_file(model: Path, tmp_path: Path, packing: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / f"a.conllup{packing}").write_bytes(PACKS[packing](FILE.encode()))
    (data / "b.conllup").write_text(FILE.replace("= a", "= c").replace("= b", "= d"))
    options = {"labels_column": "NER", "id_column": "sent_id"}
    out = tmp_path / "out"
    score_inline(ScoreConfig(model=str(model), input=(str(data),), output=str(out), **options))
    file = corrected(out, tmp_path / "x.csv", {("a", 1): "B-LOC", ("b", 0): "O", ("b", 1): "B-LOC"})
    done = apply_fixes(file, str(data), str(tmp_path / "new"), labels_column="NER", tags=("B-LOC",))
    assert (done.rows_changed, done.words_changed, done.files_changed, done.files) == (2, 3, 1, 2)
    text = UNPACK[packing]((tmp_path / f"new/a.conllup{packing}").read_bytes()).decode()
    expected = FILE.replace("wohnt\tO", "wohnt\tB-LOC").replace("#nlp\t_", "#nlp\tO").replace(" B-PER", " B-LOC")
    assert text == expected
    assert (tmp_path / "new/b.conllup").read_bytes() == (data / "b.conllup").read_bytes()
    # Rows have moved, but ids have not.
    again = apply_fixes(file, str(tmp_path / "new"), str(tmp_path / "again"), **options)
    assert (again.words_changed, again.words_same, again.files_changed) == (0, 3, 0)


def test_an_export_is_a_dataset_too(model: Path, tmp_path: Path) -> None:
    """Escaped as it was, and a tag of another column stays."""
    (tmp_path / "in.jsonl").write_text('{"tokens": ["a b", "#", "x", ""], "ner_tags": ["B-PER", null, "O", "O"]}\n')
    score_inline(ScoreConfig(model=str(model), input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "a")))
    export(str(tmp_path / "a"), str(tmp_path / "in.conll"), "conll")
    options = {"input": (str(tmp_path / "in.conll"),), "id_column": "sent_id"}
    score_inline(ScoreConfig(model=str(model), output=str(tmp_path / "b"), **options))
    before = (tmp_path / "in.conll").read_text()
    file = corrected(tmp_path / "b", tmp_path / "x.csv", {("in.jsonl:0", 0): "O", ("in.jsonl:0", 1): "B-PER"})
    apply_fixes(file, str(tmp_path / "in.conll"), str(tmp_path / "new.conll"))
    lines = before.split("\n")
    at = lines.index("# source_row = 0") + 1
    lines[at] = lines[at].removesuffix("B-PER") + "O"
    lines[at + 1] = lines[at + 1].removesuffix("_") + "B-PER"
    assert (tmp_path / "new.conll").read_text() == "\n".join(lines)


def test_what_cannot_be_written_is_refused(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "in.conll"
    data.write_text("Anna B-PER\nwohnt O\n\nbroken\n")
    options = {"max_error_rate": 1.0}
    score_inline(ScoreConfig(model=str(model), input=(str(data),), output=str(tmp_path / "out"), **options))
    for tag in ("B LOC", "_"):
        file = corrected(tmp_path / "out", tmp_path / "x.csv", {("in.conll:0", 1): tag})
        with pytest.raises(Refused, match="cannot be written in a column"):
            apply_fixes(file, str(data), str(tmp_path / "new.conll"), tags=(tag,))
    file = corrected(tmp_path / "out", tmp_path / "x.csv", {("in.conll:0", 1): "B-NEW"})
    with pytest.raises(Refused, match="no word has yet"):
        apply_fixes(file, str(data), str(tmp_path / "new.conll"))
    apply_fixes(file, str(data), str(tmp_path / "new.conll"), tags=("B-NEW",))
    assert (tmp_path / "new.conll").read_text() == "Anna B-PER\nwohnt B-NEW\n\nbroken\n"
