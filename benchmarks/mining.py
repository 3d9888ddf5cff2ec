"""Mining side by side with pandas: tokens per second, memory, and whether the cost per token stays level.

    python benchmarks/mining.py tokloss-demo --tokens 1000000,10000000

Copies a finished output (by default the demo, which is scored if need be) with other ids until it has so many tokens,
and mines each copy in a process of its own. With pandas it does two things on one million tokens, reading included:
`pandas` is the usual analysis (explode, then group by token, tag, pair of tags and sequence; four tables), `pandas-all`
the tables that mining makes, as far as pandas and seqeval make them in a few lines. Prints a table, then one JSON
object. The programs run in turn, and medians count. Processor time and peak memory are those of the whole process,
start-up included; `seconds` and tokens per second are of mining without start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray.storage.sealed import sealed, unsealed

PANDAS_TOKENS = 1_000_000


def copy_output(source: Path, target: Path, tokens: int) -> int:
    """A finished output with the rows of `source` again and again, each time with other ids; returns its tokens."""
    records = [unsealed(path.read_bytes()) for path in sorted((source / "_commits").iterdir())]
    tables = [[(file, pq.read_table(source / file["path"], partitioning=None)) for file in r["files"]] for r in records]
    for name in ("_run.json", "_SUCCESS"):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)
    (target / "_commits").mkdir()
    made = copy = 0
    while made < tokens:
        for record, files in zip(records, tables, strict=True):
            shard, written = f"{copy:06d}-{record['index']:03d}", []
            for file, table in files:
                ids = pc.binary_join_element_wise(table.column("example_id"), f"-{copy}", "")
                table = table.set_column(table.schema.get_field_index("example_id"), "example_id", ids)
                where = pa.repeat(f"copy-{copy:04d}.parquet", table.num_rows)
                table = table.set_column(table.schema.get_field_index("source"), "source", where)
                path = f"{os.path.dirname(file['path'])}/{shard}-{record['fingerprint']}.parquet"
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, target / path, compression="zstd", write_page_checksum=True)
                written.append({"path": path, "rows": table.num_rows, "bytes": (target / path).stat().st_size})
            source = f"copy-{copy:04d}.parquet"
            about = {**record, "shard": shard, "unit": copy, "files": written, "source": source, "last_source": source}
            (target / f"_commits/{shard}.json").write_bytes(sealed(about))
            made += record["tokens"]
            if made >= tokens:
                break
        copy += 1
    return made


def with_tokloss(output: str) -> dict[str, Any]:
    """Mine everything, in this process; as in pandas, the tables stay in memory."""
    from tokloss_ray.mining.mine import mine

    start = time.perf_counter()
    tables = mine(output, write=False)
    return {"seconds": time.perf_counter() - start, "rows": {name: table.num_rows for name, table in tables.items()}}


def with_pandas(output: str) -> dict[str, Any]:
    """The analysis in pandas: explode, drop IGN, group by token, tag, pair of tags and sequence."""
    import pandas as pd

    columns = ["example_id", "input_tokens", "labels", "predicted_label", "loss"]
    start = time.perf_counter()
    frame = pd.read_parquet(f"{output}/scores", columns=columns)
    tokens = frame.explode(columns[1:], ignore_index=True)
    tokens = tokens[tokens["labels"] != "IGN"].astype({"loss": "float64"})
    made = {
        "tokens": tokens.groupby("input_tokens")["loss"].agg(["count", "mean", "sum", "max", "std"]).sort_values("sum"),
        "tags": tokens.groupby("labels")["loss"].agg(["count", "mean", "sum"]).sort_values("mean"),
        "confusion": pd.crosstab(tokens["labels"], tokens["predicted_label"], normalize="index"),
        "sequences": tokens.groupby("example_id")["loss"].sum().nlargest(10_000),
    }
    return {"seconds": time.perf_counter() - start, "rows": {name: len(table) for name, table in made.items()}}


def with_pandas_all(output: str) -> dict[str, Any]:
    """The tables of `tokloss mine` but label issues and wrong entities, in pandas; entity scores by seqeval."""
    import numpy as np
    import pandas as pd
    from seqeval.metrics import classification_report

    columns = ["example_id", "words", "input_tokens", "word_ids", "labels", "predicted_label", "loss"]
    start = time.perf_counter()
    frame = pd.read_parquet(f"{output}/scores", columns=columns)
    frame["length"] = [len(labels) for labels in frame["labels"]]
    tokens = frame.explode(columns[2:], ignore_index=True)
    tokens["subtokens"] = tokens.groupby(["example_id", "word_ids"], sort=False)["loss"].transform("size")
    tokens = tokens[tokens["labels"] != "IGN"].astype({"loss": "float64", "word_ids": int})
    tokens["word"] = [words[i] for words, i in zip(tokens["words"], tokens["word_ids"], strict=True)]
    tokens["error"] = tokens["labels"] != tokens["predicted_label"]
    tokens["type"] = tokens["labels"].str.replace("^[BI]-", "", regex=True)
    tokens["predicted_type"] = tokens["predicted_label"].str.replace("^[BI]-", "", regex=True)
    tokens["frequency"] = tokens.groupby("word")["loss"].transform("size")
    tokens["length"] = tokens.groupby("example_id")["loss"].transform("size")
    tokens["position"] = tokens["word_ids"] + 1
    figures = ["count", "mean", "sum", "max", "std"]
    made = {
        "tokens": tokens.groupby("input_tokens")["loss"].agg(figures).sort_values("sum"),
        "words": tokens.groupby("word")["loss"].agg(figures).sort_values("sum"),
        "labelled": tokens.groupby(["word", "labels"]).size(),
        "predicted": tokens.groupby(["word", "predicted_label"]).size(),
        "tags": tokens.groupby("labels")["loss"].agg(figures).sort_values("mean"),
        "confusion": pd.crosstab(tokens["labels"], tokens["predicted_label"], normalize="index"),
        "types": pd.crosstab(tokens["type"], tokens["predicted_type"], normalize="index"),
        "inconsistent": (types := pd.crosstab(tokens["word"], tokens["type"]))[(types > 0).sum(axis=1) > 1],
    }
    by_sequence = tokens.groupby("example_id", sort=False)
    for how in ("sum", "mean", "max"):
        made[f"sequences_{how}"] = by_sequence["loss"].agg(how).nlargest(10_000)
    for name in ("length", "position", "subtokens", "frequency"):
        bucket = np.ceil(np.log2(tokens[name].astype(float)))
        made[name] = tokens.groupby(bucket).agg({"loss": figures, "error": ["sum", "mean"]})
    label, predicted = (by_sequence[name].agg(list).tolist() for name in ("labels", "predicted_label"))
    made["entities"] = classification_report(label, predicted, output_dict=True)
    return {"seconds": time.perf_counter() - start, "rows": {name: len(table) for name, table in made.items()}}


PROGRAMS = {"tokloss": with_tokloss, "pandas": with_pandas, "pandas-all": with_pandas_all}


def in_process(how: str, output: Path) -> dict[str, Any]:
    """Run one of the two in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, __file__, str(output), "--only", how]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) | {"wall": time.perf_counter() - start}


def measured(how: str, output: str) -> dict[str, Any]:
    found = PROGRAMS[how](output)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return found | {"cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", nargs="?", help="a finished output of one partition or more; without it, the demo")
    parser.add_argument("--tokens", default="1000000,10000000", help="sizes to mine, in tokens")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; their median counts")
    parser.add_argument("--only", choices=[*PROGRAMS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measured(args.only, args.output)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(args.output) if args.output else Path(folder, "demo")
        if not args.output:
            subprocess.run(
                [sys.executable, "-m", "tokloss_ray", "demo", "-o", str(source)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        runs = [("tokloss", int(size)) for size in args.tokens.split(",")]
        runs += [(how, PANDAS_TOKENS) for how in ("pandas", "pandas-all")]
        corpora = {size: Path(folder, f"tokens-{size}") for _, size in runs}
        for size, corpus in corpora.items():
            copy_output(source, corpus, size)
        found: dict[tuple[str, int], list[dict[str, Any]]] = {run: [] for run in runs}
        for _ in range(args.repeats):
            for how, size in runs:
                found[how, size].append(in_process(how, corpora[size]))
        results = []
        for (how, size), measured_runs in found.items():
            records = [json.loads(path.read_text()) for path in (corpora[size] / "_commits").iterdir()]
            counts = {name: sum(record[name] for record in records) for name in ("tokens", "labels")}
            middle = sorted(measured_runs, key=lambda run: run["seconds"])[len(measured_runs) // 2]
            speed = {"tokens_per_second": counts["tokens"] / middle["seconds"]}
            every = {"all_seconds": [run["seconds"] for run in measured_runs]}
            results.append({"program": how, **counts, **middle, **speed, **every})
    print(
        f"{'program':12}{'tokens':>12}{'labelled':>12}{'seconds':>10}{'tokens/s':>12}{'cpu s':>8}{'peak MB':>9}",
        file=sys.stderr,
    )
    for r in results:
        print(
            f"{r['program']:12}{r['tokens']:12,}{r['labels']:12,}{r['seconds']:10.2f}{r['tokens_per_second']:12,.0f}"
            f"{r['cpu']:8.1f}{r['peak_mb']:9,.0f}",
            file=sys.stderr,
        )
    ours = [r for r in results if r["program"] == "tokloss"]
    closest = min(ours, key=lambda r: abs(r["tokens"] - PANDAS_TOKENS))
    times = {r["program"]: closest["tokens_per_second"] / r["tokens_per_second"] for r in results if r not in ours}
    level = (ours[-1]["seconds"] / ours[-1]["tokens"]) / (ours[0]["seconds"] / ours[0]["tokens"])
    compared = ", ".join(f"{ratio:.1f} times as fast as {name}" for name, ratio in times.items())
    print(f"{compared}; cost per token, largest over smallest: {level:.2f}", file=sys.stderr)
    print(json.dumps({"cpus": os.cpu_count(), "runs": results, "times_as_fast_as": times, "cost_ratio": level}))


if __name__ == "__main__":
    main()
