"""The page of a review in a browser, as the tests look at it."""

from __future__ import annotations

from typing import Any

from tokloss_ray.output.decisions import Decision, read_decisions, standing
from tokloss_ray.review.server import Server
from tokloss_ray.review.session import Review


class Page:
    """The page of one review in a browser, with what it said and asked for."""

    def __init__(self, browser: Any, review: Review, **options: Any) -> None:
        self.review = review
        self.server = Server(review)
        self.server.start()
        review.start()
        review.places.wait()
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(20_000)
        # An answer to the key may come before the page has looked at it.
        self.context.add_init_script(
            "addEventListener('keydown', () => { window.keysSeen = 1 + (window.keysSeen || 0) }, true)"
        )
        self.tab = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(self.server.access.address)
        self.settled()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.context.close()
        self.server.stop()
        if kind is None:
            assert self.said == []
            assert {url.split("/")[2] for url in self.asked} == {f"127.0.0.1:{self.server.access.port}"}

    def settled(self) -> None:
        """Wait until the page has taken what was pressed or clicked, and shows an issue, or the end."""
        self.tab.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        self.tab.locator("#card:not([hidden]), #end:not([hidden])").wait_for()
        self.tab.locator("body:not([aria-busy])").wait_for()

    def press(self, *keys: str) -> None:
        for key in keys:
            seen = self.tab.evaluate("window.keysSeen || 0")
            self.tab.keyboard.press(key)
            self.tab.wait_for_function(f"(window.keysSeen || 0) > {seen}")
            self.settled()

    @property
    def question(self) -> str:
        return str(self.tab.inner_text("#question"))

    def done(self) -> list[Decision]:
        return standing(read_decisions(self.review.output).get(self.review.reviewer, []))
