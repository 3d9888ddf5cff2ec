"""Models whose answers depend on padding, on their neighbours or on chance: found, scored exactly, or refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForTokenClassification

from tests.long.model_families import DOCUMENT, sentences
from tests.support import families
from tests.support.families import PAD, TAGS
from tests.support.inline import Row, score_inline, write_jsonl
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.views.checks import print_estimate
from tokloss_ray.cli.views.summary import print_summary
from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.model.files import POSITIONS_AFTER_PAD
from tokloss_ray.output.totals import RunSummary
from tokloss_ray.schema import EQUAL_LENGTH, PADDED
from tokloss_ray.scoring.driver import check
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.scoring.sample import sample_rows
from tokloss_ray.scoring.stages.journal import Journal
from tokloss_ray.scoring.stages.probe import LONG, Probe, _content, find_batching, needs_mask
from tokloss_ray.scoring.stages.scorer import Scorer


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return sentences(40)[1]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.make_tokenizer(tmp_path_factory.mktemp("tokenizer"), sentences(40)[0])


def settings(model: Path, tokenizer: Path, folder: Path, rows: list[Row], **options: Any) -> ScoreConfig:
    source = write_jsonl(folder / "in.jsonl", rows)
    base = {"model": str(model), "tokenizer": str(tokenizer), "input": str(source), "output": str(folder / "out")}
    return ScoreConfig(**base | {"id_column": "id", "tags": list(TAGS), "max_error_rate": 0.5} | options)


# Every architecture.

UNLIKE = {
    "bert": "exact, packed",
    "roberta": "exact, packed",  # positions from behind the padding id
    "modernbert": "exact, packed",  # windows, rotary positions
    "deberta-v2": "exact",  # attention of its own
    "xlnet": "exact",
    "lilt": "exact",  # positions from behind the padding id
    "mpt": "exact",  # its limit has a name of its own
    "fnet": "equal-length",
    "funnel": "equal-length",
    "mobilebert": "equal-length",
    "convbert": "equal-length",
    "canine": "equal-length",
    "phi3, longrope": "equal-length",
    "big_bird": "exact",
    "big_bird, block-sparse": "refused",
    "bros": "refused",
}


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_architectures(name: str, tmp_path: Path, tokenizer: Path, rows: list[Row]) -> None:
    assert_outcome(families.outcome(name, tmp_path, tokenizer, rows), UNLIKE[name])


CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


def documented() -> dict[str, str]:
    table = DOCUMENT.read_text(encoding="utf-8").partition("| architecture |")[2]
    row = r"^\| ([^|]+) \| (exact|equal-length|refused|not made) \|[^|]*\|[^|]*\| (\S*) *\|"
    found = re.findall(row, table, flags=re.MULTILINE)
    return {name: f"{kind}, packed" if packed else kind for name, kind, packed in found}


def test_the_document_is_of_the_pinned_transformers() -> None:
    pinned = re.search(r"^transformers==(\S+)$", CONSTRAINTS.read_text(), flags=re.MULTILINE)
    assert pinned is not None
    assert f"that of transformers {pinned[1]}:" in DOCUMENT.read_text(encoding="utf-8"), "make models"


def test_the_document_has_every_architecture_of_the_installed_transformers() -> None:
    if f"that of transformers {transformers.__version__}:" not in DOCUMENT.read_text(encoding="utf-8"):
        pytest.skip("the document is of another version of transformers")
    assert list(documented()) == list(families.all_names()), "make models"
    assert Counter(documented().values())["exact, packed"] > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", list(families.all_names()))
def test_every_architecture(name: str, tmp_path: Path, tokenizer: Path, rows: list[Row]) -> None:
    assert_outcome(families.outcome(name, tmp_path, tokenizer, rows), documented()[name])


def assert_outcome(outcome: families.Outcome, kind: str) -> None:
    kind, _, packed = kind.partition(", ")
    assert outcome.kind == kind, outcome.why
    if kind in ("exact", "equal-length"):
        assert outcome.scored < families.LIMIT
    assert (outcome.packed is not None) == bool(packed)
    if packed:
        assert outcome.packed < families.LIMIT
    if kind == "equal-length":
        assert outcome.padded > 0.05  # or this would show nothing


def test_positions_behind_the_padding_id() -> None:
    """The tables of positions of all architectures tell which count from there."""
    counting = set()
    for name in families.ARCHITECTURES:
        with torch.device("meta"):
            try:
                config = families.tiny_config(name, vocab_size=100, pad_token_id=PAD, bos_token_id=1, eos_token_id=2)
                model = AutoModelForTokenClassification.from_config(config)
            except Exception:  # the document says of which architectures none can be made
                continue
        tables = [module for path, module in model.named_modules() if path.endswith("position_embeddings")]
        if any(getattr(table, "padding_idx", None) is not None for table in tables):
            counting.add(CONFIG_MAPPING[name].model_type)
    assert counting == POSITIONS_AFTER_PAD


# What the job does with what was found.


@pytest.fixture(scope="module")
def convbert(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return families.build("convbert", tmp_path_factory.mktemp("convbert"), tokenizer)


def test_losses_do_not_depend_on_the_budget(convbert: Path, tokenizer: Path, rows: list[Row], tmp_path: Path) -> None:
    found = []
    for budget in (1, 200, 4000):
        folder = tmp_path / str(budget)
        folder.mkdir()
        found.append(score_inline(settings(convbert, tokenizer, folder, rows, batch_tokens=budget)).rows)
    for other in found[1:]:
        for row, same in zip(found[0], other, strict=True):
            np.testing.assert_allclose(row["loss"], same["loss"], rtol=1e-4, atol=1e-4)


class Watched(nn.Module):
    """Notes the micro-batches that go through; `room` padded tokens fit."""

    def __init__(self, inner: nn.Module, room: int = 10**9) -> None:
        super().__init__()
        self.inner, self.room = inner, room
        self.shapes: list[tuple[int, ...]] = []
        self.padded = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if input_ids.numel() > self.room:
            torch.empty(1 << 50, dtype=torch.uint8)
        self.shapes.append(tuple(input_ids.shape))
        self.padded += int((attention_mask == 0).sum())
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def test_batches_of_one_length_stay_so_when_memory_runs_out(
    convbert: Path, tokenizer: Path, rows: list[Row], tmp_path: Path
) -> None:
    watched: list[Watched] = []

    def wrap(inner: nn.Module) -> Watched:
        watched.append(Watched(inner, room=100))
        return watched[-1]

    run = score_inline(settings(convbert, tokenizer, tmp_path, rows, batch_tokens=4000, overlap=8), wrap)
    assert run.totals.batch_tokens <= 100
    assert watched[0].padded == 0
    assert max(n for n, _ in watched[0].shapes) > 1
    assert families.largest_difference(convbert, run.rows) < families.LIMIT


def test_careful_passes_form_batches_of_one_length(
    convbert: Path, tokenizer: Path, rows: list[Row], tmp_path: Path
) -> None:
    config = settings(convbert, tokenizer, tmp_path, rows)
    plan = make_plan(preflight(config), gpu=False, bfloat16=False)
    scorer = Scorer(plan.job, 1)
    scorer.forward.model = watched = Watched(scorer.model)
    sequences = sample_rows(plan.job, plan.units).sequences
    assert sequences is not None
    journal = Journal(str(tmp_path / "journal.json"), groups=[[3, 4, 5, 6, 7], [9, 10]])
    scorer.score(sequences, journal)
    assert sum(n for n, _ in watched.shapes) == sequences.num_rows
    assert watched.padded == 0


def test_it_is_said(convbert: Path, tokenizer: Path, rows: list[Row], tmp_path: Path) -> None:
    config = settings(convbert, tokenizer, tmp_path, rows)
    plan, estimate = check(config)
    console = Console(record=True, width=200)
    print_estimate(console, plan, estimate)
    run = score_inline(config)
    assert {record.batching for record in run.records} == {EQUAL_LENGTH}
    print_summary(console, RunSummary("out", run.totals, 1, 1.0, None, None, False, ()))
    assert console.export_text().count("equally long sequences only") == 2


def test_check_refuses_before_work(tokenizer: Path, rows: list[Row], tmp_path: Path) -> None:
    bros = families.build("bros", tmp_path / "bros", tokenizer)
    with pytest.raises(Refused, match="You have to specify bbox"):
        check(settings(bros, tokenizer, tmp_path, rows))


def test_a_row_that_is_too_short_is_an_error(tokenizer: Path, rows: list[Row], tmp_path: Path) -> None:
    """Funnel's code fails on fewer than five tokens: a sentence of one word has three."""
    funnel = families.build("funnel", tmp_path / "funnel", tokenizer)
    run = score_inline(settings(funnel, tokenizer, tmp_path, rows))
    assert [(row["example_id"], row["reason"], row["stage"]) for row in run.errors] == [("short", "too_short", "score")]
    assert len({row["example_id"] for row in run.rows}) == len(rows) - 1


def test_one_thread_calls_a_model_that_keeps_something(tokenizer: Path, rows: list[Row], tmp_path: Path) -> None:
    streams = {}
    for name in ("funnel", "bert"):
        (tmp_path / name).mkdir()
        model = families.build(name, tmp_path / name / "model", tokenizer)
        plan = make_plan(preflight(settings(model, tokenizer, tmp_path / name, rows)), gpu=False, bfloat16=False)
        streams[name] = Scorer(plan.job, 2).streams
    assert streams == {"funnel": 1, "bert": 2}


# The probe by itself.


class Answers(nn.Module):
    """A stand-in for a model: `answer` makes logits [batch, sequence, tags] of embeddings and mask."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(1000, len(TAGS))
        self.config = SimpleNamespace()
        self.answer = answer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = self.answer(self.table(input_ids), attention_mask[..., None].to(self.table.weight.dtype))
        return SimpleNamespace(logits=logits)


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x + (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def next_token(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x + nn.functional.pad(x, (0, 0, 0, 1))[:, 1:]


def long_rows_only(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Blocks of 128: padding counts where there is more than one."""
    return x + x.mean(1, keepdim=True) if x.shape[1] > 128 else masked_mean(x, mask)


def batch_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x + x.mean((0, 1), keepdim=True)


def chance(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x + torch.randn_like(x)


def halved(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x[:, ::2]


def find(answer: Any, dtype: torch.dtype = torch.float32) -> str:
    job: Any = SimpleNamespace(
        embedding_rows=1000, pad_token_id=PAD, max_length=512, tags=TAGS, model=SimpleNamespace(name="it")
    )
    model = Answers(answer).to(dtype)
    return find_batching(model, Probe(job, torch.device("cpu")), lambda: Answers(answer).to(dtype)).kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("answer", "kind"), [(masked_mean, PADDED), (next_token, EQUAL_LENGTH), (long_rows_only, EQUAL_LENGTH)]
)
def test_probe(answer: Any, kind: str, dtype: torch.dtype) -> None:
    assert find(answer, dtype) == kind


def test_a_small_leak_shows_in_bfloat16_too() -> None:
    """A thousandth of the next token is less than bfloat16's rounding of the logits, and ten times the tolerance."""

    def leak(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x + 1e-3 * nn.functional.pad(x, (0, 0, 0, 1))[:, 1:]

    assert find(leak, torch.bfloat16) == EQUAL_LENGTH


@pytest.mark.parametrize(
    ("answer", "needs"),
    [
        (lambda x, mask: x if mask is None else x * mask, False),
        (lambda x, mask: x if mask is None else 2 * x * mask, True),
        (masked_mean, True),  # it fails without
    ],
)
def test_whether_a_mask_is_needed_where_it_masks_nothing(answer: Any, needs: bool) -> None:
    class Unmasked(Answers):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> Any:
            mask = None if attention_mask is None else attention_mask[..., None].float()
            return SimpleNamespace(logits=self.answer(self.table(input_ids), mask))

    job: Any = SimpleNamespace(
        embedding_rows=1000, pad_token_id=PAD, max_length=512, tags=TAGS, model=SimpleNamespace(name="it")
    )
    assert needs_mask(Unmasked(answer), Probe(job, torch.device("cpu"))) == needs


def test_no_mask_where_nothing_is_padded(convbert: Path, tokenizer: Path, rows: list[Row], tmp_path: Path) -> None:
    """As on a GPU: every micro-batch of equally long sequences, and results stay what they are."""
    plan = make_plan(preflight(settings(convbert, tokenizer, tmp_path, rows)), gpu=False, bfloat16=False)
    scorer = Scorer(plan.job, 1)
    sequences = sample_rows(plan.job, plan.units).sequences
    assert sequences is not None
    masked, _ = scorer.score(sequences)
    assert not scorer.maskless, "on a CPU"
    seen: list[Any] = []
    scorer.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["attention_mask"]), with_kwargs=True
    )
    scorer.maskless = True
    unmasked, _ = scorer.score(sequences)
    assert set(seen) == {None}
    for one, other in zip(masked.column("loss").to_pylist(), unmasked.column("loss").to_pylist(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 100])
def test_rounding_is_no_difference(scale: float) -> None:
    """Large logits lose more digits, and an added batch dimension changes the order of sums."""

    def noisy(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return scale * masked_mean(x, mask) * (1 + 1e-7 * x.shape[0])

    assert find(noisy) == PADDED


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (batch_mean, "if another, equally long one is in its batch"),
        (chance, "gives other results each time"),
        (halved, "17 x 7 logits, but 33 x 7 are expected"),
    ],
)
def test_probe_refuses(answer: Any, sentence: str) -> None:
    with pytest.raises(JobFailed, match=sentence):
        find(answer)


def test_longrope_beyond_the_longest_row_tried() -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 2 * LONG}
    job: Any = SimpleNamespace(
        embedding_rows=1000, pad_token_id=PAD, max_length=4 * LONG, tags=TAGS, model=SimpleNamespace(name="it")
    )
    model = Answers(masked_mean)
    model.config = SimpleNamespace(rope_parameters=rope)
    probe = Probe(job, torch.device("cpu"))
    assert find_batching(model, probe, lambda: model)[::2] == (EQUAL_LENGTH, False)
    job.max_length = LONG
    assert find_batching(model, probe, lambda: model).kind == PADDED


def test_out_of_reach_positions_are_found_in_the_model(
    tokenizer: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture that `POSITIONS_AFTER_PAD` lacks, as one of tomorrow may."""
    monkeypatch.setattr("tokloss_ray.model.files.POSITIONS_AFTER_PAD", set())
    model = families.build("roberta", tmp_path / "model", tokenizer)
    usable = families.POSITIONS - PAD - 1
    plan = make_plan(preflight(settings(model, tokenizer, tmp_path, rows)), gpu=False, bfloat16=False)
    with pytest.raises(JobFailed, match=f"use --max-length {usable}"):
        Scorer(plan.job, 1)


@pytest.mark.parametrize("counter", ["_version", "a_name_that_torch_does_not_have"])
def test_a_change_in_place_shows(counter: str) -> None:
    """Also where torch's private counter is gone."""
    tensor = torch.ones(3)
    before = _content(tensor, counter)
    assert _content(tensor, counter) == before
    tensor[1] = 2
    assert _content(tensor, counter) != before
