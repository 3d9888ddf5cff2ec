"""Rows as no corpus should have them: a generator of mutated JSON lines and Parquet rows, and the check of one run.

    python -m tests.long.fuzz --rows 1000000 --seed 7

Each batch goes through reading, encoding and committing, with a stand-in for the model's scores; rows in must be rows
scored plus rows in errors, each with a known reason, and the output must verify.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import models
from tokloss_ray import ScoreConfig, schema
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.output.done import read_committed
from tokloss_ray.output.verify import verify
from tokloss_ray.ragged import list_array, list_lengths, offsets_of, one_array
from tokloss_ray.scoring import finish
from tokloss_ray.scoring.folder import start_run
from tokloss_ray.scoring.lease import Lease
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages.commit import commit_shard
from tokloss_ray.scoring.stages.cutting import encode_unit
from tokloss_ray.scoring.stages.decode import decode_shard
from tokloss_ray.scoring.stages.row_tokenizer import RowTokenizer

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
WORDS = [
    "Anna",
    "wohnt",
    "in",
    "Köln",
    "und",
    "😀",
    "é",
    "\u200b",
    "\u00a0",
    "",
    " ",
    "a" * 300,
    "\u202e",
    "ﷺ",
    "\x00",
    "\t",
]
ODD: list[Any] = [
    None,
    [],
    {},
    "",
    "text",
    0,
    -1,
    3.5,
    True,
    2**40,
    2**70,
    "\ud800",
    [None],
    [[]],
    ["O", 1],
    [1.5],
    [2**70],
]
EDGES = [
    "{",
    "]",
    "null",
    "42",
    '"x"',
    "{}",
    '{"tokens": ["a"], "ner_tags"',
    "\x00",
    "NaN",
    '{"tokens": NaN}',
    "\ufeff{}",
]


def good_row(rng: random.Random, number: int, strings: bool) -> dict[str, Any]:
    count = rng.choice((1, 1, 2, 3, 5, 8, 40))
    tags = [rng.choice(TAGS) if strings else rng.randrange(len(TAGS)) for _ in range(count)]
    return {
        "tokens": [rng.choice(WORDS) for _ in range(count)],
        "ner_tags": tags,
        "lang": rng.choice(["de", "", "a/b", "..", None]),
        "id": f"row-{number}",
    }


def json_line(rng: random.Random, number: int) -> bytes:
    """One line that is not blank: a good row in half of the cases, else one with something wrong."""
    row = good_row(rng, number, strings=rng.random() < 0.9)
    kind = rng.randrange(10)
    if kind == 0:
        row[rng.choice(["tokens", "ner_tags", "lang", "id"])] = rng.choice(ODD)
    elif kind == 1:
        del row[rng.choice(list(row))]
    elif kind == 2:
        row["ner_tags"] = (row["ner_tags"] * 2)[: rng.randrange(1, 9)]
    elif kind == 3:
        row["ner_tags"][rng.randrange(len(row["ner_tags"]))] = rng.choice([None, -100, 9, -5, "B-XYZ", "IGN", 2**40])
    elif kind == 4:
        row["tokens"][rng.randrange(len(row["tokens"]))] = rng.choice([None, 7, ["x"], {"y": 1}, "\ud83d"])
    line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if kind == 5:
        line = rng.choice(EDGES).encode()
    elif kind == 6:
        at = rng.randrange(len(line))
        line = line[:at] + bytes([rng.choice([0, 10, 13, 34, 92, 128, 255])]) + line[at + 1 :]
    return line


def write_batch(rng: random.Random, folder: Path, rows: int) -> int:
    """A text file and a Parquet file of about half the rows each; returns how many rows they hold."""
    folder.mkdir(parents=True)
    lines = b"\n".join(json_line(rng, number) for number in range(rows // 2)) + rng.choice([b"", b"\n", b"\n\n"])
    (folder / "a.jsonl").write_bytes(lines)
    table = []
    for number in range(rows // 2):
        row = good_row(rng, number, strings=True)
        kind = rng.randrange(8)
        if kind == 0:
            row[rng.choice(["tokens", "ner_tags", "id"])] = None
        elif kind == 1:
            row["ner_tags"] = (row["ner_tags"] * 2)[: rng.randrange(0, 9)]
        elif kind == 2:
            row["tokens"][0] = None
        elif kind == 3:
            row["ner_tags"][0] = rng.choice([None, "B-XYZ", "IGN", ""])
        elif kind == 4:
            row["tokens"] = []
        table.append(row)
    strings = pa.list_(pa.string())
    types = pa.schema([("tokens", strings), ("ner_tags", strings), ("lang", pa.string()), ("id", pa.string())])
    pq.write_table(pa.Table.from_pylist(table, types), folder / "b.parquet", row_group_size=max(1, rows // 6))
    return sum(1 for line in lines.split(b"\n") if line.strip()) + len(table)


def stand_in(sequences: pa.Table, rng: np.random.Generator, classes: int) -> pa.Table:
    """What a model could have answered, some of it not finite."""
    offsets = offsets_of(list_lengths(one_array(sequences.column(schema.INPUT_IDS))))
    labels = one_array(sequences.column(schema.LABEL_IDS)).flatten().to_numpy()
    total = int(offsets[-1])
    loss = np.where(labels == schema.IGNORE_INDEX, 0, rng.random(total)).astype(np.float32)
    values = {
        schema.PREDICTED_IDS: rng.integers(0, classes, total).astype(np.int32),
        schema.LOSS: loss,
        schema.PREDICTED_PROB: rng.random(total).astype(np.float32),
        schema.SECOND_IDS: rng.integers(0, classes, total).astype(np.int32),
        schema.SECOND_PROB: rng.random(total).astype(np.float32),
    }
    for name, column in values.items():
        sequences = sequences.append_column(name, list_array(column, offsets))
    problems = [
        str(rng.choice(["non_finite", "out_of_memory"])) if x < 0.01 else None for x in rng.random(sequences.num_rows)
    ]
    return sequences.append_column(schema.PROBLEM, pa.array(problems, pa.string()))


def check_batch(model: Path, folder: Path, rng: random.Random, rows: int) -> Counter[str]:
    """Make a batch, run it, check it; returns the reasons."""
    expected = write_batch(rng, folder / "in", rows)
    settings: dict[str, Any] = rng.choice([{}, {"id_column": "id"}, {"partition_by": ("lang",)}, {"keep": ("lang",)}])
    settings |= rng.choice([{}, {"overflow": "truncate"}, {"overflow": "reject"}, {"max_length": 12, "overlap": 3}])
    config = ScoreConfig(
        model=str(model), input=(str(folder / "in"),), output=str(folder / "out"), shard_tokens=rng.choice([50, 2000]),
        max_error_rate=1.0, **settings,
    )  # fmt: skip
    plan = make_plan(preflight(config), False, False)
    tokenizer = RowTokenizer(plan.job.tokenizer_json)
    scores = np.random.default_rng(rng.randrange(2**32))
    with Lease(config.output, plan.job.fingerprint):
        start_run(plan, {})
        for unit in plan.units:
            for shard in encode_unit(plan.job, tokenizer, unit, read_unit(plan.job, unit)):
                scored = stand_in(shard.sequences, scores, len(TAGS))
                about = shard.about | {"padded_tokens": 0, "batch_tokens": 1, "batching": schema.PADDED}
                about["seconds"]["score"] = 0.0
                commit_shard(plan.job, about, decode_shard(plan.job, shard.about["sources"], scored, shard.errors))
        totals = finish.complete(config, plan, plan.units, read_committed(config.output, plan.job.fingerprint))
    assert totals.rows == totals.scored_rows + totals.error_rows == expected, (totals.rows, expected)
    assert set(totals.errors) <= set(schema.REASONS)
    problems = verify(config.output).problems
    assert not problems, problems
    return Counter(totals.errors) + Counter({"rows": totals.rows})


def fuzz(rows: int, seed: int, batch: int = 4000) -> Counter[str]:
    """So many rows in batches; returns how many, and how many for each reason."""
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        model = models.build("bert", Path(folder) / "model", [WORDS[:6]], TAGS, max_length=32)
        number = 0
        while seen["rows"] < rows:
            rng = random.Random(f"{seed} {number}")
            try:
                seen += check_batch(model, Path(folder) / "batch", rng, batch)
            except Exception:
                print(f"batch {number} of seed {seed} failed")
                raise
            shutil.rmtree(Path(folder) / "batch")
            number += 1
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    seen = fuzz(args.rows, args.seed)
    print(
        f"{seen.pop('rows'):,} rows in {time.monotonic() - start:.0f} s, all scored or in errors:",
        dict(seen.most_common()),
    )


if __name__ == "__main__":
    main()
