"""The same real sentences in a file of every shape of input."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from seqeval.metrics.sequence_labeling import get_entities

from tokloss_ray.demo import DATA
from tokloss_ray.storage import zstd

NER = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
Row = dict[str, Any]
Write = Callable[[Path, list[Row]], Any]
"""(file to write, sentences): each with id, lang, tokens and ner_tags by name."""


@functools.cache
def sentences(count: int) -> tuple[Row, ...]:
    """The first real sentences whose tags are IOB2 to the letter, as those are that are made of spans."""
    found: list[Row] = []
    for batch in pq.ParquetFile(DATA).iter_batches(2000):
        named = ({**row, "ner_tags": [NER[tag] for tag in row["ner_tags"]]} for row in batch.to_pylist())
        found += [row for row in named if _well_formed(row["ner_tags"]) and all(map(_one_word, row["tokens"]))]
        if len(found) >= count:
            break
    return tuple(found[:count])


def _one_word(word: str) -> bool:
    return word.split() == [word]


def _well_formed(tags: list[str]) -> bool:
    before = ["O", *tags]
    return all(tag[0] != "I" or last[2:] == tag[2:] for last, tag in zip(before, tags, strict=False))


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def nested(rows: list[Row]) -> pa.Table:
    whole = table(rows)
    columns = [whole.column(name).combine_chunks() for name in ("tokens", "ner_tags")]
    inner = pa.StructArray.from_arrays(columns, ["words", "bio"])
    outer = pa.StructArray.from_arrays([inner, pa.array(range(len(rows)))], ["gold", "number"])
    return whole.select(["id", "lang"]).append_column("data", outer)


def arrow_stream(path: Path, rows: list[Row]) -> None:
    whole = table(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=30)


def arrow_file(path: Path, rows: list[Row]) -> None:
    whole = table(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=30)


def saved(path: Path, rows: list[Row]) -> None:
    import datasets

    datasets.Dataset(table(rows)).save_to_disk(path, num_shards=3)


def csv_table(separator: str, write: Callable[[list[str]], Any], names: tuple[str, str]) -> Write:
    """With a column of text that has quotes, separators and line breaks."""

    def written(path: Path, rows: list[Row]) -> None:
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["id", "text", names[0], names[1], "lang"])
        for row in rows:
            text = ' ,;"\n'.join(row["tokens"])
            writer.writerow([row["id"], text, write(row["tokens"]), write(row["ner_tags"]), row["lang"]])
        write_packed(path, file.getvalue())

    return written


def write_packed(path: Path, text: str) -> None:
    pack = {".gz": gzip.compress, ".zst": zstd.packed}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))


def conll(path: Path, rows: list[Row]) -> None:
    text = ""
    for row in rows:
        pairs = zip(row["tokens"], row["ner_tags"], strict=True)
        text += f"# id = {row['id']}\n# lang = {row['lang']}\n" + "".join(f"{a}\t{b}\n" for a, b in pairs) + "\n"
    write_packed(path, text)


def lines(make: Callable[[Row], Row]) -> Write:
    return lambda path, rows: write_packed(path, "".join(json.dumps(make(row)) + "\n" for row in rows))


def array(make: Callable[[Row], Row]) -> Write:
    return lambda path, rows: write_packed(path, json.dumps([make(r) for r in rows], ensure_ascii=False, indent=1))


def as_json(items: list[str]) -> str:
    return json.dumps(items, ensure_ascii=False)


# Text with spans: the words of a sentence with a space between, and its entities by character.


def entities(row: Row) -> list[tuple[int, int, str]]:
    """First word, word behind the last, type."""
    return [(first, last + 1, type_) for type_, first, last in get_entities(row["ner_tags"])]


def text_and_spans(row: Row) -> tuple[str, list[tuple[int, int, str]]]:
    starts = [0, *accumulate(len(word) + 1 for word in row["tokens"])]
    return " ".join(row["tokens"]), [(starts[a], starts[b] - 1, type_) for a, b, type_ in entities(row)]


def about(row: Row) -> Row:
    return {"id": row["id"], "lang": row["lang"]}


def spacy(row: Row) -> Row:
    text, spans = text_and_spans(row)
    return about(row) | {"text": text, "entities": [list(span) for span in spans]}


def doccano(row: Row) -> Row:
    text, spans = text_and_spans(row)
    named = [{"id": i, "start_offset": a, "end_offset": b, "label": c} for i, (a, b, c) in enumerate(spans)]
    return about(row) | {"text": text, "entities": named, "relations": []}


def prodigy(row: Row) -> Row:
    text, spans = text_and_spans(row)
    starts = accumulate([0, *(len(word) + 1 for word in row["tokens"])])
    tokens = [
        {"text": w, "start": at, "end": at + len(w), "id": i}
        for i, (w, at) in enumerate(zip(row["tokens"], starts, strict=False))
    ]
    return about(row) | {
        "text": text,
        "tokens": tokens,
        "spans": [{"start": a, "end": b, "label": c} for a, b, c in spans],
        "answer": "accept",
    }


def label_studio(row: Row) -> Row:
    text, spans = text_and_spans(row)
    result = [
        {"type": "labels", "value": {"start": a, "end": b, "text": text[a:b], "labels": [c]}} for a, b, c in spans
    ]
    return about(row) | {"data": {"text": text}, "annotations": [{"was_cancelled": False, "result": result}]}


def gliner(row: Row) -> Row:
    return about(row) | {"tokenized_text": row["tokens"], "ner": [[a, b - 1, c] for a, b, c in entities(row)]}


def span_table(rows: list[Row]) -> pa.Table:
    kind = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", pa.string())]))
    pairs = [text_and_spans(row) for row in rows]
    spans = [[{"start": a, "end": b, "label": c} for a, b, c in found] for _, found in pairs]
    columns = {name: [row[name] for row in rows] for name in ("id", "lang")}
    return pa.table({**columns, "text": [text for text, _ in pairs], "entities": pa.array(spans, kind)})


def span_feather(path: Path, rows: list[Row]) -> None:
    feather.write_feather(span_table(rows), path, chunksize=50, compression="uncompressed")


USUAL = ("tokens", "ner_tags")
OWN = ("sentence_words", "bio")
NAMED = {"tokens_column": OWN[0], "labels_column": OWN[1]}
NESTED = {"tokens_column": "data.gold.words", "labels_column": "data.gold.bio"}
SPACES: dict[str, Any] = {"words": "whitespace"}
SHAPES: dict[str, tuple[Write, dict[str, Any]]] = {
    "in.parquet": (lambda path, rows: pq.write_table(table(rows), path, row_group_size=50), {}),
    "stream.arrow": (arrow_stream, {}),
    "file.arrow": (arrow_file, {}),
    "lz4.feather": (lambda path, rows: feather.write_feather(table(rows), path, chunksize=50), {}),
    "saved": (saved, {}),
    "json.csv": (csv_table(",", as_json, USUAL), {}),
    "python.csv": (csv_table(",", str, OWN), NAMED),
    "spaces.csv": (csv_table(";", " ".join, OWN), NAMED),
    "spaces.tsv": (csv_table("\t", " ".join, USUAL), {}),
    "json.txt": (csv_table("\t", as_json, OWN), NAMED),
    "json.csv.gz": (csv_table(",", as_json, USUAL), {}),
    "json.csv.zst": (csv_table(",", as_json, USUAL), {}),
    "in.jsonl": (lines(dict), {}),
    "in.jsonl.zst": (lines(dict), {}),
    "array.json": (array(dict), {}),
    "in.conll": (conll, {}),
    "in.conll.zst": (conll, {}),
    "words.tsv": (conll, {}),
    "nested.parquet": (lambda path, rows: pq.write_table(nested(rows), path, row_group_size=50), NESTED),
    "nested.feather": (lambda path, rows: feather.write_feather(nested(rows), path, chunksize=50), NESTED),
    "nested.jsonl": (lambda path, rows: lines(dict)(path, nested(rows).to_pylist()), NESTED),
    "spacy.jsonl": (lines(spacy), SPACES),
    "doccano.jsonl": (lines(doccano), SPACES),
    "prodigy.jsonl": (lines(prodigy), {}),
    "label-studio.json": (array(label_studio), SPACES),
    "gliner.jsonl": (lines(gliner), {}),
    "spans.parquet": (lambda path, rows: pq.write_table(span_table(rows), path, row_group_size=50), SPACES),
    "spans.feather": (span_feather, SPACES),
}
"""How a file (or folder) of that name is written, and the settings it needs."""
WHOLE = {name for name in SHAPES if any(part in name for part in ("s.csv", "n.csv", "s.tsv", ".txt", ".gz", ".zst"))}
WHOLE -= {"words.tsv"}
"""Files that are read in one part, however large."""
