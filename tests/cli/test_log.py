"""The log for machines: each line parses, has the fields that are promised, and the last one tells the outcome."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import inline, warm
from tests.support.tiny import row
from tokloss_ray import ScoreConfig, stopping
from tokloss_ray.cli import log, terminal
from tokloss_ray.cli import score as score_command
from tokloss_ray.cli.views import events
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.errors import JobFailed
from tokloss_ray.output.totals import RunSummary
from tokloss_ray.scoring import begin, driver

ROOT = Path(__file__).parents[2]


def parsed(text: str) -> list[dict[str, Any]]:
    """The lines of a log, each checked against the contract."""
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    for line in lines:
        assert list(line)[:3] == ["time", "level", "event"]
        assert sorted(list(line)[3:]) == sorted(log.EVENTS[line["event"]])
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
        assert line["level"] in ("info", "warning", "error")
    return lines


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to standard output while a machine reads; afterwards people do again."""
    stream = io.StringIO()
    monkeypatch.setattr(log._State, "stream", stream)
    monkeypatch.setattr(stopping._State, "last_words", None)
    return stream


def test_the_page_lists_every_event_and_field() -> None:
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page.split("## A log")[1].split("\n## ")[0], re.MULTILINE)
    said = {event: tuple(re.findall(r"`(\w+)`", fields)) for event, fields in rows}
    assert said == log.EVENTS


def test_the_page_lists_every_stage() -> None:
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    used = re.findall(
        r'"((?:checking|connecting|starting|computing|retrying) [\w ]+)"', Path(begin.__file__).read_text()
    )
    (said,) = re.findall(r"^Stages: (.*?)\.$", page, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([^`]+)`", " ".join(said.split()))) == {*used, "retrying lost shards"}


def test_a_whole_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines say what its records say, its shards add up to the summary, and nothing else is printed."""
    rows = [row("Anna", "wohnt", tags=["B-PER", "O"]), row("Anna", tags=["no such tag"])] * 40
    source = inline.write_jsonl(tmp_path / "in.jsonl", rows)
    done = run(source, shard_tokens=60, max_error_rate=1.0)
    done.plan.warnings.append("\x1b[31m bell \x07")

    def score(configs: tuple[ScoreConfig, ...], view: Any) -> list[RunSummary]:
        print("chatter of a raylet")
        view.stage("starting the model")
        view.planned(done.plan, inline.Totals(), {"000000-001.json": "its record is damaged"})
        for record in done.records:
            view.committed(record)
        view.retrying("Ray gave some shards up")
        return [RunSummary(configs[0].output, done.totals, len(done.records), 2.0, float("nan"), 10.0, False, ())]

    monkeypatch.setattr(driver, "score", score)
    monkeypatch.setattr(log._State, "stream", None)
    monkeypatch.setattr(stopping._State, "last_words", None)
    score_command.score_and_tell((ScoreConfig(model="m", input="i", output="o", log_format="json", verbose=True),))
    said = capsys.readouterr()
    lines = parsed(said.out)
    assert said.err == "chatter of a raylet\n"
    assert "\x07" not in said.out
    by_event = {line["event"]: line for line in lines}
    assert list(by_event) == ["start", "stage", "plan", "warning", "again", "commit", "retry", "summary"]
    commits = [line for line in lines if line["event"] == "commit"]
    assert len(commits) == len(done.records) > 1
    summary = by_event["summary"]
    for name in ("rows", "error_rows", "tokens", "padded_tokens", "memory_splits", "storage_retries"):
        assert summary[name] == sum(line[name] for line in commits) == getattr(done.totals, name), name
    assert summary["errors"] == {"unknown_tag": 40}
    assert summary["first_commit_seconds"] is None  # JSON has no NaN
    assert by_event["plan"]["run"] == done.plan.job.fingerprint
    assert by_event["warning"]["message"] == "\x1b[31m bell \x07"
    assert [line["level"] for line in lines if line["event"] in ("warning", "again", "retry")] == ["warning"] * 3


def test_silence_is_broken(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that commits nothing for long still says that it is there."""
    monkeypatch.setattr(events, "PROGRESS_SECONDS", 0.02)
    with events.EventView():
        deadline = time.monotonic() + 10
        while out.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = parsed(out.getvalue())
    assert [line["event"] for line in lines][:3] == ["start", "progress", "progress"]
    assert lines[1]["stage"] == "starting"
    assert lines[1]["tokens_per_second"] is None


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["score", "--log-format", "json"], {}, True),
        (["check", "--log-format=json", "-m", "x"], {}, True),
        (["score", "--log-format", "json", "--log-format", "text"], {}, False),
        (["score"], {log.VARIABLE: "json"}, True),
        (["score", "--log-format", "text"], {log.VARIABLE: "json"}, False),
        (["score", "-m"], {}, False),
        (["score", "--log-format"], {}, False),
        (["score", "--", "--log-format", "json"], {}, False),
        (["mine", "out"], {log.VARIABLE: "json"}, False),
        ([], {log.VARIABLE: "json"}, False),
    ],
)
def test_who_reads(words: list[str], environment: dict[str, str], expected: bool, out: io.StringIO) -> None:
    log.choose(words, environment)
    assert log.is_json() is expected


def test_settings_win_over_the_environment(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log.VARIABLE, "json")
    assert (log.use("text"), log.is_json()) == (None, False)
    assert (log.use(None), log.is_json()) == (None, True)
    monkeypatch.setenv(log.VARIABLE, "yaml")
    assert log.use("json") is None
    assert "TOKLOSS_LOG_FORMAT is 'yaml': set it to text or json" in str(log.use(None))


def test_a_reader_that_is_gone_does_not_end_the_job(out: io.StringIO) -> None:
    out.close()
    log.say("stage", stage="scoring")


def test_lines_of_several_threads_stay_whole(out: io.StringIO) -> None:
    threads = [
        threading.Thread(target=lambda: [log.say("stage", stage="x" * 10_000) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(parsed(out.getvalue())) == 200


def test_traces_only_where_they_are_asked_for(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    for verbose in (False, True):
        monkeypatch.setitem(terminal._speech, "verbose", verbose)
        terminal.say(JobFailed("it failed", "one\ntwo"))
    lines = parsed(out.getvalue())
    assert [(line["message"], line["exit_code"], line["detail"]) for line in lines] == [
        ("it failed", 1, None), ("it failed", 1, "one\ntwo")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "-m", "MODEL", "-i", "nowhere.jsonl", "-o", "OUT", "--log-format", "json"], "does not exist"),
        (["check", "-m", "MODEL", "-i", "nowhere.jsonl", "-o", "OUT", "--log-format=json"], "does not exist"),
        (["score", "--modell", "x", "--log-format=json"], "--modell"),
        (["score", "--actors", "3,1", "-m", "m", "-i", "i", "-o", "o", "--log-format=json"], "--actors: expected"),
        (["score", "--config", "CONFIG"], "--model is required"),
    ],
)
def test_refusals(words: list[str], message: str, model: Path, tmp_path: Path) -> None:
    """Whatever is wrong, and however early: lines that parse on standard output, and nothing on standard error."""
    (tmp_path / "c.yaml").write_text("log-format: json\ninput: x\noutput: y\n", encoding="utf-8")
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out"), "CONFIG": str(tmp_path / "c.yaml")}
    done = warm.tokloss(*[places.get(word, word) for word in words])
    lines = parsed(done.stdout)
    assert (done.returncode, done.stderr) == (2, "")
    assert (lines[-1]["event"], lines[-1]["exit_code"]) == ("error", 2)
    assert message in lines[-1]["message"]


def test_check(model: Path, good: Path, tmp_path: Path) -> None:
    environment = os.environ | {log.VARIABLE: "json"}
    done = warm.tokloss("check", "-m", model, "-i", good, "-o", tmp_path / "out", env=environment)
    lines = parsed(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line["event"] for line in lines] == ["start", "estimate"]
    assert (lines[-1]["estimated_rows"], lines[-1]["files"]) == (3, 1)


ENDED = """
import os, signal, sys
from tokloss_ray import __main__, stopping
from tokloss_ray.scoring import driver
stopping.PATIENCE = 0.3

def score(config, view):
    view.stage("starting the model")
    os.kill(os.getpid(), getattr(signal, sys.argv.pop()))
    if sys.argv.pop() == "stuck":  # as in C, where Python handles no signal
        import threading
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
        stopping._State.held += 1
        while True:
            try:
                threading.Event().wait(9)
            except BaseException:
                pass
    while True:
        pass
driver.score = score
__main__.main(["score", "-m", "m", "-i", "i", "-o", "o", "--log-format", "json"])
"""


@pytest.mark.parametrize(("how", "number"), [("free", "SIGINT"), ("free", "SIGTERM"), ("stuck", "SIGTERM")])
def test_signals(how: str, number: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDED, how, number], capture_output=True, text=True, timeout=60, check=False
    )
    code = 128 + signal.Signals[number]
    lines = parsed(done.stdout)
    assert (done.returncode, done.stderr) == (code, "")
    assert [line["event"] for line in lines] == ["start", "stage", "error"]
    assert (lines[-1]["exit_code"], "interrupted" in lines[-1]["message"]) == (code, True)


@pytest.mark.slow
def test_a_run_on_ray_that_is_interrupted_and_resumed(tmp_path: Path) -> None:
    """As people run it: Ctrl-C after the first shard, and the same command again."""
    words = ["score", "-m", str(MODEL), "-i", str(DATA), "-o", str(tmp_path / "out"), "--log-format", "json"]
    command = [sys.executable, "-m", "tokloss_ray", *words, "--limit", "3000", "--shard-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if '"commit"' in line:
                process.send_signal(signal.SIGINT)
                break
        rest, error = process.communicate(timeout=120)
    lines = parsed(said + rest)
    assert (process.returncode, error) == (130, "")
    assert (lines[-1]["event"], lines[-1]["exit_code"]) == ("error", 130)
    assert "committed shards are kept" in lines[-1]["message"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    lines = parsed(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    (plan,) = (line for line in lines if line["event"] == "plan")
    assert plan["done_shards"] > 0
    assert lines[-1]["event"] == "summary"
    new = sum(line["event"] == "commit" for line in lines)
    assert (lines[-1]["new_shards"], lines[-1]["shards"]) == (new, plan["done_shards"] + new)
