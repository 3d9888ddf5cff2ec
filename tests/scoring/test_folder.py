"""Folders that cannot be the output, and outputs of another run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from tests.support.inline import score_inline, write_jsonl
from tests.support.tiny import (
    TAGS,
    Row,
    row,
)
from tokloss_ray import ScoreConfig


def test_output_of_another_run(
    refused: Callable[..., str], model: Path, good: Path, model_copy: Path, tmp_path: Path
) -> None:
    """What differs is named, and nothing is touched."""
    first = ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out"))
    score_inline(first)
    differences: list[tuple[Row, list[str]]] = [
        ({"max_length": 16}, ["max-length (32 there, 16 now)"]),
        ({"overflow": "truncate"}, ["overflow", '"window" there, "truncate" now']),
        ({"label_all_subtokens": True}, ["label-all-subtokens"]),
        ({"keep": ["lang"]}, ["keep"]),
        ({"dtype": "bfloat16"}, ["dtype", '"float32" there, "bfloat16" now']),
        ({"shard_tokens": 77}, ["shard-tokens"]),
        ({"limit": 2}, ["limit (null there, 2 now)"]),
        ({"tags": TAGS[::-1]}, ["tags"]),
    ]
    weights = safetensors.torch.load_file(model_copy / "model.safetensors")
    weights["classifier.bias"] += 1
    safetensors.torch.save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    differences.append(({"model": model_copy}, ["model (other files)"]))
    more = write_jsonl(tmp_path / "more.jsonl", [row("Anna", tags=["O"], lang="de")])
    differences.append(({"input": [str(good), str(more)]}, ["input (more.jsonl)"]))
    for settings, wanted in differences:
        message = refused(**settings)
        assert "belongs to another run; it differs in" in message
        assert "--overwrite" in message
        for words in wanted:
            assert words in message
        if settings.keys() != {"max_length"}:  # the overlap follows from it
            assert message.count(" there, ") <= 1, "no more than what differs"


def test_input_that_changed(refused: Callable[..., str], model: Path, good: Path, tmp_path: Path) -> None:
    score_inline(ScoreConfig(model=str(model), input=str(good), output=str(tmp_path / "out")))
    good.write_text(good.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert "it differs in input (good.jsonl)" in refused()


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_folder_with_other_files(refused: Callable[..., str], tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    message = refused(overwrite=overwrite)
    assert "not empty and not an output of tokloss (thesis.txt)" in message


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["{", "{}", '{"hello": 1}', "[]"])
def test_run_record_of_another_program(
    refused: Callable[..., str], tmp_path: Path, content: str, overwrite: bool
) -> None:
    """`--overwrite` empties only folders that this program made."""
    (tmp_path / "out" / "scores").mkdir(parents=True)
    (tmp_path / "out" / "scores" / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "out" / "_run.json").write_text(content, encoding="utf-8")
    assert "out" in refused(overwrite=overwrite)
    assert (tmp_path / "out" / "scores" / "mine.txt").exists()


def test_output_that_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "is a file" in refused(output=tmp_path / "file")


def test_output_and_input_inside_each_other(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    source = shutil.copy(good, tmp_path / "data" / "deep" / "in.jsonl")
    message = refused(input=tmp_path / "data", output=tmp_path / "data" / "out")
    assert "is inside the input folder" in message
    message = refused(input=source, output=tmp_path / "data")
    assert "--output" in message
