"""A Hugging Face hub of our own on loopback: what the real client asks for when it looks into datasets and reads them.

Repositories are dictionaries of files by revision; gated ones want a token. Requests are kept, to be looked at.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "secretsecret" * 2
_API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|auth-check)(?:/([^/]+)(?:/(.*))?)?)?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)")
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass
class Repo:
    """Branches by name, each of which is files by path."""

    branches: dict[str, dict[str, bytes]]
    gated: bool = False
    old: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commits(self) -> dict[str, dict[str, bytes]]:
        """Files by commit, also of commits that no branch has any more."""
        for files in self.branches.values():
            self.old[commit_of(files)] = files
        return self.old

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a revision."""
        if revision in self.branches:
            return commit_of(self.branches[revision]), self.branches[revision]
        files = self.commits().get(revision)
        return None if files is None else (revision, files)


def commit_of(files: dict[str, bytes]) -> str:
    """A hash of the content, as a commit has one."""
    return hashlib.sha1(repr(sorted((name, blob_of(data)) for name, data in files.items())).encode()).hexdigest()


def blob_of(data: bytes) -> str:
    """What identifies a file's content."""
    return hashlib.sha1(data).hexdigest()


@dataclass
class Hub:
    """A hub that runs.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        repos: by id; may be changed while it runs.
        requests: method, path and Range header of each request, in order.
        tokens: the Authorization headers that came.
    """

    endpoint: str
    repos: dict[str, Repo]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)


@contextmanager
def hub_server(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Serve datasets until the block ends."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.hub = hub = Hub(f"http://127.0.0.1:{server.server_port}", repos)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes = b"") -> None:
        url = urlsplit(self.path)
        path = url.path
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.hub.tokens.add(self.headers.get("Authorization"))
        api = re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|auth-check)(?:/([^/]+)(?:/(.*))?)?)?", path
        )
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path)
        found = api or file
        if found is None:
            return self._fail(404, "EntryNotFound", "no such page")
        repo = self.hub.repos.get(found[1])
        if repo is None:
            return self._fail(401, "RepoNotFound", "Repository not found")
        open_to_all = api is not None and api[2] in (None, "revision")
        if repo.gated and not open_to_all and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401, "GatedRepo", "Access to this dataset is restricted")
        kind, revision = (found[2], found[3]) if api else ("resolve", found[2])
        known = repo.files(unquote(revision or "main"))
        if known is None:
            return self._fail(404, "RevisionNotFound", "no such revision")
        commit, files = known
        if kind == "resolve":
            return self._file(commit, files, unquote(found[3]))
        if kind == "tree":
            prefix = unquote(found[4] or "").strip("/")
            return self._tree(files, prefix, "recursive=true" in url.query.lower())
        if kind == "paths-info":
            return self._paths(files, body)
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": found[1], "sha": commit, "siblings": siblings, "private": False, "gated": repo.gated})

    def _tree(self, files: dict[str, bytes], prefix: str, recursive: bool) -> None:
        below = f"{prefix}/" if prefix else ""
        inside = {name: data for name, data in files.items() if name.startswith(below)}
        if not inside:
            return self._fail(404, "EntryNotFound", "no such folder")
        entries = {}
        for name, data in inside.items():
            parts = name.removeprefix(below).split("/")
            for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
                folder = below + "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                entries[name] = _entry(name, data)
        self._json(list(entries.values()))

    def _paths(self, files: dict[str, bytes], body: bytes) -> None:
        asked = parse_qs(body.decode())["paths"]
        found = [_entry(name, files[name]) for name in asked if name in files]
        for name in asked:
            if name not in files and any(other.startswith(f"{name}/") for other in files):
                found.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
        self._json(found)

    def _file(self, commit: str, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self._fail(404, "EntryNotFound", "no such file", commit)
        data = files[name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        status, part = (206, data[int(asked[1]) : int(asked[2]) + 1]) if asked else (200, data)
        headers = {"ETag": f'"{blob_of(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}"
        self._send(status, part, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, b"", headers | ({"X-Repo-Commit": commit} if commit else {}))

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "oid": blob_of(data), "size": len(data)}
