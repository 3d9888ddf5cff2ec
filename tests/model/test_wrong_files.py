"""Models and tokenizers that are refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from tests.support import models
from tests.support.inline import score_inline
from tests.support.tiny import (
    TAGS,
    Row,
)
from tokloss_ray import ScoreConfig


def test_no_model(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no model at" in refused(model=tmp_path / "nowhere")
    assert "no config.json" in refused(model=tmp_path)


def test_model_of_the_hub_that_cannot_be_had(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("Repository Not Found for url\nRequest ID: 1")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = refused(model="nobody/nothing")
    assert "nobody/nothing is neither a local folder nor available from the Hub" in message
    assert "Repository Not Found" in message


def test_model_that_is_not_for_token_classification(refused: Callable[..., str], model_copy: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(model_copy)
    transformers.BertForMaskedLM(config).save_pretrained(model_copy)
    message = refused(model=model_copy)
    assert "is a BertForMaskedLM, not a token-classification model" in message


def test_no_weights(refused: Callable[..., str], model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    assert "has no weights (*.safetensors)" in refused(model=model_copy)


def test_pickled_weights_only(refused: Callable[..., str], model_copy: Path, good: Path, tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(model_copy / "model.safetensors")
    (model_copy / "model.safetensors").unlink()
    torch.save(weights, model_copy / "pytorch_model.bin")
    message = refused(model=model_copy)
    assert "no safetensors weights" in message
    assert "--allow-pickle" in message
    config = ScoreConfig(model=str(model_copy), input=str(good), output=str(tmp_path / "out"), allow_pickle=True)
    assert score_inline(config).totals.scored_rows == 3


def test_tokenizer_of_another_model(refused: Callable[..., str], tmp_path: Path) -> None:
    """Its ids go beyond the embeddings."""
    words = [[f"wort{i}"] for i in range(400)]
    other = models.build("bert", tmp_path / "other", words, TAGS)
    message = refused(tokenizer=other)
    assert "the tokenizer has ids up to" in message
    assert "do not belong together" in message
    assert "--tokenizer" in message


def test_no_tokenizer(refused: Callable[..., str], model_copy: Path) -> None:
    """A folder with the model alone: nothing may be made up in the place of its vocabulary."""
    for file in model_copy.glob("*token*"):
        file.unlink()
    assert sorted(file.name for file in model_copy.iterdir()) == ["config.json", "model.safetensors"]
    message = refused(model=model_copy)
    assert "tokenizer" in message
    assert "--tokenizer" in message


def test_broken_tokenizer(refused: Callable[..., str], model_copy: Path) -> None:
    (model_copy / "tokenizer.json").write_text("{", encoding="utf-8")
    message = refused(model=model_copy)
    assert "no usable tokenizer" in message


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"max_length": 33}, ["--max-length 33", "32 positions"]),
        ({"max_length": 2}, ["--max-length 2", "no room", "2 special tokens"]),
        ({"overlap": 30}, ["--overlap 30", "less than the 30 tokens"]),
        ({"max_length": 10, "overlap": 8}, ["--overlap 8", "less than the 8 tokens"]),
    ],
)
def test_lengths_that_do_not_fit(refused: Callable[..., str], settings: Row, wanted: list[str]) -> None:
    message = refused(**settings)
    for words in wanted:
        assert words in message
