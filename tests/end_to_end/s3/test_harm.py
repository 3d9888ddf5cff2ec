"""Storage that fails for a while, or for good, as a proxy in front of a real S3 server shows it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.end_to_end.s3.common import ROWS, inline, rows_of, tokloss, upload
from tests.support.s3_proxy import Proxy, Request
from tokloss_ray.errors import StorageFailed
from tokloss_ray.storage import failures as storage_errors
from tokloss_ray.storage.files import open_location, read_whole, remove, write_whole
from tokloss_ray.storage.listings import files_below

HARMS: dict[str, tuple[Callable[[Request], bool], tuple[Any, ...]]] = {
    "busy-reads": (lambda r: r.is_read, ("status", 503, "SlowDown")),
    "busy-writes": (lambda r: r.method == "PUT", ("status", 503, "SlowDown")),
    "internal-errors": (lambda r: True, ("status", 500, "InternalError")),
    "resets": (lambda r: True, ("reset",)),
    "cut-off-bodies": (lambda r: r.is_read, ("truncate",)),
    "stalls": (lambda r: r.is_read and "sub" in r.path, ("stall", 25)),
}


QUICK_HARMS = ("busy-reads", "busy-writes")


@pytest.mark.parametrize("name", [n if n in QUICK_HARMS else pytest.param(n, marks=pytest.mark.slow) for n in HARMS])
def test_what_passes_is_tried_again(
    bucket: str, proxy: Proxy, corpus: Path, model: Path, tmp_path: Path, name: str
) -> None:
    """A fifth of the requests fail; the rows are those of an undisturbed run."""
    upload(corpus, f"{bucket}/in")
    upload(model, f"{bucket}/model")
    applies, harm = HARMS[name]
    rng, failed = random.Random(name), []

    def a_fifth(request: Request) -> tuple[Any, ...] | None:
        if not applies(request) or (failed and rng.random() > 0.2):
            return None
        failed.append(request)
        return harm

    proxy.harm = a_fifth
    with storage_errors.tries(12):  # some operations are three requests
        there = inline(f"{bucket}/in", model=f"{bucket}/model", output=f"{bucket}/out", shard_tokens=1500)
    assert failed
    proxy.harm = None
    assert there.totals.rows == ROWS
    inline(corpus, model=model, output=tmp_path / "out", shard_tokens=1500)
    pd.testing.assert_frame_equal(rows_of(f"{bucket}/out"), rows_of(str(tmp_path / "out")), rtol=1e-5)


@pytest.mark.slow
def test_a_job_on_bad_storage(on_one_server: None, bucket: str, proxy: Proxy, corpus: Path, model: Path) -> None:
    """One request in ten fails or is late; the job finishes, says how often it tried again, and verifies clean."""
    source, stored, output = upload(corpus, f"{bucket}/in"), upload(model, f"{bucket}/m"), f"{bucket}/out"
    rng = random.Random(1)
    harms = [("status", 503, "SlowDown"), ("status", 500, "InternalError"), ("reset",), ("truncate",), ("late", 1.0)]
    proxy.harm = lambda request: rng.choice(harms) if rng.random() < 0.1 else None
    words = ["--model", stored, "--input", source, "--output", output, "--shard-tokens", "600"]
    code, said, _ = tokloss("score", *words, "--storage-tries", "10")
    proxy.harm = None
    assert code == 0, said
    assert int(re.search(r"storage retries +([\d,]+)", said)[1]) > 5
    code, said, _ = tokloss("verify", output)
    assert code == 0, said


@pytest.mark.slow
def test_storage_that_fails_for_good(on_one_server: None, bucket: str, proxy: Proxy, corpus: Path, model: Path) -> None:
    """From the start that is a refusal; later the job ends within a minute, and the same command goes on."""
    source, output = upload(corpus, f"{bucket}/in"), f"{bucket}/out"
    words = ["--model", str(model), "--input", source, "--output", output, "--shard-tokens", "600"]
    proxy.harm = lambda request: ("status", 503, "SlowDown")
    code, said, seconds = tokloss("score", *words)
    assert (code, seconds < 60) == (2, True), said
    failed_at = []

    def after_two_commits(request: Request) -> tuple[Any, ...] | None:
        commits = sum(r.method == "PUT" and "_commits" in r.path for r in proxy.seen)
        if commits > 2:
            failed_at.append(time.monotonic())
            return "status", 503, "SlowDown"
        return None

    proxy.seen.clear()
    proxy.harm = after_two_commits
    code, said, _ = tokloss("score", *words)
    assert code == 1, said
    assert time.monotonic() - failed_at[0] < 60
    assert "overloaded or failing (SlowDown)" in said
    assert "Traceback" not in said
    proxy.harm = None
    code, said, _ = tokloss("score", *words)
    assert code == 0, said
    assert "resuming: " in said


def test_what_does_not_pass_ends_in_a_sentence(bucket: str, proxy: Proxy) -> None:
    fs, path = open_location(f"{bucket}/x")
    proxy.harm = lambda request: ("status", 503, "SlowDown")
    with pytest.raises(
        StorageFailed, match=r"cannot write s3://.*/x: .*overloaded or failing \(SlowDown\) \(tried 4 times\)"
    ):
        write_whole(fs, path, b"x")
    assert len([r for r in proxy.seen if r.method == "PUT" and r.path.endswith("/x")]) == 4
    proxy.harm = lambda request: ("status", 403, "AccessDenied")
    with pytest.raises(StorageFailed, match="access denied"):
        read_whole(fs, path)
    proxy.harm = lambda request: ("status", 400, "ExpiredToken")
    with pytest.raises(StorageFailed, match="the credentials have expired"):
        read_whole(fs, path)


def test_a_denied_delete_is_noticed(bucket: str, proxy: Proxy) -> None:
    """s3fs takes a bulk delete that was refused for a success."""
    fs, path = open_location(f"{bucket}/out")
    write_whole(fs, f"{path}/a", b"a")
    proxy.harm = lambda r: ("status", 403, "AccessDenied") if r.method in ("POST", "DELETE") else None
    with pytest.raises(StorageFailed, match=r"cannot delete .*: access denied"):
        remove(fs, path)
    proxy.harm = None
    remove(fs, path)
    assert not files_below(fs, path)
