"""CoNLL columns: one word a line, blank lines between sentences; sentences by byte range.

What the lines of a file mean (`Layout`) is found from its first lines alone, so every task that reads a part of the
file comes to the same answer. CoNLL-U and CoNLL-U Plus: https://universaldependencies.org/format.html and
https://universaldependencies.org/ext-format.html. docs/conll.md says what is made of which file.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray.inputs.conll_cells import NONE, OWN_PREFIX, uncell
from tokloss_ray.inputs.format import Format, Groups, RawChunk
from tokloss_ray.inputs.jsonl import batches, json_table, text_of
from tokloss_ray.inputs.lines import KEPT, MAX_RECORD, lines_of, next_line, too_long
from tokloss_ray.inputs.unit import LABELS_COLUMNS, WORDS_COLUMNS, Columns, ReadUnit
from tokloss_ray.storage.files import Listed, open_file, open_location

CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_SAMPLE_LINES = 1000
_BOM = b"\xef\xbb\xbf"
_DOCUMENT = (b"-DOCSTART-", b"#begin document", b"#end document")  # CoNLL-2003 and CoNLL-2012
_COMMENT = re.compile(rb"#\s*(newdoc id|newpar id|[^\s=]+)\s*=\s*(.*?)\s*")
_ID = re.compile(rb"\d+([-.]\d+)?")


@dataclass(frozen=True)
class Layout:
    """How to read the lines of a file; columns are counted from 0.

    Attributes:
        names: of the columns; their numbers, from 1, where the file does not name them.
        tabs: cells are separated by tabs, else by any white space.
        words, tags: the columns that are taken unless the settings name others.
        ids: the column of word numbers, if there is one.
        tag_values: the tags in the first lines.
        comments: the keys of `# key = value` lines in the first lines.
        escaped: cells are written as `tokloss export` does it.
    """

    names: tuple[str, ...]
    tabs: bool
    words: int
    tags: int
    ids: int | None
    tag_values: frozenset[bytes]
    comments: tuple[str, ...]
    escaped: bool

    def cells(self, line: bytes) -> list[bytes]:
        """The cells of a line; white space at its end does not count."""
        return line.rstrip().split(b"\t") if self.tabs else line.split()

    def span(self, line: bytes, column: int) -> tuple[int, int]:
        """Where a cell begins and ends in its line, white space around it left out."""
        if not self.tabs:
            return [match.span() for match in re.finditer(rb"\S+", line)][column]
        cells = self.cells(line)
        text = cells[column].decode()
        start = sum(len(cell) + 1 for cell in cells[:column]) + len(text[: len(text) - len(text.lstrip())].encode())
        return start, start + len(text.strip().encode())

    def is_syntactic(self, cells: list[bytes]) -> bool:
        """Not so are a token of several words and, in CoNLL-U, a word that was not written."""
        return self.ids is None or (b"-" not in cells[self.ids] and b"." not in cells[self.ids])

    def column(self, name: str) -> int | None:
        """The column of that name, number or meaning; None if it must be a comment."""
        if name in self.names:
            return self.names.index(name)
        if name in WORDS_COLUMNS:
            return self.words
        if name in LABELS_COLUMNS:
            return self.tags
        return int(name) - 1 if name.isdecimal() and 0 < int(name) <= len(self.names) else None

    def is_word(self, line: bytes, inside: bool) -> bool:
        """Whether a line that is not blank holds a word; `inside`: the sentence has begun.

        A hash sign begins comments, and also words, such as those of tweets, in files that do not escape them.
        """
        if line.startswith(_DOCUMENT):
            return self.escaped
        if not line.startswith(b"#"):
            return True
        cells = self.cells(line)
        if line[1:2].strip():
            return inside or len(cells) == len(self.names)
        return len(cells) == len(self.names) and cells[self.tags].strip() in {b"O", *self.tag_values}


@lru_cache(maxsize=64)
def layout_of(path: str, version: str) -> Layout | None:
    """The layout of a file, from its first lines; None if it has no word. `version` keeps changed files apart."""
    sample: list[bytes] = []
    comments: dict[str, None] = {}
    names: tuple[str, ...] = ()
    fs, local_path = open_location(path)
    with open_file(fs, local_path, unpack=True) as file:
        for _, line, *_ in lines_of(file):
            line = line.removeprefix(_BOM).rstrip(b"\r\n")
            if match := _COMMENT.fullmatch(line):
                key, value = (text.decode("utf-8", "replace") for text in match.groups())
                if key == "global.columns":
                    names = names or tuple(value.split())
                else:
                    comments.setdefault(key)
            elif line.strip() and not line.startswith((b"#", *_DOCUMENT)):
                sample.append(line)
            if len(sample) == _SAMPLE_LINES:
                break
    if not sample:
        return None
    tabs = sum(b"\t" in line for line in sample) * 2 > len(sample)
    rows = [line.rstrip().split(b"\t") if tabs else line.split() for line in sample]
    count = len(names) or Counter(map(len, rows)).most_common(1)[0][0]
    rows = [cells for cells in rows if len(cells) == count]
    if not names and count == len(CONLLU) and ".conllu" in posixpath.basename(path).lower():
        names = CONLLU
    ids = names.index("ID") if "ID" in names else 0 if count > 2 and _are_numbers(rows) else None
    words = next((names.index(n) for n in ("FORM", *WORDS_COLUMNS) if n in names), 0 if ids is None else ids + 1)
    tags = next((names.index(n) for n in LABELS_COLUMNS if n in names), count - 1)
    tags = names.index("UPOS") if names == CONLLU else tags
    escaped = any(name.startswith(OWN_PREFIX) for name in names)
    names = names or tuple(str(i + 1) for i in range(count))
    values = frozenset(cells[tags].strip() for cells in rows)
    return Layout(names, tabs, words % count, tags, ids, values, tuple(comments), escaped)


def _are_numbers(rows: list[list[bytes]]) -> bool:
    """Whether the first column counts the words of each sentence."""
    if not all(_ID.fullmatch(cells[0]) for cells in rows):
        return False
    numbers = [int(cells[0]) for cells in rows if cells[0].isdigit()]
    follows = sum(b in (a + 1, 0, 1) for a, b in pairwise(numbers))
    return len(numbers) > 1 and numbers[0] < 2 and follows * 2 > len(numbers) - 1


def conll_schema(path: str, version: str) -> pa.Schema | None:
    """The columns a file has: by name and number lists, comments as strings; None if it has no word.

    What may be the columns of words and tags has their usual names too, unless it cannot be one of tags.
    """
    layout = layout_of(path, version)
    if layout is None:
        return None
    lists = [*layout.names, *(str(i + 1) for i in range(len(layout.names))), *WORDS_COLUMNS]
    if layout.tags != layout.words and not layout.tag_values <= {NONE.encode()}:
        lists += LABELS_COLUMNS
    # A name that stands there twice is refused later, where it is asked for.
    names = [*layout.names, *dict.fromkeys(name for name in lists if name not in layout.names)]
    texts = [key for key in layout.comments if key not in names]
    return pa.schema([*((n, pa.list_(pa.string())) for n in names), *((key, pa.string()) for key in texts)])


class Sentence(NamedTuple):
    """The offset of the first line with a word, the lines from there on, the comments before, and how long both are.

    Of a sentence that is too long `data` is but the beginning.
    """

    offset: int
    data: bytes
    comments: bytes
    length: int


def sentences(unit: ReadUnit) -> Iterator[Sentence]:
    """The sentences of a byte range: those after a blank line that begins in it, and at its start the file's first."""
    layout = layout_of(unit.path, unit.version)
    if layout is None:
        return
    fs, path = open_location(unit.path)
    with open_file(fs, path, unpack=True) as file:
        yield from sentences_in(file, layout, unit.start, unit.stop)


def sentences_in(file: BinaryIO, layout: Layout, start: int = 0, stop: int = -1) -> Iterator[Sentence]:
    """The same of an open file, unpacked; stop -1 is its end."""
    # The line that covers the byte before the range belongs to the unit before.
    first, ours = next_line(file, start, stop) if start else 0, start == 0
    comments, words = bytearray(), bytearray()
    begin = size = 0
    for offset, line, length, blank in lines_of(file, first):
        text = line if offset else line.removeprefix(_BOM)
        blank = blank or (not offset and length == len(line) and not text.strip())
        if blank:
            if words:
                yield Sentence(begin, bytes(words), bytes(comments), size)
            comments, words, size = bytearray(), bytearray(), 0
        if 0 <= stop <= offset and (blank or not ours):
            return
        if blank:
            ours = True
        elif ours:
            size += length
            if not words:
                begin = offset
            if not words and not layout.is_word(text, inside=False):
                comments += line if size <= MAX_RECORD else b""
            elif size <= MAX_RECORD:
                words += line
            else:
                words += b"" if words else line
                del words[KEPT:]


def read_conll(columns: Columns, unit: ReadUnit) -> Iterator[RawChunk]:
    """The sentences of a byte range as rows; a sentence is numbered by the first byte of its first word's line."""
    layout = layout_of(unit.path, unit.version)
    none = np.array([], dtype=np.int64)
    for batch in batches(sentences(unit)):
        assert layout is not None
        rows, offsets, broken = [], [], []
        for sentence in batch:
            try:
                rows.append(sentence_row(columns, layout, sentence))
                offsets.append(sentence.offset)
            except (ValueError, OverflowError) as error:
                broken.append(_broken(columns, sentence, error))
        if rows:
            yield RawChunk(json_table(columns, rows, pa.string()), np.array(offsets, dtype=np.int64), [])
        if broken:
            yield RawChunk(json_table(columns, [], pa.string()), none, broken)


def sentence_row(wanted: Columns, layout: Layout, sentence: Sentence) -> dict[str, Any]:
    """The columns that are wanted.

    Raises:
        ValueError, OverflowError: it is not UTF-8, too long, a line has too few or too many columns, or an escape is
            wrong.
    """
    if sentence.length > MAX_RECORD:
        raise ValueError(too_long(sentence.length))
    data = (sentence.data if sentence.offset else sentence.data.removeprefix(_BOM)).removesuffix(b"\n")
    lines = data.split(b"\n")
    if b"\n#" in data or b"\n-" in data:
        lines = [line for i, line in enumerate(lines) if layout.is_word(line, inside=i > 0)]
    rows = [layout.cells(line) for line in lines]
    columns = {name: layout.column(name) for name in wanted.names}
    # Where the tags are in a column of a certain number, more may follow: some formats have as many as it takes.
    by_number = wanted.labels.isdecimal()
    used = [layout.ids or 0, *(i for i in columns.values() if i is not None)]
    needed = 1 + max(used) if by_number else len(layout.names)
    wrong = {count for count in set(map(len, rows)) if count < needed or (count > needed and not by_number)}
    if wrong:
        at = next(i for i, cells in enumerate(rows) if len(cells) in wrong)
        found = f"word {at + 1} has {len(rows[at])} columns, but {needed} are required"
        raise ValueError(f"{found}: {text_of(lines[at])[:100]}")
    if layout.ids is not None:
        rows = [cells for cells in rows if layout.is_syntactic(cells)]
    labels = layout.column(wanted.labels)
    comments = _comments(layout, sentence.comments) if None in columns.values() else {}
    row: dict[str, Any] = {}
    for name, i in columns.items():
        if i is None:
            row[name] = comments.get(name)
            continue
        values = b"\n".join([cells[i] for cells in rows]).decode().split("\n") if rows else []
        if i == labels:
            values = [value.strip() for value in values]
        nulls = [None if value == NONE and i == labels else value for value in values]
        row[name] = [_uncell(value) for value in nulls] if layout.escaped else nulls
    return row


def tag_spans(labels: str, layout: Layout, sentence: Sentence) -> Iterator[tuple[int, int]]:
    """Where the tag of each word that `sentence_row` gives begins and ends in the file."""
    column = layout.column(labels)
    assert column is not None
    data = sentence.data if sentence.offset else sentence.data.removeprefix(_BOM)
    offset = sentence.offset + len(sentence.data) - len(data)
    for i, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        if layout.is_word(line, inside=i > 0) and layout.is_syntactic(layout.cells(line)):
            start, stop = layout.span(line, column)
            yield offset + start, offset + stop
        offset += len(line) + 1


def _uncell(value: str | None) -> str | None:
    if value is not None and "\\" in value:
        value = uncell(value)
        value.encode()  # an escape may stand for half a character
    return value


def _comments(layout: Layout, data: bytes) -> dict[str, str | None]:
    """The values of `# key = value` lines; of several with one key the last."""
    pairs = (_COMMENT.fullmatch(line.removeprefix(_BOM)) for line in data.split(b"\n"))
    texts = {m[1].decode(): m[2].decode() for m in pairs if m}
    return {key: _uncell(text) if layout.escaped else text for key, text in texts.items()}


def _broken(columns: Columns, sentence: Sentence, error: Exception) -> dict[str, Any]:
    detail = f"not UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
    record = {"source_row": sentence.offset, "reason": "malformed", "detail": detail, "payload": text_of(sentence.data)}
    if columns.example_id:
        found = (_COMMENT.fullmatch(line) for line in text_of(sentence.comments).encode().split(b"\n"))
        name = columns.example_id.encode()
        texts = [match[2].decode() for match in found if match and match[1] == name]
        if texts:
            record["example_id"] = texts[-1]
    return record


def _inspect(file: Listed) -> tuple[pa.Schema | None, Groups]:
    return conll_schema(file.path, file.version), ()


CONLL = Format(
    name="conll",
    title="CoNLL columns",
    suffixes=(".conll", ".conllu", ".conllup", ".iob", ".iob2", ".bio"),
    named_suffixes=(".txt", ".tsv"),
    packed=True,
    bytes_per_token=8,
    inspect=_inspect,
    read=read_conll,
    records=sentences,
)
