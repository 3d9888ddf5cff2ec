"""PEFT adapters are merged into the model they belong to, and give what PEFT's own model gives, unmerged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, BertModel

from tests.support import reference
from tests.support.inline import score_inline, write_jsonl
from tests.support.tiny import SENTENCES, TAGS, row
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.model.files import resolve_model
from tokloss_ray.model.store import find_model


@pytest.fixture
def base(model: Path, tmp_path: Path) -> Path:
    """A model without a head and names of tags, as adapters are trained on, with its tokenizer."""
    folder = tmp_path / "base"
    BertModel.from_pretrained(model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if "label" not in k}))
    return folder


@pytest.fixture
def adapted(base: Path, tmp_path: Path) -> Any:
    """PEFT's model, saved as an adapter; its head and its steps change every result."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        whole = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(TAGS))
        lora = peft.LoraConfig(task_type=peft.TaskType.TOKEN_CLS, r=4, target_modules=["query", "value"])
        adapted = peft.get_peft_model(whole, lora).eval()
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "classifier" in name:
                torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    return adapted


def name_tags(folder: Path) -> None:
    """Save the configuration beside the adapter, as `model.config.save_pretrained` does."""
    settings = json.loads((folder.parent / "base" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"id2label": dict(enumerate(TAGS))}))


def settings_of(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ScoreConfig]:
    tags = [["B-PER", "O", "O", "B-LOC"], ["O", "O", "O", "I-PER"], ["B-PER", "O", "B-PER", "B-LOC"]]
    rows = [row(*words, tags=t) for words, t in zip(SENTENCES, tags, strict=True)]
    given = {"model": str(tmp_path / "adapter"), "input": (str(write_jsonl(tmp_path / "in.jsonl", rows)),)}
    return lambda **more: ScoreConfig(**given, output=str(tmp_path / "out"), **more)


@pytest.mark.parametrize("tags", ["beside the adapter", "as an option"])
def test_an_adapter_scores_as_peft_does(
    adapted: Any, base: Path, tmp_path: Path, config: Callable[..., ScoreConfig], tags: str
) -> None:
    if tags == "as an option":
        scored = score_inline(config(tags=tuple(TAGS)))
    else:
        name_tags(tmp_path / "adapter")
        scored = score_inline(config())
    tokenizer = AutoTokenizer.from_pretrained(base)
    for found in scored.rows:
        label_ids = [TAGS.index(label) for label in found["labels"] if label != "IGN"]
        expected = reference.reference_words(adapted, tokenizer, found["words"], label_ids)
        torch.testing.assert_close(torch.tensor(found["loss"]), torch.tensor(expected["loss"]), rtol=1e-4, atol=1e-4)
    assert scored.totals.scored_rows == len(SENTENCES)


def test_another_base_is_another_model(
    adapted: Any, base: Path, tmp_path: Path, config: Callable[..., ScoreConfig]
) -> None:
    name_tags(tmp_path / "adapter")
    first = score_inline(config()).plan.job.identity["model"]
    weights = safetensors.torch.load_file(base / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5] += 1
    safetensors.torch.save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert score_inline(config(overwrite=True)).plan.job.identity["model"] != first


@pytest.mark.usefixtures("adapted")
def test_adapters_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path, config: Callable[..., ScoreConfig]
) -> None:
    adapter = tmp_path / "adapter"

    def refusal() -> str:
        with pytest.raises(Refused) as caught:
            resolve_model(config(), find_model(str(adapter), None, "model"))
        return str(caught.value)

    assert "does not name its tags" in refusal()
    settings_of(adapter, peft_type="P_TUNING")
    assert "of the kind P_TUNING, which cannot be merged" in refusal()
    settings_of(adapter, peft_type="LORA", base_model_name_or_path=str(tmp_path / "gone"))
    assert "is an adapter, but: no base model at" in refusal()
    settings_of(adapter, base_model_name_or_path=None)
    assert "names no base_model_name_or_path" in refusal()
    settings_of(adapter, base_model_name_or_path=str(base))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'tokloss-ray[peft]'" in refusal()


def test_an_adapter_for_other_tags(adapted: Any, config: Callable[..., ScoreConfig]) -> None:
    with pytest.raises(JobFailed, match=r"cannot load the model in .*adapter: .*size mismatch for .*classifier"):
        score_inline(config(tags=(*TAGS, "I-LOC")))


def test_a_head_that_the_weights_do_not_show(model_copy: Path, good: Path) -> None:
    """A CRF is refused by its name, or by its weights, which transformers would leave out without a word."""
    config = ScoreConfig(model=str(model_copy), input=str(good), output=str(good.parent / "out"))
    weights = safetensors.torch.load_file(model_copy / "model.safetensors")
    weights["crf.transitions"] = torch.zeros(4, 4)
    safetensors.torch.save_file(weights, model_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(JobFailed, match=r"have a CRF \(crf.transitions\)"):
        score_inline(config)
    settings = json.loads((model_copy / "config.json").read_text())
    settings["architectures"] = ["BertCrfForTokenClassification"]
    (model_copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(Refused, match="loss of a CRF is of whole sentences"):
        resolve_model(config, find_model(str(model_copy), None, "model"))
