"""What is made of a model's files: the tokenizer that the stages get, and models that change under a run."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.model_files import ModelInfo, resolve_model
from tokloss_ray.model_store import find_model

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SENTENCES: list[list[str]] = pq.read_table(DATA, columns=["tokens"])["tokens"].slice(0, 300).to_pylist()


def resolved(model: Path, **options: object) -> ModelInfo:
    config = ScoreConfig(model=str(model), input="none", output="none", **options)
    return resolve_model(config, find_model(str(model), None, "model"))


def tokens_of(info: ModelInfo) -> list[list[str]]:
    tokenizer = Tokenizer.from_str(info.tokenizer_json)
    encodings = tokenizer.encode_batch(SENTENCES, is_pretokenized=True)
    return [encoding.tokens for encoding in encodings]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a byte-level BPE that transformers loads as it is saved."""
    return models.build("modernbert", tmp_path_factory.mktemp("model"), SENTENCES, TAGS)


def test_dropout_of_a_tokenizer_is_switched_off(byte_level: Path) -> None:
    without = resolved(byte_level)
    file = byte_level / "tokenizer.json"
    before = file.read_text(encoding="utf-8")
    content = json.loads(before)
    content["model"]["dropout"] = 0.5
    file.write_text(json.dumps(content), encoding="utf-8")
    info = resolved(byte_level)
    file.write_text(before, encoding="utf-8")
    assert tokens_of(info) == tokens_of(info) == tokens_of(without)
    assert info.tokenizer_content == without.tokenizer_content
    assert [w for w in info.warnings if "dropout 0.5" in w and "switched off" in w]
    assert not [w for w in without.warnings if "dropout" in w]


def test_sampling_of_a_unigram_tokenizer_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not saved by today's `tokenizers`, but code of a tokenizer can ask for it."""
    model = models.build("xlm-roberta", tmp_path / "model", SENTENCES, TAGS)
    without = resolved(model)

    def sampling(*args: object, **kwargs: object) -> PreTrainedTokenizerFast:
        tokenizer = load(*args, **kwargs)
        tokenizer.backend_tokenizer.model.alpha = 0.1
        return tokenizer

    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", sampling)
    info = resolved(model)
    assert tokens_of(info) == tokens_of(without)
    assert [w for w in info.warnings if "alpha 0.1" in w]
