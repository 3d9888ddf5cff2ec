"""`tokloss review` as a person runs it: the address, Ctrl-C, kill -9, two processes, an output on object storage."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
from typer.testing import CliRunner

from tokloss_ray.cli.app import app
from tokloss_ray.output.decisions import read_decisions, standing
from tokloss_ray.review.issues import Filter
from tokloss_ray.review.session import Review


class Running:
    """A review in a process of its own, and a client that has been let in."""

    def __init__(self, output: Path | str, *options: str) -> None:
        command = [sys.executable, "-m", "tokloss_ray", "review", str(output), *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:(\d+)/(\?token=\S+)", line)
        assert address, line + (self.process.stderr.read() if self.process.stderr else "")
        self.port = int(address[1])
        response = self.request("GET", f"/{address[2]}")
        self.base = response.headers["Location"]
        self.cookie = response.headers["Set-Cookie"].split(";")[0]

    def request(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        host = f"127.0.0.1:{self.port}"
        headers = {"Origin": f"http://{host}"} if method == "POST" else {}
        headers |= {"Cookie": self.cookie} if hasattr(self, "cookie") else {}
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()

    def get(self, path: str) -> Any:
        return json.loads(self.request("GET", f"{self.base}{path}").read())

    def post(self, path: str, body: Any) -> Any:
        return json.loads(self.request("POST", f"{self.base}{path}", body).read())

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(number)
        said, complained = self.process.communicate(timeout=30)
        return self.process.returncode, said + complained


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(output: Path | str, *options: str) -> Running:
        started.append(Running(output, *options))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_ctrl_c_and_kill(output: Path, start: Callable[..., Running]) -> None:
    """Each answer that was given is in the file, whenever the process dies; then it goes on where it was."""
    one = start(output, "--reviewer", "anna")
    items = one.get("api/issues?count=20")["items"]
    confirmed: list[list[Any]] = []

    def work() -> None:
        for item in items:
            try:
                one.post("api/decide", {"action": "accept", "keys": [item["key"]], "seconds": 1})
            except (OSError, http.client.HTTPException, ValueError):
                return
            confirmed.append(item["key"])
            if len(confirmed) == 7:
                os.kill(one.process.pid, signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    one.process.wait()
    assert 7 <= len(confirmed) < 20
    stand = standing(read_decisions(str(output))["anna"])
    assert [[d.source, d.source_row, d.word_index] for d in stand][: len(confirmed)] == confirmed

    again = start(output, "--reviewer", "anna")
    assert again.get("api/issues")["items"][0]["key"] == items[len(stand)]["key"]
    result = CliRunner().invoke(app, ["review", str(output), "--reviewer", "anna"])
    assert "anna is reviewing this output in another process" in str(result.exception)
    again.post("api/decide", {"action": "keep", "keys": [items[len(stand)]["key"]], "seconds": 2})
    code, said = again.end()
    assert code == 0
    assert f"decided    {len(stand) + 1}  (+1 in this session)" in said
    assert f"tokloss apply-fixes {output} --to DATASET -o NEW_DATASET" in said
    assert "Traceback" not in said


def test_sigterm_and_nothing_decided(output: Path, start: Callable[..., Running]) -> None:
    code, said = start(output, "--reviewer", "ben").end(signal.SIGTERM)
    assert code == 143
    assert "apply-fixes" not in said
    assert "every decision is saved" in said


def test_refusals(output: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        result = CliRunner().invoke(app, ["review", *words])
        assert getattr(result.exception, "exit_code", None) == 2, (result.output, result.exception)
        return str(result.exception)

    assert "not an output" in refused(str(tmp_path))
    assert "--reviewer" in refused(str(output), "--reviewer", " ")
    shutil.rmtree(output / "mining")
    assert f"run tokloss mine {output}" in refused(str(output))


def test_an_output_on_object_storage(bucket: str, output: Path) -> None:
    """Two reviewers; each decision is an object of its own before it is confirmed."""
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.put(str(output), f"{bucket}/out", recursive=True)
    anna, ben = (Review(f"{bucket}/out", name) for name in ("anna", "ben"))
    items = anna.next(Filter(), 0, 5)["items"]
    assert [i["key"] for i in items] == [i["key"] for i in ben.next(Filter(), 0, 5)["items"]]
    for number, item in enumerate(items, 1):
        anna.decide("accept", [tuple(item["key"])], None, 1.0)
        assert len(fs.ls(f"{bucket}/out/review/anna")) == number
    anna.undo()
    ben.decide("keep", [tuple(items[0]["key"])], None, 1.0)
    assert ben.decided("conflicts")["items"][0]["key"] == items[0]["key"]
    anna.close()
    again = Review(f"{bucket}/out", "anna")
    assert [d.batch for d in again.standing] == [1, 2, 3, 4]
    assert again.next(Filter(), 0, 1)["items"][0]["key"] == items[4]["key"]
    again.start()
    again.places.wait()
    assert again.places.failed == ""
    assert again.elsewhere(tuple(items[4]["key"]), True)["words"][0]["usages"]
