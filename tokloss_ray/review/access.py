"""Who may use the page: whoever has the address that was printed, once, in one browser of this machine.

The address holds a token, which is exchanged for a cookie and a path that nobody can guess, and is worthless then. All
other requests get an empty answer: without the cookie, from another page (Origin, Sec-Fetch-Site), or by another name
of this machine (Host), under which a page elsewhere could have itself sent here. Cookies know no ports: other servers
of this machine would get it too, were it not for the path.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from hmac import compare_digest

COOKIE = "tokloss-review"
_NAVIGATION = ("none", "same-origin")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every response."""


class Access:
    """The secrets of one server.

    Attributes:
        path: the first part of the path of all pages.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.path = secrets.token_urlsafe(16)
        self._cookie = secrets.token_urlsafe(32)
        self._token: str | None = None
        self._used: list[str] = []
        self.renew()

    def renew(self) -> None:
        """Make a new token; the one before is worthless."""
        self._token = secrets.token_urlsafe(32)

    @property
    def address(self) -> str:
        """What to open in a browser, once."""
        return f"http://127.0.0.1:{self.port}/?token={self._token}"

    def exchange(self, token: str) -> str | None:
        """The cookie for a token; None for a wrong one and for one that was used before."""
        if self._token is None or not _equal(token, self._token):
            return None
        self._used.append(self._token)
        self._token = None
        return self._cookie

    def was_used(self, token: str) -> bool:
        """Whether this is a token that somebody came with before."""
        return any(_equal(token, used) for used in self._used)

    def comes_from_here(self, method: str, headers: Mapping[str, str]) -> bool:
        """Whether a request is to this server by its own name and from its own page (or from a person)."""
        hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if host not in hosts or headers.get("Sec-Fetch-Site", "none") not in _NAVIGATION:
            return False
        return origin == f"http://{host}" or (origin is None and method in ("GET", "HEAD"))

    def is_let_in(self, cookie: str | None) -> bool:
        """Whether a cookie is the one that the token was exchanged for."""
        return cookie is not None and _equal(cookie, self._cookie)


def _equal(given: str, secret: str) -> bool:
    return compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())
