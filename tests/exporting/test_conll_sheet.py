"""CoNLL columns for annotators."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from seqeval.metrics import f1_score

from tests.support import inline
from tests.support.corrections import texts
from tokloss_ray.exporting.conll_sheet import cell, uncell
from tokloss_ray.exporting.export import export


@given(texts)
def test_cells_hold_no_white_space(text: str) -> None:
    written = cell(text)
    assert written.split() == [written]
    assert written.splitlines() == [written]
    assert not written.startswith("#")
    assert uncell(written) == text


def test_conll_columns_score_as_the_output_does(folder: Path, tmp_path: Path) -> None:
    export(str(folder / "out"), str(tmp_path / "all.conll"), "conll")
    blocks = [b.split("\n") for b in (tmp_path / "all.conll").read_text().split("\n\n") if b.strip()]
    lines = [[line.split() for line in block if line and not line.startswith("#")] for block in blocks]
    true, predicted = [], []
    for row in _by_row(inline.read_rows(folder / "out")):
        true.append([label for label, _ in row])
        predicted.append([p for _, p in row])
    expected = f1_score(true, predicted)
    assert f1_score([[c[1] for c in b] for b in lines], [[c[2] for c in b] for b in lines]) == expected


def _by_row(rows: list[dict]) -> list[list[tuple[str, str]]]:
    found: dict[str, list[tuple[int, str, str]]] = {}
    for row in rows:
        parts = zip(row["word_ids"], row["labels"], row["predicted_label"], strict=True)
        found.setdefault(row["example_id"], []).extend((w, a, p) for w, a, p in parts if a != "IGN")
    return [[(a, p) for _, a, p in sorted(row)] for row in found.values()]
