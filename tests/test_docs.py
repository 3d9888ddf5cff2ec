"""What README.md and docs/ quote of the program is what the program says, and examples run.

Every ```console block is run: lines after `$ ` are commands, the others are output. They must be among what the command
prints, in this order; lines may be left out. A comment before a block prepares or excuses it:

    <!-- scene: NAME -->        the function NAME below sets the folder up first
    <!-- captions: NAME -->     the same, but only titles and headings are compared, not figures
    <!-- not run: REASON -->    only its `error:` lines are looked up in the package
    <!-- prints -->             not a command: the output of the ```python block before it
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tokloss_ray
from tests.support.inline import score_inline
from tokloss_ray import RunSummary, ScoreConfig, TokLossError
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.scoring import driver

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.md"
"""Run as a whole, by tests/end_to_end/test_tutorial.py."""
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page != TUTORIAL)]
VARIES = re.compile(r"[\d.,]+(?= (?:s|min|tokens/s|kB|MB)\b)")
"""Figures that differ between machines: times, rates and sizes."""


class Block(NamedTuple):
    """A fenced block: its language, its lines, and what the comment before it says."""

    page: str
    line: int
    language: str
    note: str
    lines: list[str]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    note, opened = "", None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened = Block(page.name, number, line.strip("` "), note, [])
        elif opened is not None and line.startswith("```"):
            yield opened
            note, opened = "", None
        elif opened is not None:
            opened.lines.append(line)
        elif line.strip():
            comment = re.fullmatch(r"<!-- (.*) -->", line)
            note = comment[1] if comment else ""


ALL = [block for page in PAGES for block in blocks(page)]
CONSOLE = [block for block in ALL if block.language == "console"]


def named(found: list[Block]) -> Any:
    return pytest.mark.parametrize("block", found, ids=lambda block: block.where)


# The folder that the docs speak of.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokloss demo` has been run in it (without Ray), and there are a model and some rows to score."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my-model").symlink_to(MODEL)
    (folder / "panx_de_validation.parquet").symlink_to(DATA)
    rows = pq.read_table(DATA, columns=["id", "tokens", "ner_tags"]).slice(0, 300).to_pylist()
    tags = json.loads((MODEL / "config.json").read_text())["id2label"]
    with open(folder / "news.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            print(json.dumps(row | {"ner_tags": [tags[str(tag)] for tag in row["ner_tags"]]}), file=file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "120")

        patch.setattr(driver, "score", score_here)
        said = run(["demo"])
    (folder / "demo.txt").write_text(said, encoding="utf-8")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a block may write: what `place` has is linked."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def score_here(configs: ScoreConfig | Sequence[ScoreConfig], watcher: object = None) -> RunSummary | list[RunSummary]:
    """`score` without the seconds that Ray takes."""
    if not isinstance(configs, ScoreConfig):
        return [score_here(config) for config in configs]  # type: ignore[misc]
    return RunSummary(configs.output, score_inline(configs).totals, 1, 1.0, 1.0, 1.0, False, ())


def run(words: list[str]) -> str:
    """What a command prints, standard error first, as `main` would have it."""
    # Verbose, or they would take standard error away from the tests.
    loud = ["--verbose"] if words[0] in ("demo", "score", "check") else []
    result = CliRunner().invoke(app, [*words, *loud])
    error = ""
    if isinstance(result.exception, TokLossError):
        error = f"error: {result.exception}\n"
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stderr + result.stdout + error


# Scenes.


def interrupted(folder: Path) -> None:
    """The run of score.yaml was interrupted after two shards."""
    from datasets import Dataset, DatasetDict

    (settings,) = (block for block in ALL if block.language == "yaml" and "score.yaml" in block.lines[0])
    (folder / "score.yaml").write_text("\n".join(settings.lines), encoding="utf-8")
    rows = Dataset(pq.read_table(DATA).slice(0, 4000))
    DatasetDict({"validation": rows}).save_to_disk("my-dataset", num_shards={"validation": 2})
    done = 0

    def stop(record: object) -> None:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt

    from tokloss_ray.config import make_config, read_yaml

    with pytest.raises(KeyboardInterrupt):
        score_inline(make_config(read_yaml("score.yaml")), committed=stop)


def corrected(folder: Path) -> None:
    """Somebody has gone through worst.csv and given de-val-4526 other tags."""
    run(shlex.split("export tokloss-demo --format csv --worst 100 -o worst.csv"))
    frame = _read_sheet()
    frame.loc[frame["example_id"] == "de-val-4526", "corrected"] = "O"
    frame.to_csv("worst.csv", index=False, encoding="utf-8-sig")


def misspelt(folder: Path) -> None:
    """A word has been changed too."""
    corrected(folder)
    frame = _read_sheet()
    frame.loc[(frame["example_id"] == "de-val-4526") & (frame["word_index"] == "0"), "word"] = "Schwandorfer"
    frame.to_csv("worst.csv", index=False, encoding="utf-8-sig")


def _read_sheet() -> pd.DataFrame:
    return pd.read_csv("worst.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig")


def other_model(folder: Path) -> None:
    """Two outputs of the same rows, with which anything may be the case."""
    rows = pq.read_table("panx_de_validation.parquet").slice(0, 60)
    pq.write_table(rows, "rows.parquet")
    (folder / "tokloss-demo").unlink()
    for output, tags in (("short", "O,B-PER,I-PER,B-ORG,I-ORG,B-LOC,I-LOC"), ("tokloss-demo", None)):
        length = {"max_length": 12} if tags else {}
        score_inline(
            ScoreConfig(model="my-model", input="rows.parquet", output=output, id_column="id", tags=tags, **length)
        )


def disputed(folder: Path) -> None:
    """Anna has accepted the first three suggestions and kept a label; Ben would rather keep the third label."""
    from tokloss_ray.review.issues import Filter
    from tokloss_ray.review.session import Review

    _own_copy(folder)
    for reviewer, actions in (("anna", ("accept", "accept", "accept", "keep")), ("ben", ("accept", "accept", "keep"))):
        review = Review("tokloss-demo", reviewer)
        for item, action in zip(review.next(Filter(), 0, 4)["items"], actions, strict=False):
            review.decide(action, [tuple(item["key"])], None, 2.0)
        review.close()


def audited(folder: Path) -> None:
    """Somebody has gone through 400 issues: by rank, whatever ends in n is right; at random, all but one."""
    _own_copy(folder)
    with tokloss_ray.open_review("tokloss-demo", "anna") as review:
        drawn = 0
        for issue in review.issues(limit=400):
            drawn += issue.drawn
            right = drawn != 7 if issue.drawn else issue.words[issue.word_index].endswith("n")
            review.keep(issue) if right else review.accept(issue)


def _own_copy(folder: Path) -> None:
    """A mined copy of the demo's output, to be written into."""
    demo = (folder / "tokloss-demo").resolve()
    (folder / "tokloss-demo").unlink()
    shutil.copytree(demo, "tokloss-demo")
    run(["mine", "tokloss-demo", "--show", "0"])


SCENES: dict[str, Callable[[Path], None]] = {
    "interrupted": interrupted,
    "corrected": corrected,
    "misspelt": misspelt,
    "other model": other_model,
    "disputed": disputed,
    "audited": audited,
}


# The comparison.


def same(quoted: str, said: str) -> bool:
    """Whether two lines agree, word by word; numbers with a fraction nearly, as rounding differs between machines."""
    ours, theirs = VARIES.sub("N", quoted).split(), VARIES.sub("N", said).split()
    return len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(quoted: str, said: str) -> bool:
    if quoted == said:
        return True
    try:
        return "." in quoted and math.isclose(float(quoted), float(said), rel_tol=1e-3, abs_tol=0.011)
    except ValueError:
        return False


def missing(quoted: list[str], said: str) -> str | None:
    """The first quoted line that does not follow in `said`."""
    lines = iter(said.splitlines())
    for line in quoted:
        if line.strip() in ("", "..."):
            continue
        if not any(same(line, other) for other in lines):
            return line
    return None


def test_comparison() -> None:
    said = "rows  10,000\ntokens 5\ntime  1.2 s on this machine (9,119 tokens/s)\nO  0.0499\n"
    assert missing(["rows 10,000", "...", "time  3 s on this machine (1 tokens/s)", "O 0.0494"], said) is None
    assert missing(["rows 10,001"], said) == "rows 10,001"
    assert missing(["tokens 5", "rows 10,000"], said) == "rows 10,000"
    assert missing(["O  0.0699"], said) == "O  0.0699"


def test_commands_with_output_are_checked() -> None:
    """A block with a prompt is a console block, and each comment before one means something."""
    for block in ALL:
        prompts = any(line.startswith("$ ") for line in block.lines)
        assert prompts == (block.language == "console"), block.where
        kind, _, name = block.note.partition(": ")
        assert kind not in ("scene", "captions") or name in SCENES, block.where
    assert len(CONSOLE) >= 8


@named([block for block in CONSOLE if not block.note.startswith("not run")])
def test_console_block(block: Block, here: Path, ray_session: None) -> None:
    kind, _, scene = block.note.partition(": ")
    if kind in ("scene", "captions"):
        SCENES[scene](here)
    commands: list[tuple[str, list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            commands.append((line.removeprefix("$ "), []))
        else:
            assert commands, f"{block.where}: output of no command"
            commands[-1][1].append(line)
    for command, quoted in commands:
        program, *words = shlex.split(command, comments=True)
        assert program == "tokloss", block.where
        said = (here / "demo.txt").read_text(encoding="utf-8") if words == ["demo"] else run(words)
        if kind == "captions":
            quoted = [line for line in quoted if not re.search(r"\d", line)]
        lost = missing(quoted, said)
        assert lost is None, f"{block.where} quotes {lost!r}, but {command} prints\n{said}"


def _literals() -> set[str]:
    """The string literals of the package, also those that are parts of f-strings."""
    found = set()
    for path in Path(tokloss_ray.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_errors_that_no_block_runs_into() -> None:
    """Errors quoted in blocks that are not run end as a sentence of the package does."""
    errors = [
        (b.where, line) for b in CONSOLE for line in b.lines if line.startswith("error: ") and "not run" in b.note
    ]
    literals = [text for text in _literals() if len(text) > 20]
    assert errors
    for where, line in errors:
        assert any(line.endswith(text) for text in literals), f"{where}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks(page: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run, one after the other, and print what the page says."""
    monkeypatch.setattr(driver, "score", score_here)
    names: dict[str, Any] = {}
    said = None
    for block in blocks(page):
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n".join(block.lines), block.where, "exec"), names)
            said = printed.getvalue()
        elif block.note == "prints":
            assert said is not None
            lost = missing(block.lines, said)
            assert lost is None, f"{block.where} quotes {lost!r}, but the example prints\n{said}"


PUBLIC = {name: getattr(tokloss_ray, name) for name in tokloss_ray.__all__ if name != "__version__"}


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if not isinstance(thing, type)])
def test_docstrings_say_what_goes_in_and_out(name: str) -> None:
    thing = PUBLIC[name]
    sections = [f"\n    {title}:\n" for title in ("Args", "Returns", "Raises")]
    at = [thing.__doc__.find(section) for section in sections]
    assert -1 not in at
    assert at == sorted(at)
    described = thing.__doc__[at[0] : at[1]]
    for argument in inspect.signature(thing).parameters:
        assert re.search(rf"^        (\w+, )*{argument}(, \w+)*: ", described, re.MULTILINE), argument


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_examples(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "score", score_here)
    if name in ("open_review", "estimate"):
        _own_copy(here)
    (example,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    assert example.examples or name == "RunSummary"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
