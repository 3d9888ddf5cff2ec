"""CoNLL columns: one word a line, blank lines between sentences; sentences by byte range.

What the lines of a file mean is in `conll_layout`; docs/conll.md says what is made of which file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from tokloss_ray import schema
from tokloss_ray.inputs.conll_cells import NONE, uncell
from tokloss_ray.inputs.conll_layout import BEGINS_DOCUMENT, BOM, COMMENT, Layout, conll_schema, layout_of
from tokloss_ray.inputs.format import Format, Groups, RawChunk
from tokloss_ray.inputs.jsonl import batches, json_table, text_of
from tokloss_ray.inputs.lines import KEPT, MAX_RECORD, lines_of, next_line, too_long
from tokloss_ray.inputs.unit import Columns, FilePart
from tokloss_ray.storage.files import Listed, open_file, open_location


class Sentence(NamedTuple):
    """The offset of the first line with a word, the lines from there on, the comments before, how long both are, and
    whether a line before says that a document begins.

    Of a sentence that is too long `data` is but the beginning.
    """

    offset: int
    data: bytes
    comments: bytes
    length: int
    begins_document: bool = False


def sentences(part: FilePart) -> Iterator[Sentence]:
    """The sentences of a byte range: those after a blank line that begins in it, and at its start the file's first."""
    layout = layout_of(part.path, part.version)
    if layout is None:
        return
    fs, path = open_location(part.path)
    with open_file(fs, path, unpack=True) as file:
        yield from sentences_in(file, layout, part.start, part.stop)


def sentences_in(file: BinaryIO, layout: Layout, start: int = 0, stop: int = -1) -> Iterator[Sentence]:
    """The same of an open file, unpacked; stop -1 is its end."""
    # The line that covers the byte before the range belongs to the part before.
    first, ours = next_line(file, start, stop) if start else 0, start == 0
    comments, words = bytearray(), bytearray()
    begin = size = 0
    document = False
    for offset, line, length, blank in lines_of(file, first):
        text = line if offset else line.removeprefix(BOM)
        blank = blank or (not offset and length == len(line) and not text.strip())
        if blank:
            if words:
                yield Sentence(begin, bytes(words), bytes(comments), size, document)
                document = False
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
                document |= text.startswith(BEGINS_DOCUMENT)
                comments += line if size <= MAX_RECORD else b""
            elif size <= MAX_RECORD:
                words += line
            else:
                words += b"" if words else line
                del words[KEPT:]


def read_conll(columns: Columns, part: FilePart) -> Iterator[RawChunk]:
    """The sentences of a byte range as rows; a sentence is numbered by the first byte of its first word's line."""
    layout = layout_of(part.path, part.version)
    none = np.array([], dtype=np.int64)
    begun = False  # a document, since the last row that could be read
    for batch in batches(sentences(part)):
        assert layout is not None
        rows, offsets, broken, begins = [], [], [], []
        for sentence in batch:
            begun |= sentence.begins_document
            try:
                rows.append(sentence_row(columns, layout, sentence))
                offsets.append(sentence.offset)
                begins.append(begun)
                begun = False
            except (ValueError, OverflowError) as error:
                broken.append(_broken(columns, sentence, error))
        if rows:
            table = json_table(columns, rows, pa.string())
            if columns.documents:
                table = table.append_column(schema.BEGINS_DOCUMENT, pa.array(begins))
            yield RawChunk(table, np.array(offsets, dtype=np.int64), [])
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
    data = (sentence.data if sentence.offset else sentence.data.removeprefix(BOM)).removesuffix(b"\n")
    lines = data.split(b"\n")
    if b"\n#" in data or b"\n-" in data:
        lines = [line for i, line in enumerate(lines) if layout.is_word(line, inside=i > 0)]
    rows = [layout.cells(line) for line in lines]
    columns = {name: layout.column(name) for name in wanted.names}
    # Where the tags are in a column of a certain number, more may follow: some formats have as many as it takes.
    by_number = wanted.labels is not None and wanted.labels.isdecimal()
    used = [layout.ids or 0, *(i for i in columns.values() if i is not None)]
    needed = 1 + max(used) if by_number else len(layout.names)
    wrong = {count for count in set(map(len, rows)) if count < needed or (count > needed and not by_number)}
    if wrong:
        at = next(i for i, cells in enumerate(rows) if len(cells) in wrong)
        found = f"word {at + 1} has {len(rows[at])} columns, but {needed} are required"
        raise ValueError(f"{found}: {text_of(lines[at])[:100]}")
    if layout.ids is not None:
        rows = [cells for cells in rows if layout.is_syntactic(cells)]
    labels = None if wanted.labels is None else layout.column(wanted.labels)
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
    data = sentence.data if sentence.offset else sentence.data.removeprefix(BOM)
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
    pairs = (COMMENT.fullmatch(line.removeprefix(BOM)) for line in data.split(b"\n"))
    texts = {m[1].decode(): m[2].decode() for m in pairs if m}
    return {key: _uncell(text) if layout.escaped else text for key, text in texts.items()}


def _broken(columns: Columns, sentence: Sentence, error: Exception) -> dict[str, Any]:
    detail = f"not UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
    record = {"source_row": sentence.offset, "reason": "malformed", "detail": detail, "payload": text_of(sentence.data)}
    if columns.example_id:
        found = (COMMENT.fullmatch(line) for line in text_of(sentence.comments).encode().split(b"\n"))
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
