"""Sentences of an output, put together from their windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import inline
from tests.support.corrections import TAGS
from tests.support.mining_outputs import plain_row, write_output
from tokloss_ray.exporting.sentences import read_sentences


def test_sentences_are_the_input_with_the_figures_of_the_output(folder: Path) -> None:
    found = list(read_sentences(str(folder / "out")))
    table = pa.concat_tables([pq.read_table(folder / "data" / name) for name in ("a.parquet", "more/b.parquet")])
    assert [s.example_id for s in found] == table["id"].to_pylist()
    assert [s.words for s in found] == table["tokens"].to_pylist()
    assert [s.labels for s in found] == [[TAGS[t] for t in row] for row in table["ner_tags"].to_pylist()]
    rows = inline.read_rows(folder / "out")
    assert max(row["window"] for row in rows) > 0
    for name in ("predicted_label", "predicted_prob", "loss"):
        expected: dict[tuple[str, int], Any] = {}
        for row in rows:
            for i, (word, label) in enumerate(zip(row["word_ids"], row["labels"], strict=True)):
                if label != "IGN":
                    expected[row["example_id"], word] = row[name][i]
        of = {"predicted_label": "predicted", "predicted_prob": "probs", "loss": "losses"}[name]
        assert {(s.example_id, i): v for s in found for i, v in enumerate(getattr(s, of))} == expected


def test_rows_of_several_files_in_a_shard_stay_in_the_order_of_the_input(tmp_path: Path) -> None:
    rows = [plain_row(source, 0, 2, "O", window) for window in (0, 1) for source in ("b", "c", "a")]
    order = ["c", "b", "a"]
    output = write_output(tmp_path / "out", rows, ["O", "B-PER"], input=[[source, 1, ""] for source in order])
    assert [s.source for s in read_sentences(str(output))] == order
