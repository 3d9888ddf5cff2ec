"""A proxy in front of an S3 server: it notes every request, and does harm where a test tells it to."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SEEN_BY_PROXY_ONLY = {"expect", "connection", "transfer-encoding", "content-length"}


@dataclass
class Request:
    """One request as it passed. `sent` counts the bytes of the answer."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0

    @property
    def is_read(self) -> bool:
        """Whether it asks for the content of an object (and not for a listing)."""
        return self.method == "GET" and "list-type" not in self.path and "?" not in self.path


# What to do to a request: None lets it pass; ("status", 503, "SlowDown"), ("reset",), ("truncate",), or with seconds
# ("stall", 9.0) in the middle of the answer and ("late", 1.0) before it.
Harm = Callable[[Request], tuple[Any, ...] | None]


class Proxy:
    """Where it listens, what it has seen, and what it does."""

    def __init__(self, backend: str) -> None:
        self.backend = backend.removeprefix("http://")
        self.seen: list[Request] = []
        self.harm: Harm | None = None
        self.endpoint = ""

    def reads(self, of: str = "") -> list[Request]:
        """Requests for the content of objects whose path has this in it."""
        return [request for request in self.seen if request.is_read and of in request.path]


@contextmanager
def proxied(backend: str) -> Iterator[Proxy]:
    """A proxy in front of the server at `backend`."""
    proxy = Proxy(backend)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            request = Request(self.command, self.path, dict(self.headers.items()))
            proxy.seen.append(request)
            harm = (proxy.harm(request) if proxy.harm else None) or ("pass",)
            if harm[0] == "status":
                self.fail(*harm[1:])
            elif harm[0] == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            else:
                self.forward(request, body, harm)

        def fail(self, status: int, code: str) -> None:
            text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def forward(self, request: Request, body: bytes | None, harm: tuple[Any, ...]) -> None:
            if harm[0] == "late":
                time.sleep(harm[1])
            connection = http.client.HTTPConnection(proxy.backend, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            request.sent = len(data)
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in SEEN_BY_PROXY_ONLY:
                    self.send_header(name, value)
            self.send_header("Content-Length", response.getheader("Content-Length") or str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if harm[0] in ("truncate", "stall"):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                if harm[0] == "stall":
                    time.sleep(harm[1])
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            """Clients that hang up are part of the game."""

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()
