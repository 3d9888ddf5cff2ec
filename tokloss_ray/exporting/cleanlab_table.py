"""cleanlab: a Parquet file with what `cleanlab.token_classification` asks for, and other labels back.

https://docs.cleanlab.ai/stable/cleanlab/token_classification/filter.html wants for each sentence its words, their
labels as integers, and the probabilities of all tags for each word.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import TagSet

ROWS = 1_000
"""Sentences in a row group."""

NAMES = b"tokloss.tags"
"""Metadata of the file: the tags as a JSON list, in the order of labels and probabilities."""

LAYOUT = pa.schema(
    {
        schema.EXAMPLE_ID: pa.string(),
        schema.SOURCE: pa.string(),
        schema.SOURCE_ROW: pa.int64(),
        "word_index": pa.list_(pa.int32()),
        "tokens": pa.list_(pa.string()),
        "labels": pa.list_(pa.int32()),
        "pred_probs": pa.list_(pa.list_(pa.float32())),
        "corrected": pa.list_(pa.int32()),
    }
)


def cleanlab_table(sentences: Iterable[Sentence], tag_set: TagSet) -> Iterator[bytes]:
    """The labelled words of each sentence, with labels as they are and as they are to be (`corrected`)."""
    code = {tag: i for i, tag in enumerate(tag_set.tags)}
    sink = io.BytesIO()
    layout = LAYOUT.with_metadata({NAMES: json.dumps(tag_set.tags)})
    rows = iter(sentences)
    with pq.ParquetWriter(sink, layout, compression="zstd") as writer:
        while group := list(islice(rows, ROWS)):
            writer.write_table(pa.Table.from_pylist([_row(sentence, code) for sentence in group], schema=layout))
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()


def _row(sentence: Sentence, code: dict[str, int]) -> dict[str, object]:
    assert sentence.distributions is not None  # the format asks for them
    labels, corrected, probs = sentence.labels, sentence.corrected, sentence.distributions
    at = [i for i, label in enumerate(labels) if label is not None and probs[i] is not None]
    return {
        schema.EXAMPLE_ID: sentence.example_id,
        schema.SOURCE: sentence.source,
        schema.SOURCE_ROW: sentence.source_row,
        "word_index": at,
        "tokens": [sentence.words[i] for i in at],
        "labels": [code[labels[i] or ""] for i in at],
        # A tag that only the data has (O, mostly) is never predicted.
        "pred_probs": [[*(probs[i] or []), *[0.0] * (len(code) - len(probs[i] or []))] for i in at],
        "corrected": [code[corrected[i] or labels[i] or ""] for i in at],
    }


def read_cleanlab_table(data: bytes) -> Iterator[Correction]:
    """What was changed in the column `corrected`.

    Raises:
        Refused: not such a file, or `corrected` has another length than the labels, or a number without a tag.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise Refused(f"it is not a Parquet file: {error}") from None
    tags = (table.schema.metadata or {}).get(NAMES)
    if tags is None or not set(LAYOUT.names) - {"pred_probs"} <= set(table.column_names):
        raise Refused("it lacks columns or the list of tags: keep those of tokloss export, and the file's metadata")
    names = json.loads(tags)
    for row in table.select([name for name in LAYOUT.names if name != "pred_probs"]).to_pylist():
        yield _correction(row, names)


def _correction(row: dict[str, Any], names: list[str]) -> Correction:
    correction = Correction(row[schema.EXAMPLE_ID], row[schema.SOURCE], row[schema.SOURCE_ROW])
    lengths = {len(row[name]) for name in ("word_index", "tokens", "labels", "corrected")}
    if len(lengths) > 1 or not all(0 <= code < len(names) for code in row["corrected"]):
        raise Refused(f"{correction.name} has not one tag from 0 to {len(names) - 1} for each word in corrected")
    for word_index, word, label, new in zip(
        row["word_index"], row["tokens"], row["labels"], row["corrected"], strict=True
    ):
        correction.words[word_index] = word
        if new != label:
            correction.changes[word_index] = (names[label], names[new])
    return correction


CLEANLAB = ExportFormat(
    name="cleanlab",
    write=lambda sentences, tag_set, loss: cleanlab_table(sentences, tag_set),
    read=read_cleanlab_table,
    recognises=lambda data: data.startswith(b"PAR1"),
    distributions=True,
    next_step="Find issues with cleanlab.token_classification. After changing corrected, save it as Parquet, then:",
)
