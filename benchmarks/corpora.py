"""Models and corpora for the benchmarks, made from what the package ships: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForTokenClassification

import tokloss_ray

DEMO = Path(tokloss_ray.__file__).parent / "demo"
DEMO_MODEL, DEMO_DATA = DEMO / "model", DEMO / "data" / "panx_de_validation.parquet"
SIZES = {"tiny": (2, 64, 2), "small": (6, 384, 6), "base": (12, 768, 12), "large": (24, 1024, 16)}
"""Layers, width and heads."""
MAX_LENGTH = 512


def make_model(size: str, folder: Path, seed: int = 0) -> Path:
    """A randomly initialised encoder with the tokenizer and the tags of the demo's model."""
    layers, width, heads = SIZES[size]
    demo = AutoConfig.from_pretrained(DEMO_MODEL)
    config = BertConfig(
        vocab_size=demo.vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=demo.pad_token_id,
        id2label=demo.id2label,
        label2id=demo.label2id,
    )
    torch.manual_seed(seed)
    BertForTokenClassification(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    return folder


def parameters(size: str) -> int:
    """Weights of the linear layers that each token is multiplied with."""
    layers, width, _ = SIZES[size]
    return layers * 12 * width * width


def panx(sentences: int | None = None) -> pa.Table:
    """PAN-X.de validation sentences; more than there are repeat them under new ids."""
    table = pq.read_table(DEMO_DATA)
    count = table.num_rows if sentences is None else sentences
    table = table.take(pa.array(np.arange(count) % table.num_rows))
    ids = pa.array([f"row-{i}" for i in range(count)])
    return table.set_column(table.column_names.index("id"), "id", ids) if "id" in table.column_names else table


def long_tail(texts: int, seed: int = 0) -> pa.Table:
    """Texts with lognormal lengths (median 40 words, sigma 1, at most 400): sentences of the demo put together."""
    table = panx()
    words = table.column("tokens").combine_chunks()
    tags = table.column("ner_tags").combine_chunks()
    flat_words, flat_tags = words.flatten(), tags.flatten()
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(40), 1.0, texts).astype(np.int64), 3, 400)
    starts = rng.integers(0, len(flat_words) - 400, texts)
    at = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.table(
        {
            "id": [f"text-{i}" for i in range(texts)],
            "tokens": pa.ListArray.from_arrays(offsets, flat_words.take(pa.array(at))),
            "ner_tags": pa.ListArray.from_arrays(offsets, flat_tags.take(pa.array(at))),
        },
        metadata=table.schema.metadata,
    )


def repeated(table: pa.Table, times: int) -> pa.Table:
    """The same rows several times, under new ids."""
    many = pa.concat_tables([table] * times)
    return many.set_column(many.column_names.index("id"), "id", pa.array([f"row-{i}" for i in range(many.num_rows)]))
