"""Outputs to mine: real sentences scored in this process, and rows written by hand as a run would write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import inline
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA, MODEL

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SENTENCES = 10_000


def demo_sentences(folder: Path, start: int = 0, count: int = SENTENCES, **columns: list[Any]) -> Path:
    """Sentences of the demo as a Parquet file, with further columns."""
    table = pq.read_table(DATA).slice(start, count)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    path = folder / "rows.parquet"
    pq.write_table(table.drop_columns(["lang"]), path)
    return path


def score_demo(folder: Path, source: Path, **options: Any) -> Path:
    """The demo's model on a file, in several shards."""
    settings: dict[str, Any] = {
        "model": str(MODEL), "input": (str(source),), "output": str(folder / "out"), "id_column": "id", "tags": TAGS,
        "shard_tokens": 8192,
    }  # fmt: skip
    inline.score_inline(ScoreConfig(**settings | options))
    return folder / "out"


def explode(output: Path) -> Any:
    """The analysis of DESIGN.md section 1 begins so: one row per token in pandas, without IGN."""
    import pandas as pd
    import pyarrow.dataset as pads

    frame = pads.dataset(output / "scores", partitioning=pads.partitioning(flavor="hive")).to_table().to_pandas()
    lists = [
        "input_tokens",
        "word_ids",
        "labels",
        "predicted_label",
        "loss",
        "predicted_prob",
        "second_label",
        "second_prob",
    ]
    lists += ["probs"] if "probs" in frame else []
    frame["position"] = [list(range(len(labels))) for labels in frame["labels"]]
    frame["words"] = [None if words is None else list(words) for words in frame["words"]]
    tokens = frame.explode([*lists, "position"], ignore_index=True)
    tokens = tokens[tokens["labels"] != "IGN"].reset_index(drop=True)
    tokens["loss"] = tokens["loss"].astype("float64")
    tokens["error"] = tokens["labels"] != tokens["predicted_label"]
    tokens["word"] = [
        token if words is None or pd.isna(index) else words[int(index)]
        for words, index, token in zip(tokens["words"], tokens["word_ids"], tokens["input_tokens"], strict=True)
    ]
    return tokens


def plain_row(source: str, number: int, words: int, prediction: str, window: int = 0) -> dict[str, Any]:
    """A row for `write_output`: words of one token, all labelled O."""
    text = [f"{source}-{number}-{i}" for i in range(words)]
    return {
        "example_id": f"{source}:{number}", "source": source, "source_row": number, "window": window, "words": text,
        "input_ids": list(range(words)), "input_tokens": text, "word_ids": list(range(words)),
        "labels": ["O"] * words, "predicted_label": [prediction] * words, "loss": [0.5] * words,
        "predicted_prob": [0.9] * words, "second_label": ["B-PER"] * words, "second_prob": [0.1] * words,
        "num_tokens": words, "num_labels": words, "num_dropped_words": 0, "total_loss": 0.5 * words, "mean_loss": 0.5,
        "max_loss": 0.5,
    }  # fmt: skip


def write_output(folder: Path, rows: list[dict[str, Any]], tags: list[str], **identity: Any) -> Path:
    """A finished output of one shard, from rows as dictionaries of the list columns."""
    from tokloss_ray import schema

    folder.mkdir(parents=True)
    fields = [*schema.SCORES_FIELDS, *([schema.PROBS_FIELD] if identity.get("keep_probs") else [])]
    fields += [pa.field(name, pa.string()) for name in identity.get("keep", [])]
    table = pa.Table.from_pylist(rows, pa.schema(fields))
    path = "scores/000000-000-abcdef.parquet"
    (folder / "scores").mkdir()
    pq.write_table(table, folder / path)
    identity = {"partition_by": [], "keep": [], "add_column": {}, "keep_probs": False} | identity
    run = {
        "fingerprint": "abcdef" + "0" * 58,
        "identity": identity,
        "plan": {},
        "settings": {},
        "tags": tags,
        "versions": {},
    }
    by_tag: dict[str, list[float]] = {}
    for row in rows:
        for label, loss in zip(row["labels"], row["loss"], strict=True):
            if label != "IGN":
                count, total = by_tag.get(label, [0, 0.0])
                by_tag[label] = [count + 1, total + loss]
    record = {
        "shard": "000000-000", "fingerprint": "abcdef", "unit": 0, "index": 0, "last": True, "loss_by_tag": by_tag,
        "source": "in", "rows": len(rows), "scored_rows": len(rows), "error_rows": 0, "sequences": len(rows),
        "tokens": sum(len(row["labels"]) for row in rows), "labels": sum(count for count, _ in by_tag.values()),
        "padded_tokens": 0, "batch_tokens": 0, "dropped_words": 0, "errors": {}, "seconds": {}, "errors_file": None,
        "files": [{"path": path, "rows": len(rows), "bytes": (folder / path).stat().st_size, "sha256": None}],
    }  # fmt: skip
    (folder / "_commits").mkdir()
    (folder / "_commits/000000-000.json").write_text(json.dumps(record))
    (folder / "_run.json").write_text(json.dumps(run))
    (folder / "_SUCCESS").write_text("{}")
    return folder
