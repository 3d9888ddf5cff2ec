"""The page in a real browser: every key, without a mouse, on a phone, in the dark, for a screen reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.review.pages import Page
from tests.support import inline, models
from tokloss_ray import ScoreConfig
from tokloss_ray.mining.mine import mine

pytestmark = pytest.mark.slow


def test_every_key(opened: Callable[..., Page]) -> None:
    with opened() as page:
        tab, asked = page.tab, [page.question]
        for key, action in (("k", "keep"), ("a", "accept"), ("s", "skip")):
            page.press(key)
            assert page.done()[-1].action == action
            assert page.question not in asked
            asked.append(page.question)
        assert "2 decided (1 kept, 1 accepted, 0 edited) · 1 skipped" in tab.inner_text("#progress")
        for expected in (asked[2], asked[1]):
            page.press("u")
            assert page.question == expected
        assert [d.action for d in page.done()] == ["keep"]
        page.press("Control+z")
        assert page.question == asked[0]
        assert page.done() == []
        page.press("u")  # there is nothing: nothing happens
        assert not tab.is_visible("#problem")
        page.press("p")
        tab.locator(".places li").first.wait_for()
        page.press("?")
        tab.get_by_role("dialog", name="Keys").wait_for()
        page.press("k", "Escape")
        assert page.done() == [], "a key in the dialog decided something"
        page.press("g")
        tab.locator("#group[open]").wait_for()
        page.press("a")
        assert [d.action for d in page.done()] == ["accept"]
        page.press("f")
        assert tab.locator("#which").evaluate("e => e === document.activeElement")
        tab.locator("#word").fill("kas")
        assert len(page.done()) == 1, "a letter that was typed into a field decided something"


def test_editing_by_keyboard(opened: Callable[..., Page]) -> None:
    with opened() as page:
        tab = page.tab
        while (
            not (item := page.review._shown(page.review._known(_key(page)))).change.stop < len(item.sentence.words) - 1
        ):
            page.press("s")
        start = item.change.start
        page.press("e")
        focused = tab.locator("#sentence [tabindex='0']")
        assert focused.get_attribute("data-word") == str(start)
        page.press("0")
        page.press("Home", "Shift+ArrowRight", "3")
        page.press("Escape")
        assert not any(d.counts for d in page.done())
        page.press(
            "e", "Home", "Shift+End", "0", "Home", "Shift+ArrowRight", "3", "ArrowRight", "ArrowRight", "1", "Enter"
        )
        (done,) = (d for d in page.done() if d.counts)
        assert done.action == "edit"
        # 3 is PER, 1 is LOC: the third type and the first; words 0 and 1, then word 3.
        tags = [
            done.tags[i - done.start] if done.start <= i < done.stop else "O" for i in range(len(item.sentence.words))
        ]
        expected = ["B-PER", "I-PER", "O", "B-LOC", *["O"] * len(tags)][: len(tags)]
        assert tags == expected


def _key(page: Page) -> tuple[str, int, int]:
    words = page.tab.inner_text("#where").split(" · ")[0]
    at = page.tab.locator("#sentence .word").evaluate_all("all => all.findIndex(w => w.classList.contains('at'))")
    return next(k for k, issue in page.review._issued.items() if issue.example_id == words and k[2] == at)


def test_editing_by_touch(opened: Callable[..., Page]) -> None:
    with opened(viewport={"width": 360, "height": 740}, has_touch=True) as page:
        tab = page.tab
        while len(page.review._shown(page.review._known(_key(page))).sentence.words) < 6:
            page.press("s")
        tab.get_by_role("button", name="Edit").tap()
        words = tab.locator("#sentence [role=option]")
        words.nth(1).tap()
        words.nth(3).tap()
        tab.get_by_role("button", name="ORG").tap()
        assert "ORG" in words.nth(2).get_attribute("aria-label")
        tab.get_by_role("button", name="Save").tap()
        page.settled()
        (done,) = (d for d in page.done() if d.counts)
        assert done.tags[1 - done.start : 4 - done.start] == ("B-ORG", "I-ORG", "I-ORG")


def test_filters_and_what_was_decided(opened: Callable[..., Page]) -> None:
    with opened() as page:
        tab = page.tab
        first = page.question
        page.press("a", "k", "s")
        assert [d.action for d in page.done()] == ["accept", "keep", "skip"]
        tab.get_by_text("Filter").first.click()
        tab.locator("#pair option").nth(1).wait_for(state="attached")
        option = tab.locator("#pair option").nth(1)
        label, rest = option.inner_text().split(" → ")
        tab.locator("#pair").select_option(index=1)
        tab.get_by_role("button", name="Apply").click()
        page.settled()
        issue = page.review._known(_key(page))
        assert (issue.label, issue.suggested_label) == (label, rest.split(" (")[0])
        tab.locator("#which").select_option("decided")
        tab.get_by_role("button", name="Apply").click()
        page.settled()
        tab.get_by_text("You decided: keep the label.").wait_for()
        page.press("a")
        tab.get_by_text("You decided: accept the suggestion.").wait_for()
        assert page.question == first
        page.press("k")
        tab.get_by_role("heading", name="Nothing to show").wait_for()
        assert sorted(d.action for d in page.done()) == ["accept", "accept", "keep", "keep", "skip"]
        tab.get_by_role("button", name="Show all open issues").click()
        tab.locator("#card:not([hidden])").wait_for()
        page.press("a")


def test_reload_and_a_second_tab(opened: Callable[..., Page]) -> None:
    with opened() as page:
        page.press("a", "k")
        here = page.question
        page.tab.reload()
        page.settled()
        assert page.question == here
        assert "2 decided" in page.tab.inner_text("#progress")
        page.press("k")
        other = page.context.new_page()
        other.goto(page.tab.url)
        other.locator("#card:not([hidden])").wait_for()
        assert other.inner_text("#question") == page.question


def test_two_reviewers_in_two_browsers(opened: Callable[..., Page], browser: Any) -> None:
    with opened("anna") as anna, opened("ben") as ben:
        assert anna.question == ben.question
        anna.press("a", "a")
        ben.press("a", "k")
        ben.tab.get_by_text("Filter").first.click()
        ben.tab.locator("#which").select_option("conflicts")
        ben.tab.get_by_role("button", name="Apply").click()
        ben.settled()
        assert "anna: accept the suggestion" in ben.tab.inner_text("#others")
        ben.press("?")
        ben.tab.get_by_text("anna and ben: the same tag for").wait_for()
        assert "Cohen’s kappa" in ben.tab.inner_text("#agreement")


def test_a_decision_that_is_not_saved_says_so(opened: Callable[..., Page], monkeypatch: pytest.MonkeyPatch) -> None:
    from tokloss_ray.errors import StorageFailed

    def full(*_: Any) -> None:
        raise StorageFailed("cannot write /out/review: no space left on device")

    with opened() as page:
        before = page.question
        with monkeypatch.context() as patch:
            patch.setattr(page.review.journal, "write", full)
            page.press("a")
            assert page.tab.inner_text("#problem") == "Not saved: cannot write /out/review: no space left on device."
        assert page.question == before
        page.press("a")
        assert not page.tab.is_visible("#problem")
        assert len(page.done()) == 1
        page.said.clear()  # the browser reports the failed request


def test_names_that_a_screen_reader_reads(opened: Callable[..., Page]) -> None:
    with opened() as page:
        tab = page.tab
        tree = tab.locator("body").aria_snapshot()
        for name in ("Keep label", "Accept suggestion", "Edit", "Skip", "Same elsewhere", "Undo", "Keys"):
            assert f'button "{name}' in tree, name
        assert 'heading "Label issues of out" [level=1]' in tree
        assert f'heading "{page.question}"'.replace('"', "")[:20] in tree.replace('"', "")
        status = tab.locator("#status").inner_text()
        assert status.startswith("Next issue. In the data: ")
        assert "Suggested: " in status
        page.press("a", "e")
        assert 'listbox "Words of the sentence"' in tab.locator("main").aria_snapshot()
        first = tab.locator("#sentence [role=option]").first
        assert ", " in first.get_attribute("aria-label")
        page.press("Escape")
        assert tab.get_by_role("button", name="Edit").evaluate("e => e === document.activeElement")
        unnamed = (
            "all => all.filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.outerHTML)"
        )
        assert tab.locator("button, input, select, a").evaluate_all(unnamed) == []


def test_tab_reaches_everything_and_keys_can_be_turned_off(opened: Callable[..., Page]) -> None:
    with opened() as page:
        tab = page.tab
        reached = []
        for _ in range(12):
            page.press("Tab")
            reached.append(
                tab.locator(":focus").evaluate_all("all => all.map(e => e.innerText)[0] || ''").split("\n")[0]
            )
        for name in (
            "Skip to the issue",
            "Keys",
            "Filter",
            "Keep label",
            "Accept suggestion",
            "Edit",
            "Skip",
            "Show places",
        ):
            assert any(text.startswith(name) for text in reached), (name, reached)
        page.press("?")
        tab.get_by_label("Use single keys").uncheck()
        page.press("Escape", "a", "k")
        assert page.done() == []
        tab.reload()
        page.settled()
        page.press("a")
        assert page.done() == []
        tab.get_by_role("button", name="Accept suggestion").press("Enter")
        page.settled()
        assert len(page.done()) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(opened: Callable[..., Page], scheme: str) -> None:
    with opened(viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        for key in ("", "g", "Escape", "?", "Escape", "f", "e"):
            if key:
                page.press(key) if key != "e" else page.tab.get_by_role("button", name="Edit").click()
            assert page.tab.locator("html").evaluate("e => e.scrollWidth") == 360, key
        contrast = page.tab.locator("button, .lane.new, .lane.given, .meta, .hint").evaluate_all(CONTRAST)
        assert min(contrast) >= 4.5, contrast


CONTRAST = """all => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3]) return colour;
    }
    return [255, 255, 255];
  };
  return all.filter(e => e.checkVisibility() && !e.disabled && e.innerText.trim()).map(e => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return (a + .05) / (b + .05); });
}"""

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(3)>', "\u202eevil\u202c", "nul\x00l", "{{ 7*7 }}",
    "\x1b[31m", "\u05e9\u05dc\u05d5\u05dd", "x" * 3000, "${alert(5)}", "", "\u200b", "'onfocus='alert(4)",
]  # fmt: skip


def test_text_from_the_corpus_stays_text(opened: Callable[..., Page], tmp_path: Path) -> None:
    tags = ["O", "B-<b>", "I-<b>", 'B-$x$"']
    rows = [
        {
            "id": f"<i>{i}</i>\u202e",
            "tokens": [word, "plain", *HOSTILE[max(i - 2, 0) : i]],
            "ner_tags": [tags[i % 4]] * (2 + min(i, 2)),
        }
        for i, word in enumerate(HOSTILE)
    ]
    model = models.build("bert", tmp_path / "model", [["x", "y"], *(row["tokens"] for row in rows)], tags)
    source = inline.write_jsonl(tmp_path / "rows.jsonl", rows)
    hostile = tmp_path / "hostile"
    inline.score_inline(
        ScoreConfig(model=str(model), input=(str(source),), output=str(hostile), id_column="id", max_error_rate=0.5)
    )
    mine(str(hostile))
    with opened(of=hostile, viewport={"width": 360, "height": 740}) as page:
        tab = page.tab
        for _ in range(12):
            page.press("p", "e", "Escape", "g", "Escape", "a")
            assert tab.locator("img, i, iframe, b b").count() == 0
            assert tab.locator("html").evaluate("e => e.scrollWidth") == 360
            assert not set(tab.locator("body").inner_text()) & set("\u202a\u202b\u202c\u202d\u202e\x00\x1b")
        done = page.done()
    assert {word for d in done for word in d.words} <= {word for row in rows for word in row["tokens"]}
    assert len(done) > 3


def test_another_page_gets_nothing(opened: Callable[..., Page], browser: Any, tmp_path: Path) -> None:
    """A page elsewhere that knows the port and even the path: no answer, no decision, no frame, no script."""
    import http.server
    import threading

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<p>evil</p>")

        def log_message(self, *_: Any) -> None:
            pass

    evil = http.server.HTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    try:
        with opened() as page:
            page.press("a")
            target = page.tab.url
            other = page.context.new_page()  # of the same browser: it has the cookie
            for host in ("127.0.0.1", "localhost"):
                other.goto(f"http://{host}:{evil.server_port}/")
                tried = other.evaluate(ATTACK, target)
                assert tried == {"read": "failed", "undo": "failed", "script": "failed", "link": "failed"}, (
                    host,
                    tried,
                )
                frame = other.frame_locator("iframe").locator("body")
                assert frame.inner_text().find("Label issues") < 0
            assert len(page.done()) == 1
    finally:
        evil.shutdown()
        evil.server_close()


ATTACK = """async target => {
  const outcome = promise => promise.then(() => "worked", () => "failed");
  const loads = (name, attribute, more) => new Promise((resolve, reject) => {
    const made = Object.assign(document.createElement(name), {...more, onload: resolve, onerror: reject});
    made[attribute] = target + (name === "script" ? "review.js" : "review.css");
    document.head.append(made);
  });
  const frame = document.createElement("iframe");
  frame.src = target;
  document.body.append(frame);
  const answers = {
    read: await outcome(fetch(`${target}api/about`, {credentials: "include"})),
    undo: await outcome(fetch(`${target}api/undo`, {method: "POST", credentials: "include", body: "{}"})),
    script: await outcome(loads("script", "src", {})),
    link: await outcome(loads("link", "href", {rel: "stylesheet"})),
  };
  const form = {method: "POST", mode: "no-cors", credentials: "include", body: "{}"};
  await fetch(`${target}api/undo`, form).catch(() => 0);
  return answers;
}"""
