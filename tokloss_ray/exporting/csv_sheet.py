"""CSV for spreadsheets: one word a row, the tag to correct in the last column.

Cells that a spreadsheet would take for a formula, a number or a date get an apostrophe in front (as OWASP advises
against CSV injection), and so do cells that begin with an apostrophe themselves; reading takes one away. A spreadsheet
of a country that writes 1,5 for a half separates cells by semicolons, whatever the file does, and cuts `x;=1` in two;
so the same holds for what follows a comma, a semicolon, a tab or a line break in a cell. So nothing is executed, and
nothing is lost.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.sentences import Correction, Sentence

COLUMNS = (
    "example_id",
    "source",
    "source_row",
    "word_index",
    "word",
    "label",
    "predicted",
    "loss",
    "corrected",
)
_NEEDED = set(COLUMNS) - {"predicted", "loss"}
_FORMULA = "=+-@＝＋－＠'"
_RISKY = set(_FORMULA + "\t\r\n")
_CUTS = ",;\t\r\n"
"""Where one reader or another begins a new cell."""
_RISKY_CUT = re.compile(rf"([{_CUTS}])(?=[{re.escape(_FORMULA)}\"]|[^\S{_CUTS}])")
_SAFE_CUT = re.compile(rf"([{_CUTS}])'")
csv.field_size_limit(1 << 30)


def csv_words(sentences: Iterable[Sentence]) -> Iterator[bytes]:
    """The sentences as CSV in UTF-8 with a byte order mark (Excel asks for one), piece by piece.

    `corrected` is a copy of `label`, or what reviewers decided, for annotators to change; both are empty where a word
    carries no label.
    """
    yield "\ufeff".encode() + _lines([COLUMNS])
    for s in sentences:
        key = _safe(s.example_id), _safe(s.source), s.source_row
        yield _lines(
            (
                *key,
                i,
                _safe(word),
                *map(_tag, (label, predicted)),
                "" if loss is None else f"{loss:.4f}",
                _tag(corrected),
            )
            for i, (word, label, predicted, loss, corrected) in enumerate(
                zip(s.words, s.labels, s.predicted, s.losses, s.corrected, strict=True)
            )
        )


def _tag(tag: str | None) -> str:
    return _safe(tag or "")


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _safe(text: str) -> str:
    first = text[:1]
    begin = "'" if first in _RISKY or first.isspace() or first.isdigit() else ""
    return begin + _RISKY_CUT.sub(r"\1'", text)


def _unsafe(text: str) -> str:
    return _SAFE_CUT.sub(r"\1", text.removeprefix("'"))


def read_csv_words(data: bytes) -> Iterator[Correction]:
    """What a corrected file says, one correction a run of rows of one sentence; columns may be moved or added.

    Rows may be left out. Commas, semicolons and tabs are told apart by the first line.

    Raises:
        Refused: not such a file, or a row that is not as it should be.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused("it is not UTF-8: save it as CSV UTF-8") from None
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if not set(reader.fieldnames or ()) >= _NEEDED:
        raise Refused(f"it has no columns {', '.join(sorted(_NEEDED))}: export it with tokloss export")
    correction: Correction | None = None
    try:
        for row in reader:
            key = _unsafe(row["example_id"]), _unsafe(row["source"]), int(row["source_row"])
            if correction is None or key != (correction.example_id, correction.source, correction.source_row):
                if correction is not None:
                    yield correction
                correction = Correction(*key)
            index = int(row["word_index"])
            correction.words[index] = _unsafe(row["word"])
            label, corrected = (_unsafe(row[name]) or None for name in ("label", "corrected"))
            if corrected is not None and corrected != label and corrected.strip():
                correction.changes[index] = (label, corrected.strip())
    except (ValueError, AttributeError, TypeError, csv.Error):
        raise Refused(f"line {reader.line_num} does not match the export") from None
    if correction is not None:
        yield correction


CSV = ExportFormat(
    name="csv",
    write=lambda sentences, tag_set, loss: csv_words(sentences),
    read=read_csv_words,
    next_step="Edit the column 'corrected', save as CSV, then:",
)
