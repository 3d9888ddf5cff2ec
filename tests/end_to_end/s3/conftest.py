"""One S3 server for the tests of this folder: moto, among the slow tests Ceph too, and a proxy in front that does harm.

TOKLOSS_TEST_S3_ENDPOINT (with the usual AWS variables) names another server to use instead of moto.
"""

from __future__ import annotations

import gzip
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs

from tests.end_to_end.s3.common import ROWS, TAGS
from tests.support import models
from tests.support.s3_proxy import Proxy, proxied
from tests.support.s3_servers import CephMissing, S3Server, ceph_server, server_from_environment
from tokloss_ray.demo import DATA
from tokloss_ray.storage import failures as storage_errors


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
