"""What a person sees when storage is out of reach: within 30 seconds exit code 2 and one sentence."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import s3fs

from tests.end_to_end.s3.common import tokloss, upload
from tests.support.s3_servers import S3Server
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import Refused, StorageFailed, before_work
from tokloss_ray.scoring.driver import check
from tokloss_ray.storage.files import open_location


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
        assert seconds < 90, said  # a few on an idle machine; as often as a run tries, it would take minutes
        assert "Traceback" not in said
        for secret in {os.environ["AWS_SECRET_ACCESS_KEY"], *env.values()} - {"", env.get("AWS_ENDPOINT_URL")}:
            assert secret not in said
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        return lines[0]

    upload(corpus, f"{bucket}/in")
    return run


def test_no_such_bucket(refused: Callable[..., str], bucket: str, model: Path) -> None:
    name = f"none-{uuid.uuid4().hex}"
    assert f"no such bucket: {name}" in refused(source=f"s3://{name}/in")
    for source, output in [(f"s3://{name}/*.parquet", f"{bucket}/out"), (f"{bucket}/in", f"s3://{name}/out")]:
        with pytest.raises(Refused, match=f"no such bucket: {name}"):
            check(ScoreConfig(model=str(model), input=source, output=output))


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
