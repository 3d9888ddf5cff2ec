"""Nothing from a corpus, a model or a file's name reaches the terminal as a control character."""

from __future__ import annotations

import io
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support import inline, models
from tokloss_ray import ScoreConfig
from tokloss_ray.cli import app as cli
from tokloss_ray.cli import terminal
from tokloss_ray.cli.views.checks import print_estimate, print_status
from tokloss_ray.cli.views.progress import ProgressView
from tokloss_ray.cli.views.summary import print_summary
from tokloss_ray.errors import TokLossError
from tokloss_ray.output.status import read_status
from tokloss_ray.output.totals import RunSummary
from tokloss_ray.scoring.estimate import Estimate
from tokloss_ray.text import visible

BAD = "\x1b[31m[/]\x07\x9b2J\u202e"
"""Colour, markup, a bell, a one-character control sequence, right to left."""
NAME = BAD.replace("[", "").replace("/]", "")  # for files: brackets make a pattern


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> inline.Inline:
    folder = tmp_path_factory.mktemp("text")
    tags = ["O", f"B-{BAD}", f"I-{BAD}"]
    words = [f"Anna{BAD}", "in", "Rom"]
    model = models.build("bert", folder / "model", [words], tags)
    rows = [
        {"id": f"{BAD}{i}", "tokens": words, "tags": [tags[1], "O", tags[1 - i % 2]], "genre": f"{BAD}\n{i % 2}"}
        for i in range(6)
    ]
    rows.append({"id": f"{BAD}x", "tokens": words, "tags": ["none", "O", "O"], "genre": "g"})
    source = inline.write_jsonl(folder / f"in{NAME}.jsonl", rows)
    return inline.score_inline(
        ScoreConfig(
            model=str(model), input=(str(source),), output=str(folder / "out"), id_column="id", keep=("genre",),
            max_error_rate=0.5,
        )
    )  # fmt: skip


def controls(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([*words])
    found = capsys.readouterr()
    return int(end.value.code or 0), found.out + found.err


def test_commands(run: inline.Inline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.plan.job.output
    damaged = shutil.copytree(out, tmp_path / f"out{NAME}")
    next((damaged / "errors").glob("*.parquet")).unlink()
    file = str(tmp_path / f"x{NAME}.csv")
    source = str(run.plan.units[0].parts[0].path)
    shown = 0
    for code, words in (
        (0, ["mine", out, "--by", "genre"]),
        (0, ["mine", out, "--where", "genre!=g"]),
        (0, ["show", out]),
        (0, ["show", out, "--issues"]),
        (0, ["show", out, "--label", f"B-{BAD}"]),
        (0, ["status", str(damaged)]),
        (1, ["verify", str(damaged)]),
        (0, ["diff", out, str(damaged), "--by", "genre"]),
        (0, ["export", out, "-f", "csv", "-o", file]),
        (0, ["apply-fixes", file, "--to", source, "-o", str(tmp_path / f"new{NAME}.jsonl")]),
        (0, ["report", out, "-o", file.replace("csv", "html")]),
        # Refusals
        (2, ["mine", out, "--by", BAD]),
        (2, ["show", out, "--id", BAD]),
        (2, ["show", out, "--token", BAD]),
        (2, ["export", out, "-f", "csv", "-o", file + "2", "--id", BAD]),
        (2, ["export", out, "-f", "csv", "-o", file]),
        (2, ["apply-fixes", file, "--to", str(Path(source).parent / "none"), "-o", file + "3"]),
        (2, ["status", str(tmp_path / f"none{BAD}")]),
    ):
        end, text = said(capsys, *words)
        assert end == code, (words, text)
        assert controls(text) == [], words
        shown += "\\u001b" in text
    assert shown > 12


def test_an_error_quotes_an_id_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(TokLossError(f"two rows have the id {BAD}\nerror: all is well"))
    lines = capsys.readouterr().err.split("\n")
    assert lines == [f"error: two rows have the id {visible(BAD)}\\u000aerror: all is well", ""]


def test_traces_keep_their_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(terminal._speech, "verbose", True)
    terminal.say(TokLossError("it failed", f"one\n  two {BAD}"))
    assert capsys.readouterr().err == f"error: it failed\none\n  two {visible(BAD)}\n"


def test_what_a_run_says(run: inline.Inline) -> None:
    out = run.plan.job.output + BAD
    view: dict[str, Any] = {"file": io.StringIO(), "width": 200}
    console = Console(**view)
    run.plan.warnings.append(BAD)
    print_estimate(console, run.plan, Estimate(100.0, 2.0, "padded"))
    print_summary(console, RunSummary(out, run.totals, 1, 1.0, 1.0, 1.0, True, [BAD]))
    print_status(console, read_status(run.plan.job.output))
    with ProgressView(console) as progress:
        progress.planned(run.plan, run.totals, {f"{BAD}.json": BAD})
    text = view["file"].getvalue()
    assert controls(text) == []
    assert text.count(visible(BAD)) >= 8
