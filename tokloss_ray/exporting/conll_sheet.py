"""CoNLL columns: one word a line, tab-separated, an empty line after each sentence (the layout of CoNLL-U Plus).

No cell holds white space, whatever the word, so that readers that split at tabs and readers that split at any white
space see the same columns. What stands in the way is written as a backslash escape: `\\t`, `\\n`, `\\r`, `\\s` for a
space, `\\uXXXX` or `\\UXXXXXXXX` for other white space, control characters and line separators, `\\\\` for a backslash,
`\\e` for the empty string, and `\\#` for a hash sign that would make a comment of the line. `_` in a column of tags
says that there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.inputs.conll_cells import HEADER, NONE, OWN_PREFIX, cell, uncell

_FORM, _LABEL, _PREDICTED = "FORM", f"{OWN_PREFIX}LABEL", f"{OWN_PREFIX}PREDICTED"
_LOSS, _CORRECTED = f"{OWN_PREFIX}LOSS", f"{OWN_PREFIX}CORRECTED"


def conll(sentences: Iterable[Sentence], loss: bool = False) -> Iterator[bytes]:
    """The sentences as CoNLL columns, piece by piece: word, label, predicted tag, with `loss` the loss, corrected tag.

    The last column is a copy of the labels, or what reviewers decided, for annotators to change.
    """
    columns = [_FORM, _LABEL, _PREDICTED, *([_LOSS] if loss else []), _CORRECTED]
    yield f"{HEADER}{' '.join(columns)}\n".encode()
    for s in sentences:
        lines = [
            f"# sent_id = {cell(s.example_id)}",
            f"# source = {cell(s.source)}",
            f"# source_row = {s.source_row}",
        ]
        for word, label, predicted, nats, corrected in zip(
            s.words, s.labels, s.predicted, s.losses, s.corrected, strict=True
        ):
            figure = [NONE if nats is None else f"{nats:.4f}"] if loss else []
            lines.append("\t".join([cell(word), tag_cell(label), tag_cell(predicted), *figure, tag_cell(corrected)]))
        yield ("\n".join(lines) + "\n\n").encode()


def tag_cell(tag: str | None) -> str:
    """A tag, or that there is none, as a cell."""
    return NONE if tag is None else "\\_" if tag == NONE else cell(tag)


def read_conll(data: bytes) -> Iterator[Correction]:
    """What a corrected file says, one correction a sentence.

    Raises:
        Refused: not a file of `conll`, or a line that is not as it should be.
    """
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise Refused("it is not UTF-8") from None
    columns = next((line.removeprefix(HEADER).split() for line in lines if line.startswith(HEADER)), [])
    if not {_FORM, _LABEL, _CORRECTED} <= set(columns):
        raise Refused(f"it has no line '{HEADER}{_FORM} {_LABEL} ... {_CORRECTED}': export it with tokloss export")
    about: dict[str, str] = {}
    correction: Correction | None = None
    for number, line in enumerate(lines, start=1):
        try:
            if not line.strip():
                if correction is not None:
                    yield correction
                about, correction = {}, None
            elif line.startswith("#"):
                name, equals, value = line[1:].partition("=")
                if equals:
                    about[name.strip()] = uncell(value.strip())
            else:
                if correction is None:
                    correction = Correction(about["sent_id"], about["source"], int(about["source_row"]))
                _take_line(correction, dict(zip(columns, line.split(), strict=True)))
        except (ValueError, KeyError):
            raise Refused(f"line {number} does not have the exported columns {' '.join(columns)}") from None
    if correction is not None:
        yield correction


def _take_line(correction: Correction, cells: dict[str, str]) -> None:
    index = len(correction.words)
    correction.words[index] = uncell(cells[_FORM])
    label, corrected = (None if cells[name] == NONE else uncell(cells[name]) for name in (_LABEL, _CORRECTED))
    if corrected is not None and corrected != label:
        correction.changes[index] = (label, corrected)


CONLL = ExportFormat(
    name="conll",
    write=lambda sentences, tag_set, loss: conll(sentences, loss),
    read=read_conll,
    recognises=lambda data: data.startswith(b"#"),
    next_step="Edit the last column, then:",
)
