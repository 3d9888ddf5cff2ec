"""Compiled once for all sizes, and not at all where that cannot be; the graphs are counted, and not made to kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from tests.long.model_families import sentences
from tests.support import families, inline
from tests.support.families import TAGS
from tests.support.inline import Inline, Row, score_inline, write_jsonl
from tokloss_ray import ScoreConfig
from tokloss_ray.scoring.stages import compiling
from tokloss_ray.scoring.stages.compiling import PAYS, pays
from tokloss_ray.scoring.stages.forward import DeviceBatch, Forward


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither models nor graphs of other tests, and none left for them."""
    monkeypatch.setattr(inline, "_models", {})
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.make_tokenizer(tmp_path_factory.mktemp("tokenizer"), sentences(40)[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return families.build("roberta", tmp_path_factory.mktemp("roberta"), tokenizer)


class Counting:
    """A compiler that counts what it is given, and leaves it as it is."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def run(model: Path, tokenizer: Path, folder: Path, rows: list[Row], **options: Any) -> Inline:
    folder.mkdir()
    source = write_jsonl(folder / "in.jsonl", rows)
    base = {"model": str(model), "tokenizer": str(tokenizer), "input": str(source), "output": str(folder / "out")}
    return score_inline(ScoreConfig(**base | {"id_column": "id", "tags": list(TAGS)} | options))


def assert_same(one: Inline, other: Inline) -> None:
    for row, same in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose(row["loss"], same["loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packing", ["on", pytest.param("off", marks=pytest.mark.slow)])
def test_one_graph_for_all_sizes(
    packing: str, model: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches of many sizes, the last ones of one sequence."""
    rows = sentences(40)[1]
    plain = run(model, tokenizer, tmp_path / "plain", rows)
    monkeypatch.setattr(compiling, "BACKEND", compiler := Counting())
    compiled = run(model, tokenizer, tmp_path / "compiled", rows, compile="on", packing=packing, batch_tokens=100)
    assert compiler.graphs == 1
    assert compiled.totals.compiled == "yes"
    assert compiled.plan.job.identity.keys() == plain.plan.job.identity.keys()
    assert_same(compiled, plain)


@pytest.mark.slow
def test_what_the_graph_is_not_for_runs_without_it(
    model: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with masks of their own are padded among packs, and compiled for that neither once nor many times."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for i, length in enumerate([5, 12, 30, 7, 19, 3]):
        ids, mask = random.integers(5, 200, length).tolist(), [1] * length
        if i in (2, 3):
            mask[-1] = 0
        rows.append({"id": str(i), "input_ids": ids, "attention_mask": mask, "labels": [1] * length})
    options = {"tags": None, "shard_tokens": 32}
    plain = run(model, tokenizer, tmp_path / "plain", rows, **options)
    monkeypatch.setattr(compiling, "BACKEND", compiler := Counting())
    mixed = run(model, tokenizer, tmp_path / "mixed", rows, compile="on", packing="on", **options)
    assert {record.batching for record in mixed.records} == {"padded", "packed"}
    assert compiler.graphs == 1
    assert_same(mixed, plain)


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no C++ compiler\nand so on")


def wrong(graph: Any, inputs: Any) -> Any:
    return lambda *given: tuple(x.flip(0) for x in graph.forward(*given))


class Output(NamedTuple):
    logits: torch.Tensor


class Table(nn.Module):
    """The smallest model there is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return Output(self.table(input_ids) * (1 + attention_mask[..., None]))


class TwoSizes(Table):
    """It branches on a size."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = super().forward(input_ids, attention_mask).logits
        return Output(logits * 2 if input_ids.shape[1] > 5 else logits)


SIZES = (4, 5), (3, 9)  # of which 10 and 14 tokens that are not padding


def padded(rows: int, length: int) -> DeviceBatch:
    ids = torch.arange(rows * length).reshape(rows, length) % 50
    where = torch.arange((rows * length + 1) // 2) * 2
    return DeviceBatch(ids, torch.ones_like(ids), where, where % 3)


@pytest.mark.parametrize(
    ("backend", "model", "why"),
    [
        (broken, Table, "no: backend='broken' raised: RuntimeError: no C++ compiler"),
        (wrong, Table, "no: it answers otherwise when it is compiled"),
        (Counting(), TwoSizes, "no: Detected recompile"),
        (Counting(), Table, "yes"),
    ],
)
def test_what_cannot_be_compiled_is_used_as_it_is(
    backend: Any, model: type[Table], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", backend)
    forward = Forward(model())
    answers = [forward(padded(*size)) for size in SIZES]
    assert forward.compile([padded(*size) for size in SIZES], 3).startswith(why)
    for size, answer in zip(SIZES, answers, strict=True):
        assert forward(padded(*size)).tolist() == answer.tolist()
    if isinstance(backend, Counting):
        assert backend.graphs == 1


def test_when_it_pays() -> None:
    """Embedding tables are read, not multiplied with."""
    base = nn.Sequential(nn.Embedding(30_000, 768), *(nn.Linear(768, 768) for _ in range(144)))
    tokens = int(PAYS / (2 * 144 * 768 * 769))
    assert pays(base, tokens + 1)
    assert not pays(base, tokens - 1)


@pytest.mark.slow
def test_with_the_real_compiler(model: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are written where the next process finds them."""
    monkeypatch.setenv("TOKLOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    rows = sentences(40)[1]
    plain = run(model, tokenizer, tmp_path / "plain", rows)
    compiled = run(model, tokenizer, tmp_path / "compiled", rows, compile="on", packing="on")
    assert compiled.totals.compiled == "yes"
    assert list((tmp_path / "cache" / "inductor").rglob("*.so"))
    assert_same(compiled, plain)
