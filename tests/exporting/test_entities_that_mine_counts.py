"""The entities that annotators see are those that the tables of `mine` count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tokloss_ray
from tests.support.mining_outputs import TAGS, demo_sentences, score_demo
from tokloss_ray.exporting.sentences import read_sentences
from tokloss_ray.tags.sentence_spans import spans_of, tag_set_of


@pytest.mark.parametrize("scheme", [None, "IOB1"])
def test_a_sentence_has_the_entities_that_mine_counts(tmp_path: Path, scheme: str | None) -> None:
    source = demo_sentences(tmp_path, 0, 300)
    rows = pq.read_table(source)
    at = rows.column_names.index("ner_tags")
    # Words without a label in the middle of entities, and of other sentences.
    tags = [
        [-100 if (i + j) % 7 == 0 else tag for j, tag in enumerate(row)]
        for i, row in enumerate(rows["ner_tags"].to_pylist())
    ]
    pq.write_table(rows.set_column(at, "ner_tags", pa.array(tags)), source)
    output = str(score_demo(tmp_path, source))

    tag_set = tag_set_of(tuple(TAGS), scheme)
    labelled: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    for sentence in read_sentences(output):
        labelled.update(span.type for span in spans_of(sentence.labels, tag_set))
        seen = [None if label is None else tag for label, tag in zip(sentence.labels, sentence.predicted, strict=True)]
        predicted.update(span.type for span in spans_of(seen, tag_set))
    table = tokloss_ray.mine(output, scheme=scheme, write=False)["entities"].to_pylist()
    counted = {row["type"]: row for row in table if (row["mode"], row["level"]) == ("default", "type")}
    assert {name: row["support"] for name, row in counted.items()} == labelled
    assert {name: row["predicted"] for name, row in counted.items()} == predicted
    assert min(labelled.values()) > 50
