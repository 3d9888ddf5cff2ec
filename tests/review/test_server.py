"""Who gets an answer from the server, and who gets nothing."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tokloss_ray.errors import Refused
from tokloss_ray.review.access import COOKIE
from tokloss_ray.review.server import Server
from tokloss_ray.review.session import Review


class Client:
    """Requests as a browser makes them, or as it does not."""

    def __init__(self, server: Server) -> None:
        self.server, self.cookie = server, ""
        self.host = f"127.0.0.1:{server.access.port}"
        self.base = f"/{server.access.path}"

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str | None) -> http.client.HTTPResponse:
        given = {
            "Host": self.host,
            "Origin": f"http://{self.host}" if body is not None else None,
            "Cookie": self.cookie,
        }
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.access.port, timeout=10)
        connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        for name, value in {**given, "Content-Length": str(len(data))}.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(data)
        response = connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    def enter(self) -> None:
        address = urlsplit(self.server.access.address)
        response = self.ask(f"/?{address.query}")
        assert (response.status, response.headers["Location"]) == (303, f"{self.base}/")
        self.cookie = response.headers["Set-Cookie"].split(";")[0]
        about = response.headers["Set-Cookie"]
        assert "HttpOnly" in about
        assert "SameSite=Strict" in about
        assert f"Path={self.base}/" in about


@pytest.fixture
def served(review: Callable[..., Review]) -> Iterator[tuple[Client, list[int]]]:
    spent: list[int] = []
    server = Server(review(), spent=lambda: spent.append(1))
    server.start()
    yield Client(server), spent
    server.stop()


def nothing(response: http.client.HTTPResponse) -> bool:
    return response.status == 403 and response.content == b""  # type: ignore[attr-defined]


def test_the_address_works_once(served: tuple[Client, list[int]]) -> None:
    client, spent = served
    address = urlsplit(client.server.access.address)
    assert address.hostname == "127.0.0.1"
    client.enter()
    assert client.ask(f"{client.base}/").status == 200
    assert json.loads(client.ask(f"{client.base}/api/about").content)["reviewer"] == "anna"  # type: ignore[attr-defined]
    assert nothing(client.ask(f"/?{address.query}"))
    assert spent == [1]
    assert client.ask(f"{client.base}/").status == 200, "whoever is in stays in"
    client.server.access.renew()
    assert nothing(client.ask(f"/?{address.query}"))
    assert client.server.access.address not in (address.geturl(),)


def test_without_the_secrets_there_is_nothing(served: tuple[Client, list[int]], output: Path) -> None:
    client, spent = served
    client.enter()
    cookie, base, access = client.cookie, client.base, client.server.access
    wrong = [f"{COOKIE}=", f"{COOKIE}={'x' * 43}", "", cookie[:-1], f"{cookie}x", "a=b", f"{COOKIE}=\xff"]
    for path in (f"{base}/", f"{base}/review.js", f"{base}/api/about", f"{base}/api/issues", f"{base}/nowhere"):
        for other in wrong:
            client.cookie = other
            assert nothing(client.ask(path)), (path, other)
    client.cookie = cookie
    for path in (
        "/",
        "/?token=",
        "/?token=x",
        "/index.html",
        "/review.js",
        "/api/about",
        f"{base}",
        "/../",
        f"/x{base}/",
    ):
        assert nothing(client.ask(path)), path
    before = list((output / "review").rglob("*"))
    for headers in (
        {"Host": "evil.example"}, {"Host": f"evil.example:{access.port}"}, {"Host": "127.0.0.1"}, {"Host": None},
        {"Host": f"127.0.0.1:{access.port + 1}"}, {"Host": f"127.0.0.1:{access.port}.evil.example"},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{access.port + 1}"},
        {"Origin": f"http://localhost:{access.port}"}, {"Origin": f"https://127.0.0.1:{access.port}"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
    ):  # fmt: skip
        response = client.ask(f"{base}/api/about", **headers)
        assert nothing(response) or response.status == 400, headers
        response = client.ask(f"{base}/api/undo", {}, **headers)
        assert nothing(response) or response.status == 400, headers
    assert nothing(client.ask(f"{base}/api/undo", {}, Origin=None)), "a form of another page may send no origin"
    assert list((output / "review").rglob("*")) == before
    assert spent == []
    assert client.ask(f"{base}/", Sec_Fetch_Site="none").status == 200


def test_answers_are_not_kept_or_framed(served: tuple[Client, list[int]]) -> None:
    client, _ = served
    client.enter()
    for path in ("/", f"{client.base}/", f"{client.base}/api/about", f"{client.base}/nowhere"):
        headers = client.ask(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Server"] == "tokloss"


def test_requests_that_the_page_does_not_make(served: tuple[Client, list[int]]) -> None:
    client, _ = served
    client.enter()
    item = json.loads(client.ask(f"{client.base}/api/issues").content)["items"][0]  # type: ignore[attr-defined]
    decide = f"{client.base}/api/decide"
    for body in (
        b"{", b"\xff", [], None, {}, {"action": "keep"}, {"action": "keep", "keys": [[1, 2]]},
        {"action": "x", "keys": []},
        {"action": "keep", "keys": [["a", "b", "c"]]}, {"action": "keep", "keys": [["../x", 0, 0]]},
        {"action": "edit", "keys": [item["key"]], "spans": [[0, 1]]}, {"action": "edit", "keys": [item["key"]]},
        {"action": "keep", "keys": [item["key"]], "seconds": "long"},
    ):  # fmt: skip
        response = client.ask(decide, body if body is not None else b"null")
        assert response.status == 400, body
        assert json.loads(response.content)["error"]  # type: ignore[attr-defined]
    for query in ("start=-1", "start=x", "count=x", "min=x"):
        assert client.ask(f"{client.base}/api/issues?{query}").status == 400, query
    assert client.ask(decide, b"x" * (2 << 20)).status in (400, 413)
    assert client.ask(f"{client.base}/nowhere").status == 404
    assert client.ask(f"{client.base}/../../secrets").status in (403, 404)
    assert client.ask(decide, method="PUT", Origin=f"http://{client.host}").status == 405
    assert json.loads(client.ask(f"{client.base}/api/about").content)["progress"]["decided"] == 0  # type: ignore[attr-defined]


def test_only_this_machine_is_served(served: tuple[Client, list[int]]) -> None:
    import psutil

    client, _ = served
    ours = [c for c in psutil.Process().net_connections("inet") if c.laddr.port == client.server.access.port]
    assert {c.laddr.ip for c in ours} == {"127.0.0.1"}


def test_a_port_that_is_taken(served: tuple[Client, list[int]], review: Callable[..., Review]) -> None:
    client, _ = served
    with pytest.raises(Refused, match=f"--port {client.server.access.port}: .* choose another"):
        Server(review("ben"), client.server.access.port)
