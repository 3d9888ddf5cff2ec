"""What the lines of a CoNLL file mean, found from its first lines.

So every task that reads a part of the file comes to the same answer. CoNLL-U and CoNLL-U Plus:
https://universaldependencies.org/format.html and https://universaldependencies.org/ext-format.html.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import pyarrow as pa

from tokloss_ray.inputs.conll_cells import NONE, OWN_PREFIX
from tokloss_ray.inputs.lines import lines_of
from tokloss_ray.inputs.unit import LABELS_COLUMNS, WORDS_COLUMNS
from tokloss_ray.storage.files import open_file, open_location

CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_SAMPLE_LINES = 1000
BOM = b"\xef\xbb\xbf"
_DOCUMENT = (b"-DOCSTART-", b"#begin document", b"#end document")  # CoNLL-2003 and CoNLL-2012
BEGINS_DOCUMENT = (*_DOCUMENT[:2], b"# newdoc")
COMMENT = re.compile(rb"#\s*(newdoc id|newpar id|[^\s=]+)\s*=\s*(.*?)\s*")
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
            line = line.removeprefix(BOM).rstrip(b"\r\n")
            if match := COMMENT.fullmatch(line):
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
