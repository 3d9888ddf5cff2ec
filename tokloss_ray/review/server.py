"""The page and its requests, served to one browser of this machine; aiohttp in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from aiohttp import web

from tokloss_ray.errors import Refused, TokLossError
from tokloss_ray.review.access import COOKIE, HEADERS, Access
from tokloss_ray.review.audit import Key
from tokloss_ray.review.issues import Filter
from tokloss_ray.review.session import Review
from tokloss_ray.tags.sentence_spans import Span

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_MOST_AT_ONCE = 20
_SILENT = logging.Logger("tokloss-review", logging.CRITICAL)
"""What is wrong with requests is told to those who make them: others on this machine could fill the terminal."""
_LARGEST_BODY = 1 << 20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def page_files() -> dict[str, tuple[bytes, str]]:
    """The files of the page by name, with their types; the colours are those of the report."""
    own = [entry for entry in files("tokloss_ray.review").joinpath("page").iterdir() if entry.is_file()]
    report = files("tokloss_ray.report").joinpath("templates", "report.css")
    return {
        entry.name: (entry.read_bytes(), _TYPES[entry.name.rsplit(".", 1)[1]])
        for entry in [*own, report]
        if entry.name.rsplit(".", 1)[-1] in _TYPES
    }


def make_app(review: Review, access: Access, spent: Callable[[], None]) -> web.Application:
    """The routes. spent: called when somebody comes with a token that was used before."""
    page = page_files()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        if not access.comes_from_here(request.method, request.headers):
            response = web.Response(status=403)
        elif request.path == "/" and "token" in request.query:
            response = _enter(request, access, spent)
        elif not request.path.startswith(f"/{access.path}/") or not access.is_let_in(request.cookies.get(COOKIE)):
            response = web.Response(status=403)
        else:
            response = await _answered(request, handler)
        response.headers.update(HEADERS)
        response.headers["Server"] = "tokloss"
        return response

    async def file(request: web.Request) -> web.Response:
        name = request.match_info.get("name") or "index.html"
        if name not in page:
            return web.Response(status=404)
        body, kind = page[name]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    def get(work: Callable[[web.Request], Any]) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            return _json(await asyncio.to_thread(work, request))

        return answer

    def post(work: Callable[[Any], Any]) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            try:
                body = await request.json()
            except ValueError:
                raise Refused("the request is not JSON") from None
            return _json(await asyncio.to_thread(work, body))

        return answer

    def issues(request: web.Request) -> dict[str, Any]:
        query = request.query
        if (which := query.get("which", "open")) != "open":
            return review.decided(which)
        count = min(max(1, _number(query.get("count", "1"))), _MOST_AT_ONCE)
        return review.next(parse_filter(query, review.table.by), _number(query.get("start", "0")), count)

    app = web.Application(middlewares=[guard], client_max_size=_LARGEST_BODY)
    base = f"/{access.path}"
    app.add_routes(
        [
            web.get(f"{base}/", file),
            web.get(f"{base}/api/about", get(lambda request: review.about())),
            web.get(f"{base}/api/choices", get(lambda request: review.choices())),
            web.get(f"{base}/api/issues", get(issues)),
            web.get(f"{base}/api/agreement", get(lambda request: review.agreement())),
            web.get(f"{base}/api/learnt", get(lambda request: review.learnt())),
            web.post(f"{base}/api/group", post(lambda body: review.group(_keys([body["key"]])[0]))),
            web.post(f"{base}/api/elsewhere", post(lambda body: _elsewhere(review, body))),
            web.post(f"{base}/api/decide", post(lambda body: _decide(review, body))),
            web.post(f"{base}/api/undo", post(lambda body: review.undo())),
            web.get(f"{base}/{{name}}", file),
        ]
    )
    return app


def _enter(request: web.Request, access: Access, spent: Callable[[], None]) -> web.Response:
    cookie = access.exchange(request.query["token"])
    inside = f"/{access.path}/"
    if cookie is None:
        if access.was_used(request.query["token"]):
            spent()
        return web.Response(status=403)
    response = web.Response(status=303, headers={"Location": inside})
    response.set_cookie(COOKIE, cookie, path=inside, httponly=True, samesite="Strict")
    return response


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the handler says; an error as its sentence, for the page to show."""
    try:
        return await handler(request)
    except Refused as error:
        return _json({"error": str(error)}, 400)
    except TokLossError as error:
        return _json({"error": str(error)}, 500)
    except web.HTTPException as error:
        return web.Response(status=error.status)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return _json({"error": "the request is not one of this page"}, 400)
    except Exception as error:
        sentence = f"{type(error).__name__}: {error} (this should not happen; please report it)"
        return _json({"error": sentence}, 500)


def _json(content: Any, status: int = 200) -> web.Response:
    body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def _number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def parse_filter(given: Mapping[str, str], by: Sequence[str]) -> Filter:
    """A filter from the parameters of a request; empty ones do not count.

    Raises:
        Refused: a score is no number.
    """

    def number(name: str) -> float | None:
        try:
            return float(given[name]) if given.get(name) else None
        except ValueError:
            raise Refused(f"{given[name]!r} is not a score") from None

    slices = {name: given[f"by-{name}"] for name in by if given.get(f"by-{name}")}
    return Filter(
        given.get("label") or None,
        given.get("suggested") or None,
        given.get("word") or None,
        number("min"),
        number("max"),
        slices,
    )


def _keys(given: Any) -> list[Key]:
    return [(str(source), int(row), int(word)) for source, row, word in given]


def _elsewhere(review: Review, body: Any) -> dict[str, Any]:
    return review.elsewhere(_keys([body["key"]])[0], bool(body.get("examples")))


def _decide(review: Review, body: Any) -> dict[str, Any]:
    spans: Sequence[Span] | None = None
    if body.get("spans") is not None:
        spans = [Span(int(start), int(end), str(type_)) for start, end, type_ in body["spans"]]
    seconds = body.get("seconds")
    return review.decide(str(body["action"]), _keys(body["keys"]), spans, None if seconds is None else float(seconds))


class Server:
    """A server that answers from a thread of its own, from `start` to `stop`; on the loopback interface alone.

    Attributes:
        access: who may use it, and the address to open.

    Raises:
        Refused: the port is taken.
    """

    def __init__(self, review: Review, port: int = 0, spent: Callable[[], None] = lambda: None) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise Refused(f"--port {port}: {reason.lower()}; choose another, or none for a free one") from None
        self.access = Access(self._socket.getsockname()[1])
        self._app = make_app(review, self.access, spent)
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._run, name="tokloss-review", daemon=True)

    def start(self) -> None:
        """Accept requests from now on."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def stop(self) -> None:
        """Answer what was asked, then no more."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _open(self) -> None:
        self._runner = web.AppRunner(
            self._app, access_log=None, logger=_SILENT, handle_signals=False, shutdown_timeout=5
        )
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await self._loop.shutdown_default_executor()
