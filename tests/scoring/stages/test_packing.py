"""Sequences end to end: packs against plain loops, and which models may have them."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForTokenClassification
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from tests.long.model_families import sentences
from tests.support import families
from tests.support.families import PAD, TAGS
from tests.support.inline import Row, score_inline, write_jsonl
from tokloss_ray import ScoreConfig
from tokloss_ray.ragged import offsets_of
from tokloss_ray.schema import PACKED, PADDED
from tokloss_ray.scoring.stages.batching import fitting, plan_batches
from tokloss_ray.scoring.stages.packing import Packing, pack, round_up
from tokloss_ray.scoring.stages.packing_probe import find_packing
from tokloss_ray.scoring.stages.probe import Probe

lengths_of_rows = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths_of_rows, st.data(), st.sampled_from([None, PAD]))
def test_packs(lengths: list[int], data: st.DataObject, after: int | None) -> None:
    lengths_N = np.array(lengths)
    starts, total = offsets_of(lengths_N), sum(lengths)
    flat = np.array(data.draw(st.lists(st.integers(0, 9), min_size=total, max_size=total)), dtype=np.int32)
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True, min_size=1)))
    made = pack(flat, starts[:-1], lengths_N, rows, Packing(after))
    ids, positions = made.input_ids[0].tolist(), made.position_ids[0].tolist()
    assert made.starts.tolist() == [0, *np.cumsum(lengths_N[rows]).tolist()]
    assert made.longest >= lengths_N[rows].max()
    assert flat[made.at].tolist() == ids
    for row, begin, end in zip(rows, made.starts[:-1], made.starts[1:], strict=True):
        assert ids[begin:end] == flat[starts[row] : starts[row + 1]].tolist()
        counted = range(lengths[row])
        if after is not None:
            count = RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([ids[begin:end]]), after)
            counted = count[0].tolist()
        assert positions[begin:end] == list(counted)


@given(lengths_of_rows, st.integers(1, 200))
def test_packs_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    lengths_N = np.array(lengths)
    batches = plan_batches(lengths_N, budget, packed=True)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        total = lengths_N[batch].sum()
        assert total <= budget or len(batch) == 1
        assert following is None or total + lengths_N[following[0]] > budget, "a sequence more would have fitted"
        assert fitting(lengths_N[batch], budget, packed=True) == len(batch)


def test_the_longest_sequence_takes_few_values() -> None:
    assert [round_up(n) for n in (1, 128, 129, 512, 513)] == [128, 128, 256, 512, 1024]


# Which models.


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.make_tokenizer(tmp_path_factory.mktemp("tokenizer"), sentences(40)[0])


def found(model: Any, max_length: int = 80) -> Packing | None:
    job: Any = SimpleNamespace(
        embedding_rows=600, pad_token_id=PAD, max_length=max_length, tags=TAGS, model=SimpleNamespace(name="it")
    )
    return find_packing(model, Probe(job, torch.device("cpu")))


def load(name: str, folder: Path, tokenizer: Path, **settings: Any) -> Any:
    path = families.build(name, folder / name, tokenizer, **settings)
    return AutoModelForTokenClassification.from_pretrained(path).eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Any:
    return load("bert", tmp_path_factory.mktemp("bert"), tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_left_as_it_was(bert: Any, dtype: torch.dtype) -> None:
    model = copy.deepcopy(bert).to(dtype)
    assert found(model) == Packing(None)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_looks_at_all_tokens_is_not_packed(tmp_path: Path, tokenizer: Path) -> None:
    """ESM scales a sentence by its share of mask tokens: found because the probe has a row of special tokens."""
    assert found(load("esm", tmp_path, tokenizer)) is None
    assert found(load("esm", tmp_path / "without", tokenizer, token_dropout=False)) == Packing(PAD)


def test_a_window_that_only_the_mask_knows_is_found(bert: Any) -> None:
    """Attention that hides its window in the mask, which packed sequences have none of."""

    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = copy.deepcopy(bert), copy.deepcopy(bert.config)
            self.config.sliding_window = 200
            self.set_attn_implementation = self._set

        def _set(self, name: str) -> None:
            self.inner.set_attn_implementation(name)
            self.config._attn_implementation = name

        def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **inputs: Any) -> Any:
            inputs["position_ids"] = (torch.arange(input_ids.shape[1]) if attention_mask is not None else
                                      inputs["position_ids"]) % families.POSITIONS  # fmt: skip
            if attention_mask is not None:
                away = torch.arange(input_ids.shape[1])
                attention_mask = ((away[:, None] - away).abs() < 200)[None, None] & attention_mask[:, None, None].bool()
            inputs["position_ids"] = inputs["position_ids"].reshape(1, -1)
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, **inputs)

    assert found(Windowed(), max_length=190) == Packing(None), "a sequence never reaches beyond it"
    assert found(Windowed(), max_length=512) is None


def test_a_table_that_is_read_on_and_on_is_not_packed(bert: Any) -> None:
    """Positions along the whole pack, which a rotation makes no difference of, leave the table on a GPU."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = copy.deepcopy(bert), bert.config
            self.table = nn.Embedding(512, 4)
            self.set_attn_implementation = self.inner.set_attn_implementation

        def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
            self.table(torch.arange(input_ids.shape[1]))
            return self.inner(input_ids=input_ids, **inputs)

    assert found(Rotary()) is None


@pytest.mark.parametrize("broken", ["gone", "ignored"])
def test_without_what_transformers_offers_sequences_are_padded(
    bert: Any, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "gone":
        monkeypatch.setattr("transformers.AttentionInterface", None)
    else:
        monkeypatch.setattr(type(bert), "set_attn_implementation", lambda self, name: None)
    assert found(copy.deepcopy(bert)) is None


# What the job does with it.


def config(folder: Path, tokenizer: Path, rows: list[Row], **options: Any) -> ScoreConfig:
    model = folder / "roberta"
    if not model.exists():
        families.build("roberta", model, tokenizer)
    source = folder / "in.jsonl"
    if not source.exists():  # another version of a file is another input
        write_jsonl(source, rows)
    base = {"model": str(model), "tokenizer": str(tokenizer), "input": str(source), "id_column": "id"}
    return ScoreConfig(**base | {"tags": list(TAGS), "output": str(folder / "out")} | options)


def test_packed_results_do_not_depend_on_the_budget(tmp_path: Path, tokenizer: Path) -> None:
    rows = sentences(40)[1]
    kept = {"keep_probs": True, "shard_tokens": 2000}
    padded = score_inline(config(tmp_path, tokenizer, rows, output=str(tmp_path / "padded"), **kept))
    assert padded.totals.batching == PADDED, "on a CPU"
    for budget in (1, 200, 4000):
        options = kept | {"output": str(tmp_path / str(budget)), "batch_tokens": budget, "packing": "on"}
        run = score_inline(config(tmp_path, tokenizer, rows, **options))
        assert (run.totals.batching, run.totals.padding_efficiency) == (PACKED, 1.0)
        assert run.plan.job.fingerprint == padded.plan.job.fingerprint, "a setting of speed"
        for row, same in zip(run.rows, padded.rows, strict=True):
            assert row["predicted_label"] == same["predicted_label"]
            for name in ("loss", "predicted_prob", "second_prob"):
                np.testing.assert_allclose(row[name], same[name], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(np.array(row["probs"]), np.array(same["probs"]), atol=1e-4)


def test_rows_with_masks_of_their_own_are_padded(tmp_path: Path, tokenizer: Path) -> None:
    """Pre-encoded rows; those that mask nothing are packed, before and after."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for i, length in enumerate([5, 12, 30, 7, 19, 3]):
        ids = random.integers(PAD + 2, 200, length).tolist()
        mask = [1] * length if i not in (2, 3) else [1, 1, *[i % 2] * (length - 2)]
        rows.append({"id": str(i), "input_ids": ids, "attention_mask": mask, "labels": [1] * length})
    options = {"tags": None, "shard_tokens": 32}  # the masks are in one of the shards
    padded = score_inline(config(tmp_path, tokenizer, rows, output=str(tmp_path / "padded"), **options))
    packed = score_inline(config(tmp_path, tokenizer, rows, packing="on", **options))
    assert {record.batching for record in packed.records} == {PADDED, PACKED}
    for row, same in zip(packed.rows, padded.rows, strict=True):
        np.testing.assert_allclose(row["loss"], same["loss"], rtol=1e-4, atol=1e-4)
