"""Finished outputs of any size without a corpus or a model: real Parquet with the real columns, records and plan.

    python benchmarks/stand_in_outputs.py FOLDER --tokens 100000000

Words follow a power law, so that their number grows with the corpus as in natural text (about N ** 0.7 distinct ones).
The same seed gives the same rows, whatever the shards; `model` draws other predictions and losses for them, and
`renamed` calls the input files otherwise, so that rows of two outputs can only be matched by their ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.output.names import COMMITS, PLAN, RUN, SCORES, SUCCESS, shard_name
from tokloss_ray.output.run import fingerprint
from tokloss_ray.ragged import list_array, offsets_of, positions
from tokloss_ray.storage.sealed import sealed

TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
_POWER = 1.4
_PIECES = 30_000
_BLOCK_ROWS = 4_096
"""Rows are drawn so many at a time, whatever a shard holds, so that shards of any size hold the same rows."""
_BLOCK_TOKENS = 4_096 * 24.5
_UNIT_BLOCKS = 96


class _Rows:
    """Some rows: words and what a tokenizer and a model make of them, flat, with offsets."""

    def __init__(self, block: int, model: int, seed: int) -> None:
        rng = np.random.default_rng([seed, block])
        self.words_in = rng.poisson(17, _BLOCK_ROWS) + 1
        number = int(self.words_in.sum())
        self.word = np.minimum(rng.zipf(_POWER, number), 1 << 40)
        self.pieces = 1 + (rng.random(number) < 0.25)
        begin = rng.random(number) < 0.12
        kind = rng.integers(0, 3, number)
        inside = np.zeros(number, dtype=bool)
        inside[1:] = begin[:-1] & (rng.random(number - 1) < 0.5)
        inside[offsets_of(self.words_in)[:-1]] = False
        self.label = np.where(begin, 1 + 2 * kind, 0)
        at = np.flatnonzero(inside & ~begin)
        self.label[at] = self.label[at - 1] + 1
        answers = np.random.default_rng([seed, block, model])
        wrong = answers.random(number) < 0.05
        self.predicted = np.where(wrong, answers.integers(0, len(TAGS), number), self.label).astype(np.int32)
        self.second = ((self.predicted + answers.integers(1, len(TAGS), number)) % len(TAGS)).astype(np.int32)
        self.loss = answers.exponential(np.where(self.predicted == self.label, 0.05, 3.0)).astype(np.float32)
        self.prob = answers.random(number, dtype=np.float32) / 2 + np.float32(0.5)


def _table(rows: _Rows, source: str, first: int) -> pa.Table:
    """The rows as a table of scores/. first: the number of the first row in the corpus."""
    count = len(rows.words_in)
    word_at = offsets_of(rows.words_in)
    of_word = np.repeat(np.arange(count), rows.words_in)
    lengths = np.bincount(of_word, rows.pieces, minlength=count).astype(np.int64) + 2  # [CLS] and [SEP]
    offsets = offsets_of(lengths)
    start = offsets_of(rows.pieces)[:-1] + 1 + 2 * of_word  # where each word's first piece is
    tokens = int(offsets[-1])

    def at_first(values: np.ndarray, otherwise: Any) -> np.ndarray:
        full = np.full(tokens, otherwise, dtype=values.dtype)
        full[start] = values
        return full

    ids = at_first(5 + rows.word % _PIECES, 4)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 2, 3
    word_ids = np.full(tokens, -1, dtype=np.int32)
    index = (np.arange(len(rows.word)) - word_at[of_word]).astype(np.int32)
    word_ids[positions(start, rows.pieces)] = np.repeat(index, rows.pieces)
    label = at_first(rows.label, len(TAGS))
    loss = at_first(rows.loss, 0.0)
    total = np.add.reduceat(loss.astype(np.float64), offsets[:-1])
    names = pa.array([*TAGS, schema.IGN])
    distinct, code = np.unique(rows.word, return_inverse=True)
    words = _prefixed("w", distinct).take(pa.array(code))
    pieces, piece = np.unique(ids, return_inverse=True)
    number = pa.array(np.arange(first, first + count))
    columns = {
        schema.EXAMPLE_ID: _prefixed("row-", number),
        schema.SOURCE: pa.repeat(source, count),
        schema.SOURCE_ROW: number,
        schema.WINDOW: pa.array(np.zeros(count, np.int32)),
        schema.WORDS: list_array(words, word_at),
        schema.INPUT_IDS: list_array(ids.astype(np.int32), offsets),
        schema.INPUT_TOKENS: list_array(_prefixed("p", pieces).take(pa.array(piece)), offsets),
        schema.WORD_IDS: list_array(pa.array(word_ids, mask=word_ids < 0), offsets),
        schema.LABELS: list_array(names.take(pa.array(label)), offsets),
        schema.PREDICTED_LABEL: list_array(names.take(pa.array(at_first(rows.predicted, 0))), offsets),
        schema.LOSS: list_array(loss, offsets),
        schema.PREDICTED_PROB: list_array(at_first(rows.prob, 0.9), offsets),
        schema.SECOND_LABEL: list_array(names.take(pa.array(at_first(rows.second, 1))), offsets),
        schema.SECOND_PROB: list_array(at_first(np.float32(1) - rows.prob, 0.1), offsets),
        schema.NUM_TOKENS: pa.array(lengths.astype(np.int32)),
        schema.NUM_LABELS: pa.array(rows.words_in.astype(np.int32)),
        schema.NUM_DROPPED_WORDS: pa.array(np.zeros(count, np.int32)),
        schema.TOTAL_LOSS: pa.array(total.astype(np.float32)),
        schema.MEAN_LOSS: pa.array((total / rows.words_in).astype(np.float32)),
        schema.MAX_LOSS: pa.array(np.maximum.reduceat(loss, offsets[:-1])),
    }
    return pa.table(columns, pa.schema(schema.SCORES_FIELDS))


def _prefixed(prefix: str, numbers: Any) -> pa.Array:
    text = pa.array(numbers).cast(pa.string())
    return pa.compute.binary_join_element_wise(pa.scalar(prefix), text, "")


def write_output(
    folder: Path, tokens: int, shard_tokens: int = 1 << 20, model: int = 0, renamed: bool = False, seed: int = 0
) -> int:
    """A finished output of about so many tokens; returns how many. Each read unit is a file of the input."""
    (folder / COMMITS).mkdir(parents=True)
    (folder / SCORES).mkdir()
    blocks = max(1, round(tokens / _BLOCK_TOKENS))
    name = "renamed" if renamed else "corpus"
    sources = {f"{name}-{i:05d}.parquet": blocks_of for i, blocks_of in enumerate(_cut(blocks))}
    identity = {
        "format": 4, "input": [[source, len(of_unit) * _BLOCK_ROWS, ""] for source, of_unit in sources.items()],
        "partition_by": [], "keep": [], "add_column": {}, "keep_probs": False, "model": str(model), "seed": seed,
        "shard_tokens": shard_tokens,
    }  # fmt: skip
    short = fingerprint(identity)[:6]
    units: list[dict[str, Any]] = []
    totals = dict.fromkeys(("rows", "scored_rows", "error_rows", "sequences", "tokens", "labels"), 0)
    for number, (source, of_unit) in enumerate(sources.items()):
        tables = (_table(_Rows(block, model, seed), source, block * _BLOCK_ROWS) for block in of_unit)
        stop = 0
        for index, (table, last) in enumerate(_shards(tables, shard_tokens)):
            start, stop = stop, stop + table.num_rows
            rows = table.column(schema.SOURCE_ROW)
            record = _commit(folder, table, number, index, short) | {
                "start": start, "stop": stop, "first_row": rows[0].as_py(), "last_row": rows[-1].as_py(), "last": last,
            }  # fmt: skip
            (folder / COMMITS / f"{record['shard']}.json").write_bytes(sealed(record))
            totals = {key: value + record[key] for key, value in totals.items()}
        first = of_unit[0] * _BLOCK_ROWS
        units.append({"number": number, "source": source, "start": first, "stop": first + stop, "rows": stop})
    pq.write_table(pa.Table.from_pylist(units), folder / PLAN)
    plan = {"units": len(units), "rows": totals["rows"], "sha256": sha256((folder / PLAN).read_bytes()).hexdigest()}
    run = {
        "fingerprint": fingerprint(identity), "settings": {}, "identity": identity, "tags": list(TAGS), "versions": {},
        "plan": plan,
    }  # fmt: skip
    (folder / RUN).write_bytes(sealed(run))
    (folder / SUCCESS).write_bytes(sealed(totals))
    return totals["tokens"]


def _cut(blocks: int) -> list[range]:
    """The blocks of each unit."""
    return [range(start, min(start + _UNIT_BLOCKS, blocks)) for start in range(0, blocks, _UNIT_BLOCKS)]


def _shards(tables: Iterable[pa.Table], shard_tokens: int) -> Iterator[tuple[pa.Table, bool]]:
    """The rows of a unit in shards, each with whether it is the last."""
    left: pa.Table | None = None
    for table in tables:
        left = table if left is None else pa.concat_tables([left, table])
        while True:
            ends = np.cumsum(left.column(schema.NUM_TOKENS).to_numpy())
            if ends[-1] < 2 * shard_tokens:
                break
            cut = int(np.searchsorted(ends, shard_tokens)) + 1
            yield left.slice(0, cut), False
            left = left.slice(cut)
    assert left is not None
    yield left, True


def _commit(folder: Path, table: pa.Table, unit: int, index: int, short: str) -> dict[str, Any]:
    name = shard_name(unit, index)
    path = f"{SCORES}/{name}-{short}.parquet"
    pq.write_table(table, folder / path, compression="zstd", write_page_checksum=True)
    data = (folder / path).read_bytes()
    file = {"path": path, "rows": table.num_rows, "bytes": len(data), "sha256": sha256(data).hexdigest()}
    labels = table.column(schema.LABELS).combine_chunks().flatten().dictionary_encode()
    losses = table.column(schema.LOSS).combine_chunks().flatten().to_numpy().astype(np.float64)
    code = labels.indices.to_numpy()
    counts, sums = np.bincount(code), np.bincount(code, losses)
    by_tag = {
        tag: (int(count), float(total))
        for tag, count, total in zip(labels.dictionary.to_pylist(), counts, sums, strict=True)
        if tag != schema.IGN
    }
    tokens = int(pa.compute.sum(table.column(schema.NUM_TOKENS)).as_py())
    return {
        "shard": name, "fingerprint": short, "unit": unit, "index": index,
        "source": table.column(schema.SOURCE)[0].as_py(), "rows": table.num_rows, "seconds": {"score": 1.0},
        "padded_tokens": tokens, "batch_tokens": 1024,
        "batching": schema.PADDED, "scored_rows": table.num_rows, "error_rows": 0, "sequences": table.num_rows,
        "tokens": tokens, "labels": sum(count for count, _ in by_tag.values()), "dropped_words": 0, "errors": {},
        "loss_by_tag": by_tag, "files": [file], "errors_file": None, "storage_retries": 0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--shard-tokens", type=int, default=1 << 20)
    parser.add_argument("--model", type=int, default=0)
    parser.add_argument("--renamed", action="store_true")
    args = parser.parse_args()
    print(write_output(args.folder, args.tokens, args.shard_tokens, args.model, args.renamed))


if __name__ == "__main__":
    main()
