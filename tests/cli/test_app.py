"""What a person types and sees."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic.fields import FieldInfo
from rich.console import Console
from typer.testing import CliRunner

from tests.support import inline, models
from tokloss_ray import ScoreConfig, __version__
from tokloss_ray.cli import app as cli
from tokloss_ray.cli import score as score_command
from tokloss_ray.cli.options import option_type, setting_options
from tokloss_ray.cli.views import progress
from tokloss_ray.cli.views.figures import duration, size
from tokloss_ray.cli.views.summary import print_summary
from tokloss_ray.config import make_config
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused
from tokloss_ray.output.names import SUCCESS
from tokloss_ray.output.totals import RunSummary, Totals

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> inline.Inline:
    """A finished run over 80 real sentences."""
    folder = tmp_path_factory.mktemp("cli")
    table = pq.read_table(DATA)
    model = models.build("bert", folder / "model", table["tokens"].slice(0, 200).to_pylist(), TAGS)
    pq.write_table(table.slice(100, 80), folder / "in.parquet")
    settings = {"model": str(model), "input": str(folder / "in.parquet"), "id_column": "id", "shard_tokens": 400}
    return inline.score_inline(ScoreConfig(output=str(folder / "out"), partition_by=["lang"], **settings))


@pytest.fixture
def output(finished: inline.Inline) -> str:
    return finished.plan.job.output


def invoke(*words: str) -> str:
    result = CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "120"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_setting_is_an_option_with_help() -> None:
    text = " ".join(invoke("score", "--help").split())
    for name, field in ScoreConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
    for command in ("demo", "score", "check", "status", "show"):
        assert command in invoke("--help")
        assert "Usage" in invoke(command, "--help")


@pytest.mark.parametrize("command", ["", *(function.__name__.replace("_", "-") for function in cli.COMMANDS)])
def test_help_shows_types_as_people_write_them(command: str) -> None:
    """No types of Python's and no braces, in the whole of the help: `--keep COLUMN`, and nothing after a flag."""
    text = invoke(*[command] if command else [], "--help")
    assert not re.findall(r"<\w[^>]*>|\{[^}]*\}", text)
    for flag, metavar in re.findall(
        r"(--(?:verbose|partial|overwrite|issues|loss|common|help))\b(?: +-\w)? +(\S+) ", text
    ):
        assert metavar[0].isupper() or metavar.startswith("--no-"), (flag, metavar)


def test_a_new_setting_is_an_option() -> None:
    """Its field is all there is to write; its type says what the option takes."""
    new = {
        "colour": FieldInfo(annotation=Literal["red", "blue"], default="red", description="A colour."),
        "weights": FieldInfo(annotation=tuple[str, ...], default=()),
        "depth": FieldInfo(annotation=int | None, default=None),
    }
    made = {option.name: option.annotation for option in setting_options({**ScoreConfig.model_fields, **new})}
    colour, weights, depth = (made[name] for name in new)
    (_, shown), (_, listed), (_, number) = (get_args(annotation) for annotation in (colour, weights, depth))
    assert (shown.metavar, shown.help, shown.rich_help_panel) == (
        "red|blue", "A colour. [dim]\\[default: red][/]", "Other settings"
    )  # fmt: skip
    assert (get_args(weights)[0], listed.metavar, number.metavar) == (list[str] | None, "TEXT", "N")


def test_types_of_options() -> None:
    fields = ScoreConfig.model_fields
    types = {name: option_type(field.annotation) for name, field in fields.items()}
    assert {name for name, kind in types.items() if kind == list[str]} == {
        "input", "keep", "partition_by", "add_column", "label_map"
    }  # fmt: skip
    assert (types["tags"], types["actors"], types["max_length"], types["gpus_per_actor"]) == (str, str, int, str)
    assert (types["overwrite"], types["model"]) == (bool, str)


def test_options_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ScoreConfig] = []
    monkeypatch.setattr(score_command, "score_and_tell", seen.extend)
    settings = tmp_path / "score.yaml"
    settings.write_text(
        "model: m\ninput: [a, b]\noutput: o\nmax-length: 12\nkeep-probs: true\nadd-column: {split: dev}\n"
    )
    invoke("score", "--config", str(settings), "--max-length", "7", "--no-keep-probs", "--partition-by", "split")
    (config,) = seen
    assert (config.model, config.input, config.max_length, config.keep_probs) == ("m", ("a", "b"), 7, False)
    assert config.add_column == {"split": "dev"}
    assert config.partition_by == ("split",)


def test_a_misspelt_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--modle is not a setting"):
        make_config({"modle": "m", "input": "i", "output": "o"})


def test_show_the_worst(output: str, finished: inline.Inline) -> None:
    frame = pd.DataFrame(finished.rows).sort_values("total_loss", ascending=False)
    worst = frame["example_id"].head(2).tolist()
    text = invoke("show", output, "--worst", "2")
    headers = [line.split()[0] for line in text.splitlines() if "total loss" in line]
    assert headers == worst
    first = frame.iloc[0]
    body = [line.split() for line in text.split("total loss")[1].splitlines()[2:]]
    for token, label, predicted, loss in zip(
        first["input_tokens"], first["labels"], first["predicted_label"], first["loss"], strict=True
    ):
        line = body.pop(0)
        assert line[:2] == [token, label]
        assert len(line) == 2 if label == "IGN" else (line[2], line[4]) == (predicted, f"{loss:.2f}")


def test_show_by_id_and_by_token(output: str, finished: inline.Inline) -> None:
    row = finished.rows[7]
    assert row["example_id"] in invoke("show", output, "--id", row["example_id"])
    token = row["input_tokens"][1]
    count = sum(token in r["input_tokens"] or token in r["words"] for r in finished.rows)
    assert f"{count:,} sequence" in invoke("show", output, "--token", token)
    for words in (["--id", "nobody"], ["--token", "no such token"]):
        with pytest.raises(Refused, match=words[1]):
            invoke("show", output, *words)


def test_status(output: str, finished: inline.Inline) -> None:
    text = invoke("status", output)
    assert "finished" in text
    assert "80 of 80" in text
    mark = Path(output, SUCCESS)
    content = mark.read_bytes()
    last = Path(output, "_commits", sorted(p.name for p in Path(output, "_commits").iterdir())[-1])
    record = last.read_bytes()
    try:
        mark.unlink()
        last.unlink()
        text = invoke("status", output)
        assert "not finished" in text
        assert f"{finished.plan.units[-1].number:06d}" in text
    finally:
        mark.write_bytes(content)
        last.write_bytes(record)
    for command in ("status", "show"):
        with pytest.raises(Refused, match="not an output of tokloss"):
            invoke(command, str(Path(output).parent / "model"))


def test_summary_says_everything() -> None:
    totals = Totals(
        shards=2, rows=10, scored_rows=8, error_rows=2, sequences=9, tokens=100, labels=50, padded_tokens=125
    )
    totals.dropped_words, totals.errors = 3, {"empty": 2}
    totals.loss_by_tag = {"O": (40, 4.0), "B-X": (10, 20.0)}
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(console, RunSummary("out [1]", totals, 2, 61.0, 5.0, 1234.0, False, ()))
    text = console.export_text()
    for words in (
        "10  (2 in errors/)",
        "1,234",
        "0.800",
        "dropped words",
        "errors: empty",
        "2.0000",
        "out [1]",
        "show",
    ):
        assert words in text
    assert text.index("B-X") < text.index("O  ")


def test_progress_lines(
    finished: inline.Inline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere than on a terminal: a line now and then, with shards done and what is going on."""
    import time

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with progress.ProgressView(Console(stderr=True, force_terminal=False)) as view:
        view.planned(finished.plan, Totals(), {"000000-001.json": "its record is damaged"})
        for record in finished.records:
            view.committed(record)
            time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert "scoring shard 000000-001 again: its record is damaged" in lines
    assert any(f"{len(finished.records)} of about" in line and "tokens/s" in line for line in lines)


def test_durations_and_sizes() -> None:
    assert [duration(s) for s in (3.2, 89, 91, 5400, 7260, 200000)] == [
        "3 s", "89 s", "2 min", "1 h 30 min", "2 h 01 min", "2 days 7 h"
    ]  # fmt: skip
    assert [size(n) for n in (12, 1200, 3.5e6, 7e12)] == ["12 bytes", "1.2 kB", "3.5 MB", "7.0 TB"]


def test_version_and_help_do_not_wait_for_ray_or_torch() -> None:
    code = "import sys; sys.argv = ['tokloss', '--version']; from tokloss_ray.cli.app import main; main(); "
    code += "assert not {'ray', 'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_demo_leaves_other_results_alone(output: str) -> None:
    with pytest.raises(Refused, match="holds the results of another run"):
        CliRunner().invoke(cli.app, ["demo", "--output", output], catch_exceptions=False)
