"""What small files cost: the same rows in many files and in one, and the plan of very many files.

    python benchmarks/many_files.py
    python benchmarks/many_files.py --files 50000 --runs 1 --format jsonl
    python benchmarks/many_files.py --s3 s3://bucket/prefix
    python benchmarks/many_files.py --plan 1000000
    python benchmarks/many_files.py --plan-rows 1000000000

Without --plan: runs `tokloss score` over the same rows of the bundled corpus, four to a file and all in one, in turn,
and compares the medians. With --s3 both corpora and outputs are objects (AWS_ENDPOINT_URL names another server).

--plan makes so many files of a few rows (hard links to some hundred), and --plan-rows files of a million rows each,
with metadata like those of real ones and rows that take no space; it says how long the plan takes in a process of its
own and how much memory that process uses.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from common import save, say, show, spread

from tokloss_ray.config import ScoreConfig
from tokloss_ray.demo import DATA, MODEL

ROWS_PER_FILE, FILES_PER_FOLDER, MOST_LINKS = 4, 1_000, 30_000
TARGETS = {2_000: 1.5, 50_000: 1.2}


def write_file(path: Path, rows: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist()))


def write_corpora(folder: Path, files: int, suffix: str) -> tuple[Path, Path]:
    """The same rows in one file and in many, `ROWS_PER_FILE` each."""
    corpus = pq.read_table(DATA, columns=["tokens", "ner_tags"]).replace_schema_metadata(pq.read_schema(DATA).metadata)
    rows = files * ROWS_PER_FILE
    table = pa.concat_tables([corpus] * -(-rows // corpus.num_rows)).slice(0, rows).combine_chunks()
    one, many = folder / "one", folder / "many"
    one.mkdir()
    write_file(one / f"all.{suffix}", table)
    for number in range(files):
        inside = many / f"{number // FILES_PER_FOLDER:04d}"
        inside.mkdir(parents=True, exist_ok=True)
        part = table.slice(number * ROWS_PER_FILE, ROWS_PER_FILE)
        write_file(inside / f"{number % FILES_PER_FOLDER:03d}.{suffix}", part)
    return one, many


def run_once(source: str, output: str, model: str) -> float:
    """Seconds of one job.

    Raises:
        SystemExit: the command failed, with what it said.
    """
    command = [sys.executable, "-m", "tokloss_ray", "score", "-m", model, "-i", source, "-o", output]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return time.perf_counter() - start


def linked(folder: Path, files: int) -> Path:
    """So many small files, most of them links to others: what a plan sees of them is the same."""
    corpus = pq.read_table(DATA, columns=["tokens", "ner_tags"])
    base = folder / "base"
    base.mkdir()
    bases = [base / f"{i:03d}.parquet" for i in range(-(-files // MOST_LINKS) + 1)]
    for i, path in enumerate(bases):
        write_file(path, corpus.slice(i * ROWS_PER_FILE, ROWS_PER_FILE))
    many = folder / "many"
    for number in range(files):
        if not number % FILES_PER_FOLDER:
            inside = many / f"{number // FILES_PER_FOLDER:04d}"
            inside.mkdir(parents=True)
        os.link(bases[number // MOST_LINKS], inside / f"{number % FILES_PER_FOLDER:03d}.parquet")
    return many


def tall(folder: Path, rows: int) -> Path:
    """Files of a million rows that all are the same, in row groups of ten thousand."""
    corpus = pq.read_table(DATA, columns=["tokens", "ner_tags"]).slice(0, 1)
    group = pa.concat_tables([corpus] * 10_000).combine_chunks()
    base, many = folder / "base.parquet", folder / "many"
    with pq.ParquetWriter(base, group.schema) as writer:
        for _ in range(100):
            writer.write_table(group)
    many.mkdir()
    for number in range(rows // 1_000_000):
        os.link(base, many / f"{number:06d}.parquet")
    return many


def plan(source: str, model: str, output: str) -> None:
    """Make the plan as `score` does, and write its figures as JSON."""
    from tokloss_ray.inputs.listing import list_inputs
    from tokloss_ray.scoring.folder import start_run
    from tokloss_ray.scoring.plan import make_plan
    from tokloss_ray.scoring.preflight import preflight

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    list_inputs([source])
    listed = time.perf_counter() - start
    start = time.perf_counter()
    made = make_plan(preflight(ScoreConfig(model=model, input=source, output=output)), gpu=False, bfloat16=False)
    planned = time.perf_counter() - start
    start_run(made, {})
    figures = {
        "files": made.inputs.num_rows,
        "rows": made.rows,
        "units": len(made.units),
        "shard_tokens": made.job.shard_tokens,
        "listing alone": round(listed, 2),
        "plan": round(planned, 2),
        "written": round(time.perf_counter() - start - planned, 2),
        "MB before": round(before),
        "MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(figures))


def keep(path: str | None, name: str, figures: dict[str, Any]) -> None:
    """Add figures to those of other options that a file has."""
    there = json.loads(Path(path).read_text()) if path and Path(path).exists() else {}
    others = {key: value for key, value in there.items() if key not in ("benchmark", "machine")}
    save(path, "many_files", {**others, name: figures})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="(default: the bundled one)")
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--format", default="parquet", choices=["parquet", "jsonl"])
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--s3", metavar="URL", help="put corpora and outputs there")
    parser.add_argument("--plan", type=int, metavar="FILES", help="only plan so many files")
    parser.add_argument("--plan-rows", type=int, metavar="ROWS", help="only plan so many rows, in files of a million")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one run, 100 files")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, beside those of other options")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        plan(*args.child)
        return
    if args.quick:
        args.files, args.runs = 100, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.plan or args.plan_rows:
            say("making the files ...")
            source = linked(folder, args.plan) if args.plan else tall(folder, args.plan_rows)
            child = [sys.executable, __file__, "--child", str(source), args.model, str(folder / "out")]
            figures = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            show("the plan: seconds, MB", list(figures), [list(figures.values())])
            keep(args.json, f"plan of {figures['files']} files", figures)
            return
        one, many = (str(path) for path in write_corpora(folder, args.files, args.format))
        where = str(folder)
        if args.s3:
            where = args.s3.rstrip("/")
            fs, root = fsspec.url_to_fs(where)
            for corpus in (one, many):
                fs.put(corpus, f"{root}/{Path(corpus).name}", recursive=True)
            one, many = f"{where}/one", f"{where}/many"
        seconds: dict[str, list[float]] = {"one file": [], "many files": []}
        for number in range(args.runs):  # in turn, so that what the machine does beside it falls on both
            for corpus, source in zip(seconds, (one, many), strict=True):
                seconds[corpus].append(run_once(source, f"{where}/out-{corpus[:3].strip()}-{number}", args.model))
    found: dict[str, Any] = {corpus: spread(times, 2) for corpus, times in seconds.items()}
    ratio = round(found["many files"]["median"] / found["one file"]["median"], 2)
    target = TARGETS.get(args.files)
    met = "" if target is None else f"; target {target:g}: {'met' if ratio <= target else 'missed'}"
    rows = [[corpus, *(times[which] for which in ("median", "min", "max"))] for corpus, times in found.items()]
    show(f"seconds, median of {args.runs}; {args.files * ROWS_PER_FILE:,} rows", ["", "median", "least", "most"], rows)
    say(f"{args.files:,} files take {ratio} times as long as one{met}")
    name = f"{args.files} files{' on S3' if args.s3 else ''}"
    keep(args.json, name, {"files": args.files, **found, "ratio": ratio, "target": target})


if __name__ == "__main__":
    main()
