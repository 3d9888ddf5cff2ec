"""The report page: its figures, its text, and how it behaves in a browser that may reach no network."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support import inline, mining_outputs, models
from tokloss_ray import ScoreConfig
from tokloss_ray.cli import app as cli
from tokloss_ray.errors import Refused
from tokloss_ray.exporting.export import export
from tokloss_ray.mining.mine import mine
from tokloss_ray.report.data import read_report_data
from tokloss_ray.report.page import render
from tokloss_ray.storage.sealed import sealed, unsealed

TAGS = mining_outputs.TAGS


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 sentences of the demo under the demo's model."""
    folder = tmp_path_factory.mktemp("report")
    genre = ["news" if i % 3 else "web" for i in range(400)]
    source = mining_outputs.demo_sentences(folder, 0, 400, genre=genre)
    return mining_outputs.score_demo(folder, source, keep=("genre",))


@pytest.fixture(scope="module")
def page(output: Path) -> str:
    return render(read_report_data(str(output)))


class Opened:
    """A page in the browser, with what it said and asked for; all requests but the page itself are refused."""

    def __init__(self, browser: Any, folder: Path, page: str, **options: Any) -> None:
        file = folder / "page.html"
        file.write_text(page, encoding="utf-8")
        self.context = browser.new_context(**options)
        self.tab = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.route(lambda url: url != file.as_uri(), lambda route: route.abort())
        self.tab.goto(file.as_uri())
        self.address = file.as_uri()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.said == []
            assert [url for url in self.asked if url != "data:,"] == [self.address]

    def column(self, table: str, at: int) -> list[str]:
        """The texts of a column's visible rows."""
        rows = f"[...document.querySelectorAll('#{table} tbody tr')].filter(r => !r.hidden)"
        return self.tab.evaluate(f"{rows}.map(r => r.cells[{at}].innerText)")


def write(folder: Path, tags: list[str], rows: list[dict[str, Any]], family: str = "bert", **options: Any) -> Path:
    """Rows scored by a tiny model with these tags."""
    words = [row["tokens"] for row in rows if "tokens" in row] or [["a", "b"]]
    model = models.build(family, folder / "model", [["x", "y", *words[0]], *words], tags)
    source = inline.write_jsonl(folder / "rows.jsonl", rows)
    settings: dict[str, Any] = {"model": str(model), "input": (str(source),), "output": str(folder / "out")}
    inline.score_inline(ScoreConfig(**settings | options))
    return folder / "out"


def test_loss_distribution_counts_every_labelled_token_once(output: Path) -> None:
    tokens = mining_outputs.explode(output)
    tokens["loss"] = tokens["loss"].astype("float32").astype("float64")
    table = mine(str(output), write=False)["loss_distribution"].to_pandas()
    assert table["count"].sum() == len(tokens)
    for row in table.itertuples():
        inside = (tokens["loss"] >= row.low) & (tokens["loss"] < (np.inf if np.isnan(row.high) else row.high))
        assert row.count == (inside & (tokens["labels"] == row.tag)).sum()
    sliced = mine(str(output), by=["genre"], write=False)["loss_distribution"].to_pandas()
    again = sliced.groupby(["tag", "low"])["count"].sum()
    assert again.to_dict() == table.groupby(["tag", "low"])["count"].sum().to_dict()


def test_headline_is_that_of_seqeval(output: Path, page: str) -> None:
    from seqeval.metrics import f1_score

    labels, predicted = [], []
    for row in inline.read_rows(output):
        at = [i for i, label in enumerate(row["labels"]) if label != "IGN"]
        labels.append([row["labels"][i] for i in at])
        predicted.append([row["predicted_label"][i] for i in at])
    assert f'<strong>{100 * f1_score(labels, predicted):.1f}<span class="unit">' in page
    tokens = mining_outputs.explode(output)
    assert f"<dd>{tokens['loss'].mean():.3f}</dd>" in page
    assert f"<dd>{tokens['error'].sum():,}</dd>" in page


def test_same_output_same_bytes_with_and_without_tables(output: Path, page: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(output, tmp_path / "out"))
    assert render(read_report_data(str(copy))) == page.replace(str(output), str(copy))
    mine(str(copy))
    found = read_report_data(str(copy))
    assert render(found) == page.replace(str(output), str(copy))
    # Tables of something else are not taken: sliced, filtered, or of an earlier run in the same folder.
    for options in ({"by": ["genre"]}, {"where": ["genre=web"]}, {"limit": 10}, {"min_count": 2}):
        mine(str(copy), **options)
        assert read_report_data(str(copy)).tables["tags"].equals(found.tables["tags"])
    mine(str(copy))
    record = next((copy / "_commits").iterdir())
    content = unsealed(record.read_bytes())
    content["loss_by_tag"]["O"][0] += 1
    record.write_bytes(sealed(content))
    assert read_report_data(str(copy)).tables["tags"].schema.metadata is None, "stale tables were used"


def test_rank_of_the_tables_is_kept(output: Path, tmp_path: Path) -> None:
    copy = str(shutil.copytree(output, tmp_path / "out"))
    mine(copy, rank="loss")
    assert read_report_data(copy).rank == "loss"
    assert read_report_data(copy, rank="margin").rank == "margin"


def test_refusals(output: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(Refused) as error:
            CliRunner().invoke(cli.app, ["report", *words], catch_exceptions=False)
        return str(error.value)

    assert "not an output of tokloss score" in refused(str(tmp_path / "nothing"))
    assert "is a folder" in refused(str(output), "-o", str(tmp_path))
    assert "no such column" in refused(str(output), "--by", "colour")
    copy = Path(shutil.copytree(output, tmp_path / "out"))
    (copy / "_SUCCESS").unlink()
    assert "--partial" in refused(str(copy))
    assert CliRunner().invoke(cli.app, ["report", str(copy), "--partial"]).exit_code == 0
    assert "not finished" in (copy / "report.html").read_text()


def test_the_command_says_where_the_page_is(output: Path, tmp_path: Path, page: str) -> None:
    result = CliRunner().invoke(cli.app, ["report", str(output), "-o", str(tmp_path / "new" / "page.html")])
    assert str(tmp_path / "new" / "page.html") in result.stdout.replace("\n", "")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == page


def test_sort_filter_and_show_all(browser: Any, tmp_path: Path, page: str, output: Path) -> None:
    words = mine(str(output), write=False)["words"].to_pandas()
    with Opened(browser, tmp_path, page) as opened:
        tab = opened.tab
        assert len(opened.column("words", 0)) == 15
        head = tab.locator("#words thead th").nth(1)
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        shown = words.head(500)
        counts = [int(text.replace(",", "")) for text in opened.column("words", 1)]
        assert counts == sorted(shown["count"], reverse=True)[:15]
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert [int(text) for text in opened.column("words", 1)] == sorted(shown["count"])[:15]
        assert tab.locator("#words [aria-sort]").count() == 1
        tab.locator("#words-filter").fill("I-ORG von")
        assert opened.column("words", 0) == [w for w in ["von"] if w in set(shown["word"])]
        assert "of 500 rows" in tab.locator("output[for=words-filter]").inner_text()
        tab.locator("#words-filter").fill("")
        tab.locator(".grid:has(#words) .all").click()
        assert sorted(opened.column("words", 0)) == sorted(shown["word"])


def test_words_tell_tag_prediction_and_loss(browser: Any, tmp_path: Path, page: str, output: Path) -> None:
    rows = {row["example_id"]: row for row in inline.read_rows(output)}
    with Opened(browser, tmp_path, page, viewport={"width": 1000, "height": 700}) as opened:
        tab = opened.tab
        card = tab.locator("#worst ~ .cards > li").first
        row = rows[card.locator("h3").inner_text()]
        at = [i for i, label in enumerate(row["labels"]) if label != "IGN"]
        told = [
            f"label {row['labels'][i]}, predicted {row['predicted_label'][i]}, loss {row['loss'][i]:.2f}" for i in at
        ]
        tip = tab.locator("#tip")
        assert tip.is_hidden()
        card.locator(".t").last.hover()
        assert tip.inner_text() == told[-1]
        tab.mouse.move(0, 0)
        assert tip.is_hidden()
        # One tab stop a sentence, arrows inside it.
        assert card.locator(".t[tabindex='0']").count() == 1
        card.locator(".t[tabindex='0']").focus()
        tab.keyboard.press("Home")
        assert tip.inner_text() == told[0]
        for expected in told[1:]:
            tab.keyboard.press("ArrowRight")
            assert tip.inner_text() == expected
        assert tab.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1000
        tab.keyboard.press("Escape")
        assert tip.is_hidden()


def test_page_is_sound(browser: Any, tmp_path: Path, page: str) -> None:
    assert len(page.encode()) < 3_000_000
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", page)
    with Opened(browser, tmp_path, page) as opened:
        tab = opened.tab
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        for attribute in ("aria-labelledby", "aria-controls", "aria-describedby", "for"):
            named = tab.evaluate(
                f"[...document.querySelectorAll('[{attribute}]')].map(e => e.getAttribute('{attribute}'))"
            )
            assert {one for names in named for one in names.split()} <= set(ids)
        assert {a[1:] for a in tab.evaluate("[...document.links].map(a => a.getAttribute('href'))")} <= set(ids)
        assert tab.evaluate(
            "[...document.querySelectorAll('table')].every(t => t.caption || t.getAttribute('aria-labelledby'))"
        )
        assert tab.evaluate("[...document.querySelectorAll('th')].every(t => t.scope)")
        levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert tab.locator("main").count() == tab.locator("header").count() == tab.locator("nav").count() == 1
        unnamed = "[...document.querySelectorAll('button, a')].filter(e => !e.hidden && !e.innerText.trim()).length"
        assert tab.evaluate(unnamed) == 0
        assert tab.locator("input").count() == tab.locator("label").count()


def test_colours_have_contrast() -> None:
    """WCAG AA: 4.5 to 1 for text, on the page and on the strongest shading."""
    import tokloss_ray.report

    css = (Path(tokloss_ray.report.__file__).parent / "templates/report.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]
    assert len(schemes) == 3

    def channels(colour: str) -> np.ndarray:
        digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
        return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255

    def luminance(rgb: np.ndarray) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(a: np.ndarray, b: np.ndarray) -> float:
        dark, light = sorted((luminance(a), luminance(b)))
        return (light + 0.05) / (dark + 0.05)

    for scheme in schemes:
        of = {name: channels(colour) for name, colour in scheme.items()}
        for text in ("ink", "muted", "accent"):
            assert contrast(of[text], of["paper"]) >= 4.5
            assert contrast(of[text], of["soft"]) >= 4.5
        for share, ground in ((0.55, "soft"), (0.28, "paper")):
            assert contrast(of["ink"], share * of["shade"] + (1 - share) * of[ground]) >= 4.5


def test_without_script(browser: Any, tmp_path: Path, page: str) -> None:
    with Opened(browser, tmp_path, page, java_script_enabled=False) as opened:
        tab = opened.tab
        assert tab.locator("#words tbody tr:visible").count() == 500
        assert tab.locator(".tools:visible").count() == 0
        word = tab.locator(".t.x").first
        word.focus()
        assert "label" in word.get_attribute("data-tip")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser: Any, tmp_path: Path, page: str, scheme: str) -> None:
    with Opened(browser, tmp_path, page, viewport={"width": 360, "height": 740}, color_scheme=scheme) as opened:
        assert opened.tab.evaluate("document.documentElement.scrollWidth") == 360
        light = opened.tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", light))) > 382) == (scheme == "light")


def test_paper(browser: Any, tmp_path: Path, page: str) -> None:
    with Opened(browser, tmp_path, page, viewport={"width": 718, "height": 1040}, color_scheme="dark") as opened:
        opened.tab.emulate_media(media="print")  # A4 with the browser's margins is 718 pixels wide
        assert opened.tab.evaluate("document.documentElement.scrollWidth") <= 718
        assert (
            opened.tab.locator("nav:visible, button:visible, input:visible").count()
            == opened.tab.locator("th button:visible").count()
        )
        assert opened.tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert opened.tab.pdf(format="A4").startswith(b"%PDF")


HOSTILE = [
    "<script>alert(1)</script>", "</script><script>alert(2)</script>", '"><img src=x onerror=alert(3)>',
    "'onfocus='alert(4)", "\u202eevil\u202c", "nul\x00l", "a\u2066b\u2069", "{{ 7*7 }}",
    "{% raw %}", "<!--", "]]>", "&lt;b&gt;",
    "\u05e9\u05dc\u05d5\u05dd",
    "x" * 5000, "${alert(5)}", "`", "\\u003cscript\\u003e", "\x1b[31m", "javascript:alert(6)",
]  # fmt: skip


def test_text_from_the_corpus_stays_text(browser: Any, tmp_path: Path) -> None:
    tags = ["O", "B-<b>", "I-<b>", 'B-$x$"', "B-</script>"]
    rows = []
    for i, word in enumerate(HOSTILE):
        words = [word, "plain", *HOSTILE[max(i - 2, 0) : i]]
        rows.append({"id": f"<i>{i}</i>\u202e", "tokens": words, "ner_tags": [tags[i % 5]] * len(words)})
    rows.append({"id": "bad", "tokens": ["<script>alert(7)</script>"], "ner_tags": ["<u>\u202e"]})
    rows.append({"id": "bad2", "tokens": [], "ner_tags": []})
    out = write(tmp_path, tags, rows, max_error_rate=0.5, id_column="id")
    page = render(read_report_data(str(out)))
    assert len(re.findall(r"<script", page)) == 1
    assert len(re.findall(r"</script", page)) == 1
    invisible = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x00\x1b")
    assert not invisible & set(page)
    with Opened(browser, tmp_path, page) as opened:
        tab = opened.tab
        assert tab.locator("img, i, b:not(.suspects b), u, iframe, object").count() == 0
        tab.locator(".grid:has(#words) .all").click()
        words = opened.column("words", 0)
        assert {
            "<script>alert(1)</script>",
            "</script><script>alert(2)</script>",
            "\\u202eevil\\u202c",
            "nul\\u0000l",
        } <= set(words)
        assert {"{{ 7*7 }}", "&lt;b&gt;", '"><img src=x onerror=alert(3)>', "x" * 119 + "…"} <= set(words)
        assert "B-<b>" in opened.column("tags", 0)
        assert "B-<b>" in tab.locator("svg.chart").first.inner_html().replace("&lt;", "<").replace("&gt;", ">")
        assert {"unknown_tag", "empty"} == set(opened.tab.locator("#reasons tbody th").all_inner_texts())
        assert "<u>\\u202e" in tab.locator("#bad").inner_text()
        for word in tab.locator(".t").all()[:40]:
            word.focus()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_odd_corpora(browser: Any, tmp_path: Path) -> None:
    """One tag, no entities, no errors, pre-encoded rows, thousands of tags, slices."""
    words = {"id": "a", "tokens": ["one", "two", "three"]}
    one = write(tmp_path / "one", ["O"], [words | {"ner_tags": ["O", "O", "O"]}], id_column="id")
    parts = write(tmp_path / "pos", ["NOUN", "VERB"], [words | {"ner_tags": ["NOUN", "VERB", "NOUN"]}], id_column="id")
    encoded = write(tmp_path / "ids", TAGS, [{"input_ids": [5, 6, 7], "labels": [0, 1, -100]}])
    many = [f"{side}-T{i}" for i in range(1500) for side in "BI"]
    rows = [words | {"ner_tags": many[i : i + 3]} for i in range(0, 2997, 3)]
    lots = write(tmp_path / "lots", ["O", *many], rows, id_column="id")
    for name, out in {"one": one, "pos": parts, "ids": encoded, "lots": lots}.items():
        page = render(read_report_data(str(out)))
        assert len(page.encode()) < 3_000_000
        with Opened(browser, tmp_path, page) as opened:
            tags = opened.tab.locator("#tags tbody tr").count()
            assert tags == {"one": 1, "lots": 500}.get(name, tags)
            assert (opened.tab.locator("#entities").count() == 1) == (name in ("ids", "lots"))


def test_slices_and_conditions(output: Path, tmp_path: Path) -> None:
    tokens = mining_outputs.explode(output)
    page = render(read_report_data(str(output), by=["genre"], where=["genre!=none"]))
    table = page[page.index('<table id="slices"') :]
    table = table[: table.index("</table>")]
    for genre, of_genre in tokens.groupby("genre"):
        row = re.search(rf'<tr><th scope="row">{genre}</th>(.*?)</tr>', table)
        assert row
        cells = re.findall(r">([^<]+)</td>", row[1])
        assert cells[:2] == [f"{len(of_genre):,}", f"{of_genre['error'].sum():,}"]
        assert cells[3] == f"{of_genre['loss'].mean():.3f}"
    assert "Only rows where genre!=none" in page


def test_ids_that_the_tokenizer_has_no_string_for(tmp_path: Path) -> None:
    """A vocabulary is often smaller than the embedding, and pre-encoded input may use what is beyond it."""
    from transformers import AutoModelForTokenClassification

    model = models.build("bert", tmp_path / "model", [["Anna", "in", "Rom"]], TAGS)
    larger = AutoModelForTokenClassification.from_pretrained(model)
    beyond = larger.config.vocab_size
    larger.resize_token_embeddings(beyond + 8, mean_resizing=False)
    larger.save_pretrained(model)
    ids = [[2, beyond, beyond + 1, 5, beyond + 2 + i % 5, 3] for i in range(10)]
    rows = [{"input_ids": row, "labels": [-100, 1, 2, 0, i % 2, -100]} for i, row in enumerate(ids)]
    source = inline.write_jsonl(tmp_path / "rows.jsonl", rows)
    out = str(tmp_path / "out")
    scored = inline.score_inline(ScoreConfig(model=str(model), input=(str(source),), output=out)).rows
    assert all([i for i, token in enumerate(row["input_tokens"]) if token is None] == [1, 2, 4] for row in scored)
    for words in (["mine", out], ["report", out], ["show", out], ["show", out, "--issues"], ["diff", out, out]):
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
    with pytest.raises(Refused, match="scored from token ids"):
        export(out, str(tmp_path / "x.csv"), "csv")
    tables = mine(out, write=False)
    counts = {row["word"]: row["count"] for row in tables["words"].to_pylist()}
    assert counts == {None: 30, scored[0]["input_tokens"][3]: 10}
    assert tables["inconsistent"].num_rows == 0  # the known word has one label; the others are not one word
    spans = tables["entity_errors"].to_pylist() + tables["entity_issues"].to_pylist()
    assert {len(row["text"].split(" ")) == len(row["label_tags"]) for row in spans} == {True}
    page = Path(out, "report.html").read_text()
    assert re.search(r'<span class="t[^"]* m"[^>]*><span class="w">\?</span>', page)
