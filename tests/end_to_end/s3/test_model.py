"""Models in a bucket: fetched once, and never a mixture of two."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.s3.common import upload
from tests.support.s3_proxy import Proxy, Request
from tokloss_ray.errors import JobFailed
from tokloss_ray.model.store import fetch_model, find_model
from tokloss_ray.storage.files import open_location, write_whole


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
