"""Answers that come late, and keys that come early: the page shows no issue twice, loses no key, keeps to the order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.review.pages import Page
from tokloss_ray.review import session
from tokloss_ray.review.issues import Filter


class Held:
    """Answers of the server to some requests, as they were when it gave them, kept back until `let_go`."""

    def __init__(self, page: Page, pattern: str) -> None:
        self.tab, self.pattern = page.tab, pattern
        self.waiting: list[tuple[Any, Any]] = []
        self.tab.route(pattern, lambda route: self.waiting.append((route, route.fetch())))

    def wait(self, count: int = 1) -> None:
        end = time.monotonic() + 20
        while len(self.waiting) < count:
            assert time.monotonic() < end, f"no request for {self.pattern}"
            self.tab.wait_for_timeout(10)

    def let_go(self) -> None:
        """The last first; later requests are answered at once."""
        while self.waiting:
            route, response = self.waiting.pop()
            route.fulfill(response=response)
        self.tab.unroute(self.pattern)


def decided(page: Page, count: int) -> None:
    """Wait until so many decisions are written."""
    end = time.monotonic() + 20
    while len(page.done()) < count:
        assert time.monotonic() < end
        page.tab.wait_for_timeout(10)


def words_of(page: Page) -> list[tuple[str, int, int]]:
    return [(d.source, d.source_row, word) for d in page.done() for word in range(d.start, d.stop)]


def test_what_is_decided_does_not_come_again_with_an_answer_that_is_late(opened: Callable[..., Page]) -> None:
    with opened() as page:
        first = page.review.next(Filter(), 0, 1)["items"][0]
        assert first["stop"] - first["start"] > 1, "an entity of one word cannot come twice"
        held = Held(page, "**/api/issues?*count=8*")  # that which asks for more than the first issue
        page.tab.reload()
        held.wait()
        page.tab.keyboard.press("k")
        decided(page, 1)
        held.let_go()
        page.settled()
        page.press("k", "k", "k")
        words = words_of(page)
        assert len(page.done()) == 4
        assert len(set(words)) == len(words), "an entity was shown again after it had been decided"


def test_keys_wait_for_the_answer_to_the_one_before(opened: Callable[..., Page]) -> None:
    with opened() as page:
        held = Held(page, "**/api/decide")
        for key in "kase":
            page.tab.keyboard.press(key)
        held.wait()
        held.let_go()
        decided(page, 3)
        page.settled()
        assert [d.action for d in page.done()] == ["keep", "accept", "skip"]
        assert len(set(words_of(page))) == len(words_of(page))
        assert page.tab.locator("#edit-tools:not([hidden])").count() == 1


@pytest.mark.slow
def test_keys_are_forgotten_if_the_decision_before_them_is_not_saved(opened: Callable[..., Page]) -> None:
    with opened() as page:
        waiting: list[Any] = []
        page.tab.route("**/api/decide", lambda route: waiting.append(route))
        for key in "aaa":
            page.tab.keyboard.press(key)
        while not waiting:
            page.tab.wait_for_timeout(10)
        waiting[0].fulfill(status=500, content_type="application/json", body='{"error": "no space left on device"}')
        page.tab.locator("#problem:not([hidden])").wait_for()
        page.settled()
        assert (len(waiting), page.done()) == (1, [])
        page.said.clear()  # the browser reports the failed request


def test_an_answer_in_the_order_of_before_does_not_count(
    opened: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "in_background", lambda work: work())
    with opened() as page:
        page.tab.wait_for_load_state("networkidle")
        held = Held(page, "**/api/issues?*")
        while not held.waiting:  # the page has a few issues left when it asks for more
            page.press("k")
        monkeypatch.setattr(session, "EVERY", len(page.done()) + 1)
        page.press("k")
        assert page.review.table.ranking == 1
        held.wait(2)
        held.let_go()
        page.settled()
        page.press("k")
        for _ in range(4):
            expected = page.review.next(Filter(), 0, 1)["items"][0]
            assert page.tab.inner_text("#where").startswith(expected["id"])
            page.press("s")
