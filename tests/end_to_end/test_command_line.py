"""The command line: the exit code, one sentence on standard error, nothing on standard output."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import transformers

from tests.support import warm


def one_sentence(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    assert done.returncode == exit_code, done.stderr[-2000:]
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("checking input")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("command", ["score", "check"])
def test_command_line_no_such_file(model: Path, tmp_path: Path, command: str) -> None:
    done = warm.tokloss(command, "-m", model, "-i", tmp_path / "nowhere.jsonl", "-o", tmp_path / "out")
    assert "nowhere.jsonl does not exist" in one_sentence(done, 2)


def test_command_line_missing_setting(good: Path) -> None:
    assert "--model is required" in one_sentence(warm.tokloss("score", "-i", good, "-o", "out"), 2)


def test_command_line_bad_actors(model: Path, good: Path, tmp_path: Path) -> None:
    done = warm.tokloss("score", "-m", model, "-i", good, "-o", tmp_path / "out", "--actors", "3,1")
    assert "--actors: expected N or MIN,MAX" in one_sentence(done, 2)


def test_command_line_bad_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: [", encoding="utf-8")
    assert "not valid YAML" in one_sentence(warm.tokloss("score", "--config", tmp_path / "c.yaml"), 2)


def test_command_line_unknown_option() -> None:
    done = warm.tokloss("score", "--modell", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--modell" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_line_not_a_token_classifier(model_copy: Path, good: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(model_copy)
    transformers.BertForMaskedLM(config).save_pretrained(model_copy)
    done = warm.tokloss("check", "-m", model_copy, "-i", good, "-o", tmp_path / "out")
    assert "BertForMaskedLM, not a token-classification model" in one_sentence(done, 2)


def test_command_line_unreachable_cluster(model: Path, good: Path, tmp_path: Path) -> None:
    """Nobody listens there: that is said within a minute, and not waited for."""
    done = warm.tokloss(
        "score", "-m", model, "-i", good, "-o", tmp_path / "out", "--address", "127.0.0.1:1", timeout=60
    )
    assert "no Ray cluster at 127.0.0.1:1" in one_sentence(done, 2)
    assert not (tmp_path / "out").exists()
