"""What is made of a model's files: the tokenizer that the stages get, and models that change under a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from tests.support import models
from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA
from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.model.files import ModelInfo, resolve_model
from tokloss_ray.model.store import find_model
from tokloss_ray.scoring.driver import check
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.stages.loading import load_model

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
    if not hasattr(Unigram, "alpha"):
        pytest.skip("tokenizers before 0.23 has no such option for Unigram models")
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


# Models that change under a run.


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of one size, with other weights."""
    folder = tmp_path_factory.mktemp("two")
    return [models.build("bert", folder / str(seed), SENTENCES[:50], TAGS, seed=seed) for seed in range(2)]


@pytest.fixture
def model(two_models: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_models[0], tmp_path / "model"))


@pytest.fixture
def other(two_models: list[Path], model: Path) -> bytes:
    """Weights as large as the model's."""
    weights = (two_models[1] / WEIGHTS).read_bytes()
    assert len(weights) == (model / WEIGHTS).stat().st_size
    assert weights != (model / WEIGHTS).read_bytes()
    return weights


WEIGHTS = "model.safetensors"


def job_of(model: Path, tmp_path: Path, **options: object) -> Job:
    config = ScoreConfig(model=str(model), input=str(DATA), output=str(tmp_path / "out"), limit=20, **options)
    return make_plan(preflight(config), gpu=False, bfloat16=False).job


def in_place(file: Path, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.write(data)


def with_old_times(file: Path, data: bytes) -> None:
    before = file.stat()
    in_place(file, data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def renamed(file: Path, data: bytes) -> None:
    new = file.with_name("new")
    new.write_bytes(data)
    os.replace(new, file)


@pytest.mark.parametrize("write", [in_place, with_old_times, renamed])
def test_a_model_that_was_overwritten_is_not_loaded(
    model: Path, other: bytes, tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    job = job_of(model, tmp_path)
    write(model / WEIGHTS, other)
    with pytest.raises(JobFailed, match=rf"the model in {model} has changed since the run began; restore the old"):
        load_model(job)


@pytest.mark.parametrize("write", [in_place, with_old_times, renamed])
def test_a_model_that_is_overwritten_while_it_loads(
    model: Path, other: bytes, tmp_path: Path, write: Callable[[Path, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(model, tmp_path)
    load = AutoModelForTokenClassification.from_pretrained

    def late(*args: object, **kwargs: object) -> object:
        loaded = load(*args, **kwargs)
        write(model / WEIGHTS, other)
        return loaded

    monkeypatch.setattr(AutoModelForTokenClassification, "from_pretrained", late)
    with pytest.raises(JobFailed, match="has changed since the run began"):
        load_model(job)


def test_a_loaded_model_does_not_change_with_its_file(model: Path, other: bytes, tmp_path: Path) -> None:
    """Loaded weights are windows on the file as long as nobody copies them."""
    job = job_of(model, tmp_path)
    weights = AutoModelForTokenClassification.from_pretrained(model).state_dict()
    expected = {name: weight.clone() for name, weight in weights.items()}
    loaded = load_model(job)
    in_place(model / WEIGHTS, other)
    found = loaded.state_dict()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


def test_the_same_model_with_other_times(model: Path, tmp_path: Path) -> None:
    """As a copy on another node has them."""
    job = job_of(model, tmp_path)
    (model / WEIGHTS).touch()
    load_model(job)
    copy = shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copy)
    load_model(replace(job, model=replace(job.model, name=str(copy))))
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    with pytest.raises(JobFailed, match="has changed"):
        load_model(replace(job, model=replace(job.model, name=str(copy))))


OWN_CODE = """
import torch
from transformers import BertForTokenClassification

class Own(BertForTokenClassification):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * FACTOR
        return output
"""


def test_code_of_a_model_is_part_of_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is run: without --trust-remote-code it changes nothing."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    settings = json.loads((model / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForTokenClassification": "own.Own"}
    (model / "config.json").write_text(json.dumps(settings))
    (model / "own.py").write_text(OWN_CODE.replace("FACTOR", "2"))
    job = job_of(model, tmp_path, trust_remote_code=True)
    assert type(load_model(job)).__name__ == "Own"
    config = {"model": str(model), "input": str(DATA), "output": str(tmp_path / "out"), "limit": 20}
    score_inline(ScoreConfig(**config, trust_remote_code=True))
    untrusted = resolved(model).content
    (model / "own.py").write_text(OWN_CODE.replace("FACTOR", "3"))
    with pytest.raises(JobFailed, match="has changed since the run began"):
        load_model(job)
    with pytest.raises(Refused, match=r"belongs to another run; it differs in model \(other files\)"):
        check(ScoreConfig(**config, trust_remote_code=True))
    assert resolved(model).content == untrusted != resolved(model, trust_remote_code=True).content
