"""Input, model and output on object storage: a real S3 API, in `make test` moto's, in `make test-slow` Ceph's.

TOKLOSS_TEST_S3_ENDPOINT (with the usual AWS variables) names another server to use instead of moto.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.support import models, warm
from tests.support.inline import Inline, score_inline
from tests.support.s3_proxy import Proxy, Request, proxied
from tests.support.s3_servers import CephMissing, S3Server, ceph_server, server_from_environment
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.errors import JobFailed, Refused, StorageFailed, before_work
from tokloss_ray.inputs.arrow_stream import _schema_of
from tokloss_ray.inputs.read import read_unit
from tokloss_ray.model.store import fetch_model, find_model
from tokloss_ray.scoring.driver import check
from tokloss_ray.scoring.folder import clear
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.storage import failures as storage_errors
from tokloss_ray.storage.files import RangeFile, files_below, open_location, read_whole, remove, write_whole

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
ROWS = 300


@pytest.fixture(scope="module", params=["moto", pytest.param("ceph", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    given = server_from_environment()
    if request.param == "ceph":
        try:
            with ceph_server(tmp_path_factory.mktemp("ceph")) as ceph:
                yield ceph
        except CephMissing as error:
            pytest.skip(f"no tests against Ceph here: {error}")
    elif given is not None:
        yield given
    else:
        yield request.getfixturevalue("moto")


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[Proxy]:
    with proxied(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def bucket(server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A bucket of its own for each test, behind the proxy, with the environment that leads there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (server.env | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.aws
    monkeypatch.setenv("TOKLOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage_errors.time, "sleep", lambda seconds: None)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"tokloss-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(name)
    with storage_errors.tries(4):
        yield f"s3://{name}"
    proxy.harm = None
    s3fs.S3FileSystem().rm(name, recursive=True)
    proxy.seen.clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Parquet files with some columns too many, and a packed text file."""
    folder = tmp_path_factory.mktemp("corpus")
    table = pq.read_table(DATA).slice(500, ROWS)
    heavy = table.append_column("article", [[os.urandom(5000).hex() for _ in range(ROWS)]])
    pq.write_table(heavy.slice(0, 150), folder / "a.parquet", row_group_size=50)
    (folder / "sub").mkdir()
    pq.write_table(heavy.slice(150, 100), folder / "sub" / "b.parquet", row_group_size=50)
    lines = [json.dumps(row) for row in heavy.slice(250).drop_columns(["article"]).to_pylist()]
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = pq.read_table(DATA, columns=["tokens"])["tokens"].slice(0, 300).to_pylist()
    return models.build("bert", tmp_path_factory.mktemp("model"), words, TAGS)


@pytest.fixture
def on_one_server(server: S3Server) -> None:
    """For long tests of what happens in front of the server."""
    if server.key == "cephtestkey":
        pytest.skip("the same with any server")


def upload(folder: Path, uri: str) -> str:
    s3fs.S3FileSystem().put(f"{folder}/", uri.removeprefix("s3://") + "/", recursive=True)
    return uri


def inline(*source: str | Path, model: str | Path, output: str | Path, **options: Any) -> Inline:
    return score_inline(
        ScoreConfig(model=str(model), input=tuple(map(str, source)), output=str(output), id_column="id", **options)
    )


def rows_of(output: str) -> pd.DataFrame:
    if output.startswith("s3://"):
        dataset = pads.dataset(
            f"{output.removeprefix('s3://')}/scores", filesystem=s3fs.S3FileSystem(), format="parquet"
        )
    else:
        dataset = pads.dataset(f"{output}/scores", format="parquet")
    return dataset.to_table().to_pandas().sort_values("example_id", ignore_index=True)


def tokloss(*words: str, **env: str) -> tuple[int, str, float]:
    """Run the command in a process of its own: exit code, all it said, seconds."""
    start = time.monotonic()
    done = warm.tokloss(*words, env=os.environ | env)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def test_the_whole_job(bucket: str, corpus: Path, model: Path, tmp_path: Path) -> None:
    """Input, model and output in a bucket, with real Ray, end in the rows that a local run makes."""
    source, stored = upload(corpus, f"{bucket}/in"), upload(model, f"{bucket}/models/m")
    output = f"{bucket}/out"
    command = ["score", "--model", stored, "--input", source, "--output", output, "--id-column", "id"]
    command += ["--shard-tokens", "1500"]
    code, said, _ = tokloss(*command)
    assert code == 0, said
    assert f"tokloss show {output}" in said
    local = inline(corpus, model=model, output=tmp_path / "out", shard_tokens=1500)
    pd.testing.assert_frame_equal(rows_of(output), rows_of(str(tmp_path / "out")), rtol=1e-5)
    assert len(local.records) > 4

    fs = s3fs.S3FileSystem()
    lost = sorted(fs.glob(f"{output}/_commits/*.json"))[2]
    before = {path: info["ETag"] for path, info in fs.find(f"{output}/scores", detail=True).items()}
    fs.rm([lost, f"{output}/_SUCCESS"])
    code, said, _ = tokloss(*command)
    assert code == 0, said
    assert f"resuming: {len(local.records) - 1} shard" in said
    after = {
        path: info["ETag"]
        for path, info in s3fs.S3FileSystem(skip_instance_cache=True).find(f"{output}/scores", detail=True).items()
    }
    assert after == before, "a second time is byte for byte the same"
    code, said, _ = tokloss("status", output)
    assert (code, "finished" in said) == (0, True)
    code, said, _ = tokloss("show", output, "--worst", "1")
    assert (code, "total loss" in said) == (0, True)


@pytest.mark.slow
def test_conll_columns(bucket: str, model: Path, tmp_path: Path, on_one_server: None) -> None:
    """Read by range in a bucket, packed and not, as on disk."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for row in pq.read_table(DATA).slice(0, 200).to_pylist():
        lines += [f"# id = {row['id']}", *(f"{word}\tO" for word in row["tokens"]), ""]
    text = "\n".join(lines).encode()
    (folder / "a.conll").write_bytes(text)
    (folder / "b.iob2.gz").write_bytes(gzip.compress(text.replace(b"# id = ", b"# id = packed-")))
    stored = inline(upload(folder, f"{bucket}/in"), model=model, output=f"{bucket}/out", shard_tokens=200)
    assert len(stored.plan.units) > 3
    inline(folder, model=model, output=tmp_path / "out", shard_tokens=200)
    assert len(rows_of(f"{bucket}/out")) == 400
    pd.testing.assert_frame_equal(rows_of(f"{bucket}/out"), rows_of(str(tmp_path / "out")), rtol=1e-5)


def test_only_what_is_needed_is_read(bucket: str, proxy: Proxy, corpus: Path, model: Path, tmp_path: Path) -> None:
    """Columns that nobody asked for, and row groups beyond the limit, stay where they are."""
    upload(corpus, f"{bucket}/in")
    proxy.seen.clear()
    inline(f"{bucket}/in/a.parquet", model=model, output=tmp_path / "all")
    everything = sum(request.sent for request in proxy.reads("a.parquet"))
    assert everything < 0.25 * (corpus / "a.parquet").stat().st_size
    proxy.seen.clear()
    inline(f"{bucket}/in/a.parquet", model=model, output=tmp_path / "some", limit=50)
    assert sum(request.sent for request in proxy.reads("a.parquet")) < everything


def test_globs_and_saved_datasets(bucket: str, corpus: Path, model: Path, tmp_path: Path) -> None:
    upload(corpus, f"{bucket}/in")
    found = inline(f"{bucket}/in/*.parquet", f"{bucket}/in/sub/b.parquet", model=model, output=tmp_path / "glob")
    assert {row["source"] for row in found.rows} == {"a.parquet", "sub/b.parquet"}
    split = datasets.DatasetDict({"dev": datasets.Dataset.from_parquet(str(DATA)).select(range(20))})
    split.save_to_disk(tmp_path / "saved")
    upload(tmp_path / "saved", f"{bucket}/saved")
    saved = inline(f"{bucket}/saved", model=model, output=tmp_path / "out", split="dev")
    assert len(saved.rows) == 20


@pytest.mark.slow
def test_units_of_a_saved_dataset_read_their_own_batches(
    bucket: str, proxy: Proxy, model: Path, tmp_path: Path
) -> None:
    """14 MB in 35 units: the preflight fetches headers and a sample, and all units together the file once."""
    dataset = datasets.Dataset.from_parquet(str(DATA))
    dataset = datasets.concatenate_datasets([dataset] * 7)
    dataset.save_to_disk(tmp_path / "saved", num_shards=1)
    (file,) = (tmp_path / "saved").glob("data-*.arrow")
    size = file.stat().st_size
    assert size > 13e6
    upload(tmp_path / "saved", f"{bucket}/saved")
    proxy.seen.clear()
    config = ScoreConfig(
        model=str(model), input=f"{bucket}/saved", output=str(tmp_path / "out"), shard_tokens=size // 48 // 36
    )
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    assert len(plan.units) == 35
    reads = proxy.reads(file.name)
    assert sum(request.sent for request in reads) < 0.05 * size
    print(f"preflight: {len(reads)} requests, {sum(r.sent for r in reads) / size:.2%} of {size:,} bytes")
    proxy.seen.clear()
    words: list[list[str]] = []
    for unit in plan.units:
        _schema_of.cache_clear()  # each in a process of its own, at worst
        words += [row for chunk in read_unit(plan.job, unit) for row in chunk.rows["words"].to_pylist()]
    reads = proxy.reads(file.name)
    print(f"units: {len(reads)} requests, {sum(r.sent for r in reads) / size:.2%}")
    assert sum(request.sent for request in reads) < 1.1 * size
    assert len(reads) <= 3 * len(plan.units)
    assert words == dataset["tokens"][:]


def test_text_in_byte_ranges(bucket: str, model: Path, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in pq.read_table(DATA).slice(0, 200).to_pylist()]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all.jsonl").write_text("\n".join(lines))
    upload(tmp_path / "in", f"{bucket}/in")
    here = inline(tmp_path / "in", model=model, output=tmp_path / "here", shard_tokens=200)
    there = inline(f"{bucket}/in", model=model, output=tmp_path / "there", shard_tokens=200)
    assert len(there.plan.units) == len(here.plan.units) > 2
    assert there.rows == here.rows


def test_overwrite_removes_what_was_there(bucket: str, corpus: Path, model: Path) -> None:
    output = f"{bucket}/out"
    inline(corpus / "a.parquet", model=model, output=output, shard_tokens=500)
    other = ScoreConfig(model=str(model), input=(str(corpus),), output=output)
    with pytest.raises(Refused, match=r"belongs to another run; it differs in .*--overwrite"):
        check(other)
    write_whole(*open_location(f"{output}-of-another/notes.txt"), b"stays")
    clear(output)
    assert [path.partition("/")[2] for path in s3fs.S3FileSystem().find(bucket)] == ["out-of-another/notes.txt"]


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


def test_range_reads(bucket: str) -> None:
    fs, path = open_location(f"{bucket}/x")
    data = os.urandom(100_000)
    write_whole(fs, path, data)
    with RangeFile(fs, path) as file:
        assert file.seek(-10, 2) == 99_990
        assert file.read(100) == data[-10:]
        file.seek(5)
        assert file.read(3) == data[5:8]
        assert file.read() == data[8:]
        assert file.read(1) == b""


def test_model_is_fetched_once(bucket: str, proxy: Proxy, model: Path, tmp_path: Path) -> None:
    """Two processes that ask at the same time, and a third later, read each file of the model once between them."""
    upload(model, f"{bucket}/model")
    folder = find_model(f"{bucket}/model", None, "model")
    proxy.seen.clear()
    code = (
        "import sys, pickle; from tokloss_ray.model.store import fetch_model; "
        "print(fetch_model(pickle.load(open(sys.argv[1], 'rb'))))"
    )
    (tmp_path / "folder.pickle").write_bytes(pickle.dumps(folder))
    command = [sys.executable, "-c", code, str(tmp_path / "folder.pickle")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0].strip() for process in both} | {fetch_model(folder)}
    assert len(paths) == 1
    copied = Path(paths.pop())
    for name, size, _ in folder.files:
        assert len(proxy.reads(f"/model/{name}")) == 1, name
        assert (copied / name).read_bytes() == (model / name).read_bytes()
        assert (copied / name).stat().st_size == size


def test_model_that_changed_since_the_plan(bucket: str, model: Path) -> None:
    upload(model, f"{bucket}/model")
    folder = find_model(f"{bucket}/model", None, "model")
    fs, path = open_location(f"{bucket}/model/config.json")
    write_whole(fs, path, b"{}")
    with pytest.raises(JobFailed, match="has changed since the run began"):
        fetch_model(folder)


def test_model_that_changes_while_it_is_copied(bucket: str, proxy: Proxy, model: Path) -> None:
    """A copy that may hold parts of both is not kept."""
    upload(model, f"{bucket}/model")
    folder = find_model(f"{bucket}/model", None, "model")
    fs, path = open_location(f"{bucket}/model/model.safetensors")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1

    def replace_it(request: Request) -> None:
        if request.is_read and "model.safetensors" in request.path:
            proxy.harm = None
            write_whole(fs, path, weights)

    proxy.harm = replace_it
    with pytest.raises(JobFailed, match="has changed since the run began"):
        fetch_model(folder)
    with pytest.raises(JobFailed, match="has changed since the run began"):
        fetch_model(folder)
    copied = Path(fetch_model(find_model(f"{bucket}/model", None, "model")))
    assert (copied / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "address",
    ["s3://AKIA:verysecret@bucket/x", "https://host/x.parquet?X-Amz-Signature=verysecret", "s3://b/x?token=verysecret"],
)
def test_addresses_with_secrets_are_refused(address: str) -> None:
    with pytest.raises(Refused) as caught:
        open_location(address)
    assert "verysecret" not in str(caught.value)


def test_other_addresses_are_not() -> None:
    for address in ("s3://bucket/a@b/x.parquet", "/data/who?token=1.parquet", "https://host/x.parquet?section=2"):
        open_location(address)


# What a person sees when storage is out of reach. Each must end within 30 seconds, with exit code 2 and one sentence.

READ_ONLY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::BUCKET/*"}],
}


@pytest.fixture
def refused(bucket: str, corpus: Path, model: Path) -> Callable[..., str]:
    def run(command: str = "check", source: str = f"{bucket}/in", output: str = f"{bucket}/out", **env: str) -> str:
        words = ["--model", str(model), "--input", source, "--output", output]
        code, said, seconds = tokloss(command, *words, **env)
        assert code == 2, said
        assert seconds < 30, said
        assert "Traceback" not in said
        for secret in {os.environ["AWS_SECRET_ACCESS_KEY"], *env.values()} - {"", env.get("AWS_ENDPOINT_URL")}:
            assert secret not in said
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        return lines[0]

    upload(corpus, f"{bucket}/in")
    return run


def test_no_such_bucket(refused: Callable[..., str]) -> None:
    name = f"none-{uuid.uuid4().hex}"
    assert f"no such bucket: {name}" in refused(source=f"s3://{name}/in")
    assert f"no such bucket: {name}" in refused(source=f"s3://{name}/*.parquet")
    assert f"no such bucket: {name}" in refused(output=f"s3://{name}/out")


def test_no_such_object(refused: Callable[..., str], bucket: str) -> None:
    assert f"no input: {bucket}/inn does not exist" in refused(source=f"{bucket}/inn")


def test_no_credentials(refused: Callable[..., str]) -> None:
    assert "no complete credentials" in refused(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")


def test_wrong_credentials(refused: Callable[..., str], server: S3Server) -> None:
    if server.key == "testing":
        pytest.skip("moto takes any credentials")
    sentence = refused(AWS_SECRET_ACCESS_KEY="not-the-secret")
    assert "SignatureDoesNotMatch" in sentence or "access denied" in sentence
    sentence = refused(AWS_ACCESS_KEY_ID="not-the-key")
    assert "InvalidAccessKeyId" in sentence or "access denied" in sentence


def test_endpoint_that_is_down(refused: Callable[..., str]) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert f"the endpoint {endpoint} does not respond" in refused(AWS_ENDPOINT_URL=endpoint)


@pytest.mark.slow
def test_endpoint_that_swallows_everything(refused: Callable[..., str]) -> None:
    with closing(socket.socket()) as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(0)
        port = mute.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]  # the backlog is full: connecting gets no answer
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        assert "does not respond" in refused(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        for client in waiting:
            client.close()


def test_bucket_that_is_read_only(refused: Callable[..., str], bucket: str) -> None:
    name = bucket.removeprefix("s3://")
    fs = s3fs.S3FileSystem()
    policy = json.dumps(READ_ONLY).replace("BUCKET", name)
    fs.call_s3("put_bucket_policy", Bucket=name, Policy=policy)
    sentence = refused("score")
    fs.call_s3("delete_bucket_policy", Bucket=name)
    assert f"cannot write {bucket}/out/" in sentence
    assert "access denied" in sentence


def test_storage_failures_before_work_are_refusals() -> None:
    with pytest.raises(Refused, match="no bucket"), before_work():
        raise StorageFailed("no bucket")
