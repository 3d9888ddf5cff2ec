"""CoNLL columns as input: which lines are words, what is wrong with a sentence, byte ranges, and whole runs.

The reader they are held to is `plain`, a loop over lines that knows nothing of the package.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import models, warm
from tests.support.inline import Inline, read_rows, score_inline
from tokloss_ray import ScoreConfig, schema
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.export import export
from tokloss_ray.inputs.conll import sentences
from tokloss_ray.inputs.conll_cells import cell
from tokloss_ray.inputs.conll_layout import layout_of
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.inputs.unit import FilePart, ReadUnit
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.storage.files import listed, open_location

Row = dict[str, Any]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
NER = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
TWO = "Anna B-PER\nwohnt O\n\nOtto B-PER\n"


def plain(data: bytes, tabs: bool = False) -> list[tuple[int, list[str], list[str | None]]]:
    """Offset, words and tags of each sentence of a well-formed file without names: first and last column."""
    found, offset, words, tags, start = [], 0, [], [], 0
    for line in [*data.split(b"\n"), b""]:
        text = line.decode().rstrip("\r")
        if not text.strip(" \t"):
            if words:
                found.append((start, words, tags))
            words, tags = [], []
        elif not text.startswith(("# ", "-DOCSTART-")):
            cells = text.rstrip(" \t").split("\t" if tabs else None)
            start = start if words else offset
            words.append(cells[0])
            tags.append(None if cells[-1] == "_" else cells[-1])
        offset += len(line) + 1
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build("bert", tmp_path_factory.mktemp("model"), [["Anna", "wohnt", "in", "Otto"]], TAGS)


class Read:
    """Reads a file as the job does, unit by unit; `rows` and `errors` of one text."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder, self.count = model, folder, 0

    def __call__(
        self, text: str | bytes, name: str = "in.conll", **options: Any
    ) -> tuple[list[tuple[list[str], list[str]]], list[Row], list[Row]]:
        self.count += 1
        path = self.folder / str(self.count) / name
        path.parent.mkdir()
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        config = ScoreConfig(model=str(self.model), input=(str(path),), output=str(self.folder / "out"), **options)
        plan = make_plan(preflight(config), False, False)
        chunks = [chunk for unit in plan.units for chunk in read_unit(plan.job, unit)]
        rows = [row for chunk in chunks for row in chunk.rows.to_pylist()]
        errors = [row for chunk in chunks for row in chunk.errors.to_pylist()]
        names = [*plan.job.tags, "IGN"]
        return [(r["words"], [names[max(i, -1)] for i in r["label_ids"]]) for r in rows], rows, errors


@pytest.fixture
def read(model: Path, tmp_path: Path) -> Read:
    return Read(model, tmp_path)


ANNA = (["Anna", "wohnt"], ["B-PER", "O"])
OTTO = (["Otto"], ["B-PER"])


@pytest.mark.parametrize(
    "text",
    [
        TWO,
        TWO.rstrip("\n"),
        TWO.replace(" ", "\t"),
        TWO.replace("\n", "\r\n"),
        "\ufeff" + TWO,
        "\ufeff\n" + TWO,
        "\n\n \n" + TWO.replace("\n\n", "\n \t \n\n\n") + "\n\n",
        TWO.replace("\n", "  \n"),
        TWO.replace(" ", "\t").replace("\n", "\t\n"),
        TWO.replace(" ", " NN   I-NP "),
        "-DOCSTART- -X- O O\n\n" + TWO.replace(" ", " NN I-NP "),
        "-DOCSTART-\n" + TWO,
        "# newdoc\n\n# sent_id = 1\n# text = Anna wohnt\n" + TWO,
        "# id 3f2a domain=en\n" + TWO.replace(" ", " _ _ "),
        "#begin document (bc); part 000\n" + TWO + "\n#end document\n",
    ],
)
def test_two_sentences_in_many_ways(read: Read, text: str) -> None:
    found, rows, errors = read(text)
    assert (found, errors) == ([ANNA, OTTO], [])
    data = text.encode()
    starts = [data.index(b"Otto") if i else data.index(b"\nAnna") + 1 if b"\nAnna" in data else 0 for i in range(2)]
    assert [row["source_row"] for row in rows] == starts
    assert [row["example_id"] for row in rows] == [f"in.conll:{start}" for start in starts]


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_packed(read: Read, packing: str) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packing]
    assert read(pack(TWO.encode()), f"in.iob2.{packing}")[0] == [ANNA, OTTO]


def test_words_that_begin_with_a_hash_sign(read: Read) -> None:
    """Tweets are full of them, and of files that hold tweets few escape them."""
    text = "# sent_id = 1\n#Otto B-PER\n# O\n#1 O\n\n# just so\nOtto B-PER\n"
    assert read(text)[0] == [(["#Otto", "#", "#1"], ["B-PER", "O", "O"]), OTTO]
    assert read(text.replace(" O", "\tO").replace(" B-", "\tB-"))[0] == read(text)[0]
    (error,) = read("Anna B-PER\n#Otto\n\nOtto B-PER\n")[2]
    assert error["detail"] == "word 2 has 1 columns, but 2 are required: #Otto"


def test_words_with_spaces_and_empty_ones(read: Read) -> None:
    assert read("New York\tB-LOC\n\tO\n\u00a0\tO\n")[0] == [(["New York", "", "\u00a0"], ["B-LOC", "O", "O"])]
    assert read("a\u00a0b O\nc O\n")[0] == [(["a\u00a0b", "c"], ["O", "O"])]


def test_no_tag(read: Read) -> None:
    assert read("Anna _\nOtto B-PER\n")[0] == [(["Anna", "Otto"], ["IGN", "B-PER"])]


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (b"Otto\n", "word 2 has 1 columns, but 2 are required: Otto"),
        (b"New York B-LOC\n", "word 2 has 3 columns, but 2 are required: New York B-LOC"),
        (b"K\xf6ln B-LOC\n", "not UTF-8"),
    ],
)
def test_bad_lines(read: Read, bad: bytes, detail: str) -> None:
    """The sentence is set aside, whole, and its neighbours are not."""
    data = b"Anna B-PER\nwohnt O\n\n# sent_id = x\nin O\n" + bad + b"\nOtto B-PER\n\nOtto B-PER\n"
    found, _, (error,) = read(data)
    assert found == [ANNA, OTTO, OTTO]
    assert error["reason"] == "malformed"
    assert error["detail"].startswith(detail)
    assert error["payload"] == (b"in O\n" + bad).decode("utf-8", "replace").strip()
    assert error["source_row"] == data.index(b"in O")
    sent = b"# sent_id = s\n"
    by_id = sent + data.replace(b"\n\nOtto", b"\n\n" + sent + b"Otto")
    assert read(by_id, id_column="sent_id")[2][0]["example_id"] == "x"


def test_unknown_tag_is_an_error_row(read: Read) -> None:
    found, _, (error,) = read(TWO + "\nAnna B-XYZ\n\nOtto B-PER\n")
    assert (len(found), error["reason"]) == (3, "unknown_tag")
    assert json.loads(error["payload"]) == {"tokens": ["Anna"], "ner_tags": ["B-XYZ"]}


CONLLU = """\
# global.note = 1
# newdoc id = d1
# sent_id = d1-s1
# text = Anna wohnt im
1\tAnna\tAnna\tPROPN\t_\t_\t2\tnsubj\t_\tNER=B-PER
2\twohnt\twohnen\tVERB\t_\t_\t0\troot\t_\t_
3-4\tim\t_\t_\t_\t_\t_\t_\t_\t_
3\tin\tin\tADP\t_\t_\t2\tcase\t_\t_
4\tdem\tder\tDET\t_\t_\t2\tdet\t_\t_
4.1\twohnt\twohnen\tVERB\t_\t_\t_\t_\t_\t_

# sent_id = d1-s2
1\tOtto\tOtto\tPROPN\t_\t_\t0\troot\t_\t_
"""


def test_conllu(tmp_path: Path) -> None:
    """Words are those of the syntax: neither tokens of several words nor words that were not written."""
    model = models.build("bert", tmp_path / "m", [["Anna"]], ["PROPN", "VERB", "ADP", "DET"])
    read = Read(model, tmp_path)
    wanted = [
        (["Anna", "wohnt", "in", "dem"], ["PROPN", "VERB", "ADP", "DET"]),
        (["Otto"], ["PROPN"]),
    ]
    for name, options in (("a.conllu", {}), ("a.conll", {"labels_column": "4"}), ("a.conllu", {"labels_column": "4"})):
        found, rows, errors = read(
            CONLLU, name, id_column="sent_id", keep=("LEMMA", "text") if not options else (), **options
        )
        assert (found, errors) == (wanted, [])
        assert [row["example_id"] for row in rows] == ["d1-s1", "d1-s2"]
        assert rows[0]["source_row"] == CONLLU.index("1\tAnna")
        if not options:
            assert [row["LEMMA"] for row in rows] == [["Anna", "wohnen", "in", "der"], ["Otto"]]
            assert [row["text"] for row in rows] == ["Anna wohnt im", None]


def test_columns_by_number_and_name(read: Read) -> None:
    lines = "1\tAnna\tB-PER\t-\tjoe\n2\twohnt\tO\t-\tjoe\n\n1\tOtto\tB-PER\t-\tjoe\n"
    assert read(lines, "u.iob2", labels_column="3")[0] == [ANNA, OTTO], "word numbers are no words"
    plus = "# global.columns = X:NER FORM X:MORE\nB-PER Anna *\nO wohnt *\n\nB-PER Otto *\n"
    assert read(plus, labels_column="X:NER")[0] == [ANNA, OTTO]
    assert read(plus.replace("X:NER", "ner_tags"))[0] == [ANNA, OTTO]
    more = "Anna B-PER x\nwohnt O x y z\n\nOtto B-PER x\n"
    assert read(more, tokens_column="1", labels_column="2")[0] == [ANNA, OTTO], "as many more as it takes"


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("Anna\nOtto\n", {}, "no column with tags: in.conll has the columns 1, tokens"),
        ("Anna _\n", {}, "no column with tags"),
        (TWO, {"labels_column": "3"}, r"no column 3 \(--labels-column\): in.conll has the columns 1, 2, tokens"),
        (TWO, {"id_column": "sent_id"}, r"no column sent_id \(--id-column\)"),
        (TWO, {"id_column": "1"}, "but text or an integer per row"),
        (TWO, {"partition_by": ("2",)}, "but one value per row"),
        ("# global.columns = A A B\nx y O\n", {"tokens_column": "A"}, "two columns named A"),
        (TWO.replace("B-PER", "X").replace(" O", " Y"), {}, "most rows have tags that the model does not know.* X, Y"),
    ],
)
def test_refusals(read: Read, text: str, options: Row, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        read(text, **options)


def test_names_of_files(read: Read, tmp_path: Path) -> None:
    for name in ("a.conll", "a.conllup", "a.iob", "a.BIO", "a.tsv", "train.txt"):
        assert read(TWO, name)[0] == [ANNA, OTTO]
    with pytest.raises(Refused, match=r"nor CoNLL columns \(\.conll, "):
        read(TWO, "a.xml")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.txt").write_text("Read me")
    (folder / "a.conll").write_text(TWO)
    (folder / "b.conll").write_text("\n# nothing here\n\n-DOCSTART- O\n")
    (folder / "c.conll").write_bytes(b"")
    (folder / "d.jsonl").write_text('{"words": ["Anna"], "tags": ["O"]}\n')
    config = ScoreConfig(model=str(read.model), input=(str(folder),), output=str(tmp_path / "out"))
    with pytest.raises(Refused, match=r"no column tokens .*d\.jsonl"):
        preflight(config)
    (folder / "d.jsonl").write_text('{"tokens": ["Anna"], "ner_tags": ["O"]}\n')
    assert [row["words"] for row in score_inline(config).rows] == [["Anna", "wohnt"], ["Otto"], ["Anna"]]


def test_with_parquet_whose_columns_have_other_names(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = pq.read_table(DATA).slice(0, 2).rename_columns({"ner_tags": "tags", "tokens": "words"})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.conll").write_text(TWO)
    config = ScoreConfig(model=str(MODEL), input=(str(tmp_path / "in"),), output=str(tmp_path / "out"))
    assert len(score_inline(config).rows) == 4


def test_limit(read: Read) -> None:
    text = "-DOCSTART- O\n\n# a\n\n" + "# s = 1\nAnna B-PER\nwohnt O\n\n" * 5
    for limit in (1, 3, 5, 9):
        assert len(read(text, limit=limit)[0]) == min(limit, 5)


# Byte ranges.


LINES = st.sampled_from(["Anna O", "Anna\tO", "Köln B-LOC", "x NN O", "", "", " ", "# c", "-DOCSTART- O", "\r", "😀 _"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=30), end=st.sampled_from(["", "\n", "\n\n"]), data=st.data())
def test_any_split_gives_each_sentence_once(tmp_path: Path, lines: list[str], end: str, data: st.DataObject) -> None:
    content = ("\n".join(lines) + end).encode()
    path = tmp_path / "in.conll"
    path.write_bytes(content)
    cuts = data.draw(st.sets(st.integers(1, max(1, len(content) - 1)), max_size=12).map(sorted))
    bounds = [0, *(cut for cut in cuts if cut < len(content)), len(content)]
    layout_of.cache_clear()
    parts = [FilePart("x", str(path), "", "conll", *pair, None, 0) for pair in pairwise(bounds)]
    # Only a file that is read whole says where documents begin: with context it is.
    found = [s._replace(begins_document=False) for p in parts if p.start < p.stop for s in sentences(p)]
    (whole,) = [list(sentences(FilePart("x", str(path), "", "conll", 0, -1, None, 0)))]
    assert found == [s._replace(begins_document=False) for s in whole]
    assert [s.offset for s in found] == [offset for offset, _, _ in plain(content)]


PIECES = [
    "\n",
    "\n\n",
    "\t",
    " ",
    "#",
    "# ",
    "_",
    "O",
    "B-LOC",
    "Anna",
    "1",
    "2-3",
    "2.1",
    "\r",
    "\\q",
    "\0",
    "-DOCSTART-",
]
PIECES += ["# sent_id = ", "# global.columns = ID FORM TOKLOSS:X\n", "\ufeff", "\u2028", "\x0c"]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from([*(piece.encode() for piece in PIECES), b"\xff"]), max_size=60))
def test_whatever_a_file_holds_each_sentence_is_a_row_or_an_error(
    any_job: Job, tmp_path: Path, pieces: list[bytes]
) -> None:
    path = tmp_path / "in.conll"
    path.write_bytes(b"".join(pieces))
    layout_of.cache_clear()
    part = FilePart("x", str(path), listed(*open_location(str(path))).version, "conll", 0, -1, None, 0)
    chunks = list(read_unit(any_job, ReadUnit(0, (part,))))
    rows = [row for chunk in chunks for row in chunk.rows.to_pylist() + chunk.errors.to_pylist()]
    assert sorted(row["source_row"] for row in rows) == [s.offset for s in sentences(part)]
    assert {error["reason"] for chunk in chunks for error in chunk.errors.to_pylist()} <= set(schema.REASONS)


@pytest.fixture
def any_job(model: Path, tmp_path: Path) -> Job:
    path = tmp_path / "first.conll"
    path.write_text("# sent_id = 1\n" + TWO)
    config = ScoreConfig(model=str(model), input=(str(path),), output=str(tmp_path / "out"), id_column="sent_id")
    return make_plan(preflight(config), False, False).job


def test_ranges_of_a_real_file(demo: Path, tmp_path: Path, model: Path) -> None:
    """Every range of a few bytes, and the words and tags of all of them, beside the plain loop."""
    data = (demo / "a.conll").read_bytes()
    config = ScoreConfig(model=str(MODEL), input=(str(demo / "a.conll"),), output=str(tmp_path / "out"))
    job = make_plan(preflight(config), False, False).job
    version = listed(*open_location(str(demo / "a.conll"))).version
    wanted = plain(data)
    for step in (7, 1000, len(data)):
        starts = range(0, len(data) if step > 7 else 7000, step)
        units = [
            ReadUnit(0, (FilePart("a", str(demo / "a.conll"), version, "conll", a, min(a + step, len(data)), None, 0),))
            for a in starts
        ]
        rows = [row for unit in units for chunk in read_unit(job, unit) for row in chunk.rows.to_pylist()]
        found = [(r["source_row"], r["words"], [job.tags[i] for i in r["label_ids"]]) for r in rows]
        assert found == wanted[: len(found)]
        assert len(found) == len(wanted) or step == 7


# Whole runs.


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's first sentences, as Parquet and as CoNLL columns."""
    folder = tmp_path_factory.mktemp("demo")
    table = pq.read_table(DATA).slice(0, 500)
    pq.write_table(table, folder / "a.parquet")
    with open(folder / "a.conll", "w", encoding="utf-8") as file:
        file.write("-DOCSTART- -X- O\n\n")
        for row in table.to_pylist():
            file.write(f"# id = {row['id']}\n")
            tags = [tag if isinstance(tag, str) else NER[tag] for tag in row["ner_tags"]]
            file.writelines(f"{word} x {tag}\n" for word, tag in zip(row["tokens"], tags, strict=True))
            file.write("\n")
    return folder


@pytest.mark.slow
def test_the_command_gives_what_parquet_gives(demo: Path, tmp_path: Path) -> None:
    common = ["--model", str(MODEL), "--id-column", "id", "--input", str(demo / "a.conll")]
    common += ["--output", str(tmp_path / "a.conll")]
    for command in ("check", "score"):
        done = warm.tokloss(command, *common)
        assert done.returncode == 0, done.stdout + done.stderr
        assert command == "score" or "about 500 rows" in " ".join(done.stdout.split())
    score_inline(
        ScoreConfig(model=str(MODEL), input=str(demo / "a.parquet"), output=str(tmp_path / "a.parquet"), id_column="id")
    )
    ids = lambda name: {r["example_id"]: r for r in read_rows(tmp_path / name)}  # noqa: E731
    packed, columns = ids("a.parquet"), ids("a.conll")
    assert packed.keys() == columns.keys()
    for key, row in packed.items():
        assert columns[key]["words"] == row["words"]
        assert columns[key]["labels"] == row["labels"]
        assert columns[key]["loss"] == pytest.approx(row["loss"], rel=1e-4, abs=1e-4)


ODD = ["#tag", "a b", "", "_", "\\", "\t", "\u00a0", "😀", "-DOCSTART-", "x\ny", "1-2"]


def test_the_export_is_input(model: Path, tmp_path: Path) -> None:
    """Words and labels of an export, whatever they are, come back; so do ids."""
    rows = [
        {"id": f"# {i} =", "tokens": ODD[i:], "ner_tags": [None, *["B-LOC", "O"] * 9][: len(ODD) - i]} for i in range(9)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = score_inline(
        ScoreConfig(model=str(model), input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "a"), id_column="id")
    )
    export(str(tmp_path / "a"), str(tmp_path / "b.conll"), "conll")
    again: Inline = score_inline(
        ScoreConfig(
            model=str(model), input=(str(tmp_path / "b.conll"),), output=str(tmp_path / "b"), id_column="sent_id"
        )
    )
    for name in ("example_id", "words", "labels", "input_ids"):
        assert [row[name] for row in again.rows] == [row[name] for row in first.rows]
    broken = (tmp_path / "b.conll").read_text(encoding="utf-8").replace(cell("a b"), "a\\qb")
    found, _, errors = Read(model, tmp_path)(broken)
    assert len(found) == 7
    assert {error["detail"] for error in errors} == {"unknown escape: \\q"}
