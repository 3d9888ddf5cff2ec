"""What it takes to know what is done: resume, status and finish over the records of many shards.

    python benchmarks/records.py                          1,000 and 100,000 shards on a local disk
    python benchmarks/records.py --s3 s3://bucket/prefix  the same in a bucket (the usual AWS variables lead there)

The outputs are stand-ins: records as a run writes them, 1.1 kB each with nine tags and one file in scores/, and data
files of a few bytes. Every line is a process of its own, and is measured with segments of rolled-up records (`after`)
and without any (`before`: each record from its own file).

status   `tokloss status`.
resume   what earlier attempts have left: records, and a listing of the data files that they are held against.
finish   the records once more, after the last pass, all checks and `_SUCCESS`.
roll     what a record costs the driver when it comes in: reading it, totals, segments. `ms` is for each.

`peak MB` is the most memory that the process had, its imports included (`nothing` is a process that only imports).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import save, say, show

from tokloss_ray.config import ScoreConfig
from tokloss_ray.inputs.unit import FilePart, ReadUnit
from tokloss_ray.output.done import Committed, read_committed
from tokloss_ray.output.names import COMMITS, RUN, SUCCESS, shard_name
from tokloss_ray.output.record import CommitRecord, DataFile
from tokloss_ray.output.run import PlanFigures, Run, fingerprint, read_run
from tokloss_ray.output.segments import RollUp
from tokloss_ray.output.status import read_status
from tokloss_ray.scoring.finish import complete
from tokloss_ray.scoring.plan import Plan
from tokloss_ray.scoring.resume import find_committed
from tokloss_ray.storage.files import children, is_local, open_location, remove, write_whole
from tokloss_ray.storage.sealed import sealed

SIZES, QUICK = (1_000, 100_000), (40, 2_400)
PER_UNIT, ROWS, DATA = 4, 50, b"stand-in"
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
IDENTITY = {"stand-in": True}
FINGERPRINT = fingerprint(IDENTITY)
AT_ONCE = 2_000


def record(number: int) -> CommitRecord:
    """The record of a shard, as a run writes it."""
    unit, index = divmod(number, PER_UNIT)
    name = shard_name(unit, index)
    first = index * ROWS
    return CommitRecord(
        shard=name,
        fingerprint=FINGERPRINT[:6],
        unit=unit,
        index=index,
        source=f"corpus/part-{unit // 100:05d}.parquet",
        last_source=f"corpus/part-{unit // 100:05d}.parquet",
        last=index == PER_UNIT - 1,
        rows=ROWS,
        start=first,
        stop=first + ROWS,
        first_row=first,
        last_row=first + ROWS - 1,
        seconds={"encode": 0.1234 + number % 7, "score": 1.2345, "decode": 0.0123},
        padded_tokens=66_000,
        batch_tokens=1024,
        batching="padded",
        scored_rows=ROWS,
        error_rows=0,
        sequences=ROWS,
        tokens=65_432,
        labels=50_000,
        dropped_words=0,
        errors={},
        loss_by_tag={tag: (5_000 + place, number / 7 + place / 3) for place, tag in enumerate(TAGS)},
        files=(DataFile(f"scores/{name}-{FINGERPRINT[:6]}.parquet", ROWS, len(DATA), f"{number:064x}"),),
        errors_file=None,
        storage_retries=0,
        memory_splits=0,
        device_wait=0.0,
    )


def write_output(output: str, shards: int) -> None:
    """An output that only lacks `_SUCCESS`, without segments."""
    fs, root = open_location(output)
    plan = PlanFigures(shards // PER_UNIT, shards * ROWS, shards * ROWS, shards * 65_432, shards)
    run = Run(FINGERPRINT, {}, IDENTITY, TAGS, plan, {})
    write_whole(fs, f"{root}/{RUN}", sealed(run.to_json(), indent=1))
    for start in range(0, shards, AT_ONCE):
        files: dict[str, bytes] = {}
        for number in range(start, min(start + AT_ONCE, shards)):
            of = record(number)
            files[f"{root}/{of.files[0].path}"] = DATA
            files[f"{root}/{COMMITS}/{of.shard}.json"] = sealed(of.to_json())
        if is_local(fs):
            for path, data in files.items():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(data)
        else:
            fs.pipe(files)


def roll(output: str) -> dict[str, Any]:
    """What the driver does with each record that comes in."""
    run = read_run(output)
    assert run is not None
    committed, roll_up = Committed(), RollUp(output, FINGERPRINT[:6], 1)
    seconds, shards = 0.0, run.plan.units * PER_UNIT
    for text in (json.dumps(record(number).to_json()) for number in range(shards)):
        began = time.perf_counter()
        of = CommitRecord.from_json(json.loads(text))
        if committed.done.add(of):
            committed.tally.add(of)
            roll_up.add(of.shard, sealed(of.to_json()))
        seconds += time.perf_counter() - began
    return {"seconds": seconds, "ms": 1000 * seconds / shards}


def finish(output: str) -> None:
    """From the end of the last pass to `_SUCCESS`, which is removed again."""
    run = read_run(output)
    assert run is not None
    config = ScoreConfig(model="-", input=("-",), output=output)
    plan: Plan = SimpleNamespace(rows=run.plan.rows, job=SimpleNamespace(identity=IDENTITY))  # type: ignore[assignment]
    rows = PER_UNIT * ROWS
    part = FilePart("a.parquet", "", "", "parquet", 0, rows, rows, 0)
    units = [ReadUnit(number, (part,)) for number in range(run.plan.units)]
    totals = complete(config, plan, units, read_committed(output, run.short_fingerprint, roll_up=True))
    assert totals.rows == run.plan.rows


def resume(output: str) -> None:
    """The same as a `score` that goes on."""
    run = read_run(output)
    assert run is not None
    found = find_committed(output, run)
    assert found.complete
    assert not found.damaged


def status(output: str) -> None:
    """All that `tokloss status` reads."""
    assert read_status(output).missing == []


def nothing(output: str) -> None:
    """To see what the imports take."""


def peak_mb() -> int:
    """The most memory that this process had. (`getrusage` would count what its parent had when it was forked.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


def measured(measure: str, output: str) -> dict[str, Any]:
    """One measure in this process."""
    began = time.perf_counter()
    more = {"status": status, "resume": resume, "finish": finish, "roll": roll}.get(measure, nothing)(output)
    seconds = time.perf_counter() - began
    return {"measure": measure, "seconds": round(seconds, 2), "peak_mb": peak_mb()} | {
        name: round(value, 3) for name, value in (more or {}).items()
    }


def apart(measure: str, output: str) -> dict[str, Any]:
    """One measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", measure, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def without_segments(output: str) -> None:
    """Remove the segments and `_SUCCESS`."""
    fs, root = open_location(output)
    remove(fs, f"{root}/{SUCCESS}")
    for entry in children(fs, f"{root}/{COMMITS}"):
        if "rolled-" in entry["name"]:
            remove(fs, entry["name"])


def compared(place: str, shards: int) -> Iterator[dict[str, Any]]:
    """All measures of an output of so many shards."""
    output = f"{place}/{shards}"
    write_output(output, shards)
    yield {"shards": shards, "segments": "", **apart("nothing", output)}
    for measure in ("status", "resume"):
        yield {"shards": shards, "segments": "before", **apart(measure, output)}
    yield {"shards": shards, "segments": "", **apart("roll", output)}
    for measure in ("status", "resume", "finish"):
        yield {"shards": shards, "segments": "after", **apart(measure, output)}
    without_segments(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--s3", help="an address that outputs are written below, and left; otherwise a local disk")
    parser.add_argument("--shards", type=int, nargs="+", help="sizes of the outputs")
    parser.add_argument("--quick", action="store_true", help="small: to see that it runs")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(args.measure, args.output)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for shards in args.shards or (QUICK if args.quick else SIZES):
            for line in compared(args.s3 or folder, shards):
                lines.append(line)
                what = f"{line['measure']} {line['segments']}"
                say(f"{shards:,} shards, {what}: {line['seconds']} s, {line['peak_mb']} MB")
    columns = ("measure", "segments", "shards", "seconds", "peak_mb", "ms")
    show(
        "records",
        ["", "", "shards", "seconds", "peak MB", "ms"],
        [[line.get(c, "") for c in columns] for line in lines],
    )
    after = [line for line in lines if line["segments"] == "after"]
    most = {name: max(line[name] for line in after) for name in ("seconds", "peak_mb")}
    save(args.json, "records", {"place": "s3" if args.s3 else "disk", "lines": lines, "most": most})


if __name__ == "__main__":
    main()
