"""What several test modules share: one Ray, one S3 server, and a bucket on it for each test.

`make test` runs two processes of tests, each with a Ray and a server of its own.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator

import pytest

from tests.support.s3_servers import S3Server, moto_server

pytest_plugins = ["tests.support.fixtures"]
pytest.register_assert_rewrite("tests.support.tiny")  # which asserts for several modules

# Ray makes its workers nicer than everything else: beside the other process of tests they would hardly get a core.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray instance that every run in the session joins: starting one takes seconds."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """One moto for all tests that run in this process: a start takes seconds of processor time."""
    with moto_server() as server:
        yield server


@pytest.fixture
def bucket(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on moto, as `s3://NAME`, and the environment that leads there and nowhere else."""
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in moto.env.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"tokloss-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
