"""A file of CoNLL columns with some tags replaced: not a byte beside them changes."""

from __future__ import annotations

import io

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.conll_sheet import tag_cell
from tokloss_ray.exporting.dataset.fix_rows import Fix, Seen, Wanted
from tokloss_ray.inputs.conll import sentence_row, sentences_in, tag_spans
from tokloss_ray.inputs.conll_cells import NONE
from tokloss_ray.inputs.conll_layout import Layout
from tokloss_ray.inputs.unit import Columns


def fix_conll(
    data: bytes, layout: Layout | None, columns: Columns, wanted: Wanted, fix: Fix, seen: Seen
) -> bytes | None:
    """The new bytes of a file; None if no row changed.

    data: the bytes, unpacked; layout: of the file, None if it has no word; columns: those of words, tags and ids; seen:
    gets every tag there is.

    Raises:
        Refused: a tag that such a file cannot hold.
    """
    if layout is None:
        return None
    assert columns.words is not None
    assert columns.labels is not None
    parts: list[bytes] = []
    copied = 0
    for sentence in sentences_in(io.BytesIO(data), layout):
        try:
            row = sentence_row(columns, layout, sentence)
        except (ValueError, OverflowError):  # it was not scored either
            continue
        tags = row[columns.labels]
        seen.update(tag for tag in tags if tag is not None)
        id_ = row[columns.example_id] if columns.example_id else None
        new = fix(sentence.offset, id_, row[columns.words], tags) if wanted(sentence.offset, id_) else None
        if new is None:
            continue
        for old, tag, (start, stop) in zip(tags, new, tag_spans(columns.labels, layout, sentence), strict=True):
            if tag != old:
                parts += [data[copied:start], _written(tag, layout)]
                copied = stop
    return b"".join([*parts, data[copied:]]) if parts else None


def _written(tag: str, layout: Layout) -> bytes:
    if layout.escaped:
        return tag_cell(tag).encode()
    there = [tag.strip()] if layout.tabs else tag.split()
    if there != [tag] or tag == NONE or any(char in tag for char in "\t\n"):
        raise Refused(f"the tag {tag!r} cannot be written in a column of this file")
    return tag.encode()
