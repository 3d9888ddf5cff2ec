"""Text that cannot be read to its end, and records that are too long to be held in memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.inline import Inline, score_inline
from tests.support.tiny import (
    VOCABULARY,
    row,
)
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import TokLossError
from tokloss_ray.inputs import conll, lines, units
from tokloss_ray.scoring import sample
from tokloss_ray.storage import zstd

LINES = "".join(json.dumps(row(*VOCABULARY, number=i**5)) + "\n" for i in range(2000)).encode()
PACKED = gzip.compress(LINES)
ZSTD = zstd.packed(LINES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.jsonl.gz", b"not gzip"),
        ("in.jsonl.gz", PACKED[: len(PACKED) // 20]),
        ("in.jsonl.gz", PACKED[:100] + bytes(byte ^ 255 for byte in PACKED[100:])),
        ("in.jsonl.bz2", b"not bzip2"),
        ("in.jsonl.xz", b"not xz"),
        ("in.jsonl.zst", b"not zstd"),
        ("in.jsonl.zst", ZSTD[: len(ZSTD) // 20]),
    ],
    ids=["not-gzip", "cut-off", "corrupt", "not-bzip2", "not-xz", "not-zstd", "zstd-cut-off"],
)
def test_packed_file_that_does_not_unpack(
    refused: Callable[..., str], tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"cannot read {name}" in refused(input=tmp_path / name)


def test_packed_file_that_breaks_off_late(model: Path, tmp_path: Path) -> None:
    """Beyond the preflight's sample: whatever stage meets it says which file it is, in one sentence."""
    (tmp_path / "in.jsonl.gz").write_bytes(PACKED[: len(PACKED) - 100])
    config = ScoreConfig(model=str(model), input=str(tmp_path / "in.jsonl.gz"), output=str(tmp_path / "out"))
    with pytest.raises(TokLossError, match=r"cannot read in\.jsonl\.gz"):
        score_inline(config)


@pytest.fixture
def short_records(monkeypatch: pytest.MonkeyPatch) -> int:
    """Records of 1,000 bytes are the longest, of which 100 are kept."""
    for module in (lines, conll, units, sample):
        monkeypatch.setattr(module, "MAX_RECORD", 1000)
    monkeypatch.setattr(lines, "KEPT", 100)
    monkeypatch.setattr(conll, "KEPT", 100)
    monkeypatch.setattr(lines, "_STEP", 64)
    return 1000


LONG_JSON = {
    "one": lambda n: [f'{{"tokens": ["{"x" * n}"], "ner_tags": ["O"]}}'],
    "three": lambda n: [f'{{"tokens": ["{"x" * m}"]}}' for m in (n, 2 * n, 10 * n)],
    "spaces-before": lambda n: [" " * n + '{"tokens": ["a"], "ner_tags": ["O"]}'],
    "spaces-behind": lambda n: ['{"tokens": ["a"], "ner_tags": ["O"]}' + " " * n],
}


@pytest.mark.parametrize(("where", "suffix"), [("first", ""), ("between", ".gz"), ("last", ".bz2"), ("last", ".xz")])
@pytest.mark.parametrize("name", LONG_JSON)
def test_lines_that_are_too_long(
    run: Callable[..., Inline], tmp_path: Path, short_records: int, name: str, where: str, suffix: str
) -> None:
    """They are in errors/ with their beginning; blank lines, of whatever length, are no rows."""
    good = [json.dumps(row("a", tags=["O"])), json.dumps(row("b", tags=["O"])), " " * 2 * short_records]
    long = LONG_JSON[name](short_records)
    texts = {"first": [*long, *good], "between": [*good[:1], *long, *good[1:]], "last": [*good, *long]}[where]
    data = "\n".join(texts).encode()
    packed = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](data)
    (tmp_path / f"in.jsonl{suffix}").write_bytes(packed)
    result = run(tmp_path / f"in.jsonl{suffix}", max_error_rate=0.9)
    assert [r["words"] for r in result.rows] == [["a"], ["b"]]
    assert [(e["source_row"], e["reason"]) for e in result.errors] == [
        (data.index(text.encode()), "malformed") for text in long
    ]
    assert [e["payload"] for e in result.errors] == [text[:100].strip() for text in long]
    ends = [data.index(text.encode()) + len(text) < len(data) for text in long]
    for error, text, line_break in zip(result.errors, long, ends, strict=True):
        assert error["detail"].startswith(f"{len(text) + line_break:,} bytes, but a record may have at most 1,000")


@pytest.mark.parametrize("shard_tokens", [1, 5, None])
def test_long_lines_and_byte_ranges(
    run: Callable[..., Inline], tmp_path: Path, short_records: int, shard_tokens: int | None
) -> None:
    """A line that covers whole byte ranges is one row."""
    texts = [json.dumps(row(f"w{i}", tags=["O"])) for i in range(6)]
    texts.insert(3, LONG_JSON["one"](2500)[0])
    (tmp_path / "in.jsonl").write_text("\n".join(texts))
    result = run(tmp_path / "in.jsonl", max_error_rate=0.9, shard_tokens=shard_tokens)
    assert sorted(r["words"][0] for r in result.rows) == [f"w{i}" for i in range(6)]
    assert len(result.errors) == 1


LONG_CONLL = {
    "word": lambda n: "x" * n + " O\nb O\n",
    "words": lambda n: "".join(f"w{i} O\n" for i in range(n // 4)),
    "comments": lambda n: "# a = b\n" * (n // 7) + "a O\n",
    "comment": lambda n: "# " + "x" * n + "\nb O\n",
    "spaces": lambda n: "a" + " " * n + "O\n",
}


@pytest.mark.parametrize("shard_tokens", [1, None])
@pytest.mark.parametrize("name", LONG_CONLL)
def test_sentences_that_are_too_long(
    run: Callable[..., Inline], tmp_path: Path, short_records: int, name: str, shard_tokens: int | None
) -> None:
    good = [f"Anna{i} O\nund O\n" for i in range(8)]
    long = [LONG_CONLL[name](short_records), LONG_CONLL[name](3 * short_records)]
    text = "\n".join([*good[:3], long[0], *good[3:5], " " * 3000 + "\n", *good[5:], long[1]])
    (tmp_path / "in.conll").write_text(text)
    result = run(tmp_path / "in.conll", max_error_rate=0.9, shard_tokens=shard_tokens)
    assert sorted(r["words"][0] for r in result.rows) == [f"Anna{i}" for i in range(8)]
    first_word = {"comments": "\na O\n", "comment": "\nb O\n"}.get(name)
    at = [text.index(part) + (part.index(first_word) + 1 if first_word else 0) for part in long]
    assert [e["source_row"] for e in sorted(result.errors, key=lambda e: e["source_row"])] == at
    assert all(len(e["payload"]) <= 100 and "may have at most 1,000" in e["detail"] for e in result.errors)


MEASURE = """
import resource, sys
from tokloss_ray import ScoreConfig
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.inputs.read import read_unit

def read(source):
    config = ScoreConfig(model=sys.argv[1], input=source, output=sys.argv[4])
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    chunks = [chunk for unit in plan.units for chunk in read_unit(plan.job, unit)]
    return sum(c.rows.num_rows for c in chunks), sum(c.errors.num_rows for c in chunks)

read(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*read(sys.argv[3]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_for_a_line_of_400_megabytes(model: Path, tmp_path: Path) -> None:
    """In a packed file of 2 MB; it took 2.9 GB."""
    good = (json.dumps(row("Anna", tags=["O"])) + "\n").encode()
    (tmp_path / "small.jsonl").write_bytes(good * 20)
    with gzip.open(tmp_path / "big.jsonl.gz", "wb", 1) as file:
        file.write(good * 10 + b'{"tokens": ["')
        for _ in range(400):
            file.write(b"ab c" * (1 << 18))
        file.write(b'"]}\n' + good * 10)
    names = [str(model), str(tmp_path / "small.jsonl"), str(tmp_path / "big.jsonl.gz"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows, errors, grown = map(int, done.stdout.split())
    assert (rows, errors) == (20, 1)
    assert grown < 200, "MB"
