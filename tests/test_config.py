"""Settings from arguments, text and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokloss_ray.config import ScoreConfig, make_config, make_configs, read_yaml
from tokloss_ray.errors import Refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"actors": "two"}, "--actors: expected N or MIN,MAX"),
        ({"actors": "3,2"}, "--actors"),
        ({"max_error_rate": 2}, "--max-error-rate"),
        ({"dtype": "float8"}, "--dtype"),
        ({"keep": ["loss"]}, "loss: reserved column name"),
        ({"add_column": ["novalue"]}, "--add-column: expected NAME=VALUE"),
        ({"tags": "A,A"}, "duplicate name"),
        ({"colour": 1}, "--colour is not a setting"),
        ({"input": []}, "--input: give at least one input"),
    ],
)
def test_settings_that_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        make_config({"model": "m", "input": "i", "output": "o"} | settings)
    assert "\n" not in str(caught.value)


def test_settings_from_text() -> None:
    config = make_config(
        {
            "model": "m",
            "input": "i",
            "output": "o",
            "actors": "2,4",
            "tags": "O,B-X",
            "add_column": ["a=b=c"],
            "keep": "x,y",
        }
    )
    assert config.actors == (2, 4)
    assert config.tags == ("O", "B-X")
    assert config.add_column == {"a": "b=c"}
    assert config.keep == ("x", "y")
    with pytest.raises(Refused, match="--output is required"):
        make_config({"model": "m", "input": "i"})


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("model: [a, b", ["config.yaml is not valid YAML"]),
        ("- model\n- input\n", ["config.yaml must contain a mapping"]),
        ("modell: x\nmodel: m\ninput: i\noutput: o\n", ["--modell is not a setting", "--help"]),
        ("model: m\noutput: o\n", ["--input is required"]),
        ("model: m\ninput: i\noutput: o\nactors: 0\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nactors: 4,2\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nactors: many\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nactors: 1,2,3\n", ["--actors: expected N or MIN,MAX"]),
        ("model: m\ninput: i\noutput: o\nmax-error-rate: 2\n", ["--max-error-rate", "less than or equal to 1"]),
        ("model: m\ninput: i\noutput: o\ndtype: float8\n", ["--dtype", "'float32'"]),
        ("model: m\ninput: i\noutput: o\nshard-tokens: lots\n", ["--shard-tokens", "integer"]),
        ("model: m\ninput: []\noutput: o\n", ["--input: give at least one input"]),
        ("model: m\ninput: i\noutput: o\nadd-column: lang\n", ["--add-column"]),
    ],
)
def test_wrong_settings_in_a_file(tmp_path: Path, content: str, wanted: list[str]) -> None:
    (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(Refused) as caught:
        make_config(read_yaml(str(tmp_path / "config.yaml")))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    for words in wanted:
        assert words in str(caught.value)


def test_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot read the configuration file .*nowhere\.yaml: No such file"):
        read_yaml(str(tmp_path / "nowhere.yaml"))


SEVERAL = {"input": "i", "output": "out"}


@pytest.mark.parametrize(
    ("settings", "outputs"),
    [
        ({"model": "a/b"}, ["out"]),
        ({"model": ["a/b"]}, ["out"]),
        ({"model": ["runs/step-1", "runs/step-2/"]}, ["out/step-1", "out/step-2"]),
        ({"model": ["org/ner", "s3://bucket/models/x"], "output": "s3://bucket/out/"},
         ["s3://bucket/out/ner", "s3://bucket/out/x"]),
        ({"model": ["a/best", "b/best"], "output": ["x", "y"]}, ["x", "y"]),
        ({"model": "org/ner", "revision": ["r1", "r2"], "output": ["x", "y"]}, ["x", "y"]),
    ],
)  # fmt: skip
def test_where_several_models_write(settings: dict, outputs: list[str]) -> None:
    configs = make_configs({**SEVERAL, **settings})
    assert [config.output for config in configs] == outputs
    assert configs == ScoreConfig.several(**SEVERAL | settings)


def test_settings_of_each() -> None:
    """A value for each run, in order, or one for all."""
    a, b = make_configs(
        {**SEVERAL, "model": ["x/a", "x/b"], "labels_column": ["ner", "pos"], "tokenizer": "t", "keep": ["k"]}
    )
    assert [(c.model, c.labels_column, c.tokenizer, c.revision, c.keep) for c in (a, b)] == [
        ("x/a", "ner", "t", None, ("k",)), ("x/b", "pos", "t", None, ("k",))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ["a/best", "b/best"]}, "--output: two runs would write to out/best; give one output for each"),
        ({"model": ["a", "b"], "revision": ["1", "2", "3"]}, "--model: 2 values, but revision has 3; give one for all"),
        ({"model": ["a", "b"], "labels_column": ["x"] * 3}, "--model: 2 values, but labels_column has 3"),
    ],
)
def test_values_that_do_not_pair(settings: dict, words: str) -> None:
    with pytest.raises(Refused, match=words):
        make_configs({**SEVERAL, **settings})


def test_one_run_has_one_model() -> None:
    with pytest.raises(Refused, match=r"--model: one value; ScoreConfig\.several takes one for each run"):
        make_config({**SEVERAL, "model": ["a", "b"]})
