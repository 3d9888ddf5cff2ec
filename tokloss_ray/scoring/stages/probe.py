"""Which sequences may share a micro-batch: asked of the model itself when it is loaded, with a few made-up rows.

Most models answer a sequence the same whether it is alone or padded in a batch, for they mask the padding in attention
and do everything else token by token. Some do not: convolutions, pooling and Fourier transforms mix the padding in, and
losses then depend on what else is in the batch. Such models get batches of equally long sequences. Where that does not
help either, as with random hashing, the model is refused: no loss of it could be repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tokloss_ray.errors import JobFailed
from tokloss_ray.ragged import offsets_of
from tokloss_ray.schema import EQUAL_LENGTH, PADDED
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.stages.batching import pad

SHORT, LONG, LONGEST = (33, 18, 9, 3), 160, 1024
"""Tokens of the rows: usual sentences, odd and even, with one token and with many to be padded, the shortest there is;
a row that is longer than attention windows, blocks and kernels usually are; and one beyond the length at which
block-sparse attention is switched on."""
_TOLERANCE = 1e-4
_LOW_PRECISION = 0.1
"""What losses may differ by in float32, absolutely and relatively; and, for models that are too large to be probed in
it, root mean square over a row against the spread of its log-probabilities."""
_MOST_COPIED = 600_000_000
"""Parameters up to which a model of low precision is copied in float32, where rounding hides nothing."""


class Batching(NamedTuple):
    """How a model is to be called.

    Attributes:
        kind: `PADDED` or `EQUAL_LENGTH`.
        shortest: tokens of the shortest sequence it answers.
        shared: whether several threads may call it: it keeps nothing of a call that the next one would find.
    """

    kind: str
    shortest: int
    shared: bool


class Probe:
    """Made-up rows, the same for the same job, and a model's answers to them."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device = job, device
        self.ids = np.setdiff1d(np.arange(max(2, job.embedding_rows)), [job.pad_token_id])
        self.short = [self.row(n) for n in SHORT]
        self.long = self.row(LONG)

    def row(self, length: int, seed: int = 0) -> np.ndarray:
        """A row of so many tokens, or as many as a sequence may have; another one with another seed."""
        random = np.random.default_rng((seed, length))
        return random.choice(self.ids, max(1, min(length, self.job.max_length)))

    def __call__(self, model: nn.Module, *rows: np.ndarray, mask: bool = True) -> list[torch.Tensor]:
        """Logits of some rows in one micro-batch, without padding: float32 [tokens, classes] of each.

        mask: give the model an attention mask, as usual.

        Raises:
            JobFailed: it does not answer, or not with logits for each token.
        """
        lengths = np.array([len(row) for row in rows])
        starts = offsets_of(lengths)[:-1]
        batch = pad(np.concatenate(rows), None, starts, lengths, np.arange(len(rows)), self.job.pad_token_id)
        ids_BL = torch.from_numpy(batch.input_ids).to(self.device)
        mask_BL = torch.from_numpy(batch.attention).to(self.device) if mask else None
        name = self.job.model.name
        try:
            with torch.inference_mode():
                logits_BLC = model(input_ids=ids_BL, attention_mask=mask_BL).logits.float()
        except Exception as error:  # a model's code raises what it likes
            cause = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise JobFailed(
                f"the model in {name} fails on a sequence of {lengths.max()} token ids and an attention mask, "
                f"the only inputs it gets: {cause}"
            ) from error
        if logits_BLC.shape != (*ids_BL.shape, len(self.job.tags)):
            raise JobFailed(
                f"the model in {name} returns {' x '.join(map(str, logits_BLC.shape[1:]))} logits, but "
                f"{lengths.max()} x {len(self.job.tags)} are expected: one per tag for each token"
            )
        return [logits_BLC[i, :n] for i, n in enumerate(lengths.tolist())]

    def padded(self, model: nn.Module) -> torch.Tensor:
        """Logits of the short rows, all in one micro-batch."""
        return torch.cat(self(model, *self.short))


def find_batching(model: nn.Module, probe: Probe, reload: Callable[[], nn.Module]) -> Batching:
    """How a loaded model is to be called. `reload` gives it as it was before any call.

    Raises:
        JobFailed: it does not answer, its answers cannot be repeated, or its positions do not reach.
    """
    _check_positions(model, probe.job)
    subject = in_float32(model)
    exact = is_float32(subject)
    before = dict(_state(subject))
    first = probe(subject, probe.short[0])
    kind = PADDED if _may_be_padded(subject, probe, exact) else EQUAL_LENGTH
    changed = [key for key, value in _state(subject) if before.get(key, _state) != value]
    if changed and _remembers(in_float32(reload()), probe):
        raise JobFailed(
            f"the model in {probe.job.model.name} gives other results for long sequences after a short one (its "
            f"{changed[0].rpartition('.')[2]} changes), so losses would depend on the order of the work: "
            f"a smaller --max-length may avoid this"
        )
    if not all_same(probe(subject, probe.short[0]), first, exact, sure=True):
        raise JobFailed(
            f"the model in {probe.job.model.name} gives other results each time, as random hashing does: "
            f"its losses are not reproducible"
        )
    settled = dict(_state(subject))
    probe(subject, probe.short[1])
    shared = settled == dict(_state(subject))
    if _switches_with_length(model.config, probe.job.max_length):
        kind, shared = EQUAL_LENGTH, False
    if kind == PADDED:
        return Batching(PADDED, 1, shared)
    _check_equally_long(subject, probe, exact)
    return Batching(EQUAL_LENGTH, _shortest(subject, probe), shared)


def needs_mask(model: nn.Module, probe: Probe) -> bool:
    """Whether a model that gets no attention mask answers otherwise than with one that masks nothing.

    Without one, attention takes its fastest kernels; with one, a model looks for padding in it, and waits for a GPU.
    """
    exact = is_float32(model)
    try:
        for row in (probe.short[0], probe.short[-2], probe.long):
            pair = row, probe.row(len(row), seed=1)
            if not all_same(probe(model, *pair, mask=False), probe(model, *pair), exact):
                return True
    except JobFailed:
        return True
    return False


def _may_be_padded(model: nn.Module, probe: Probe, exact: bool) -> bool:
    """Whether rows have the losses in a padded batch that they have alone."""
    try:
        alone = [probe(model, row)[0] for row in probe.short]
    except JobFailed:
        probe(model, probe.short[-2])  # or else it is not for being short
        return False
    if not all_same(probe(model, *probe.short), alone, exact):
        return False
    return all_same(probe(model, probe.long, probe.short[1]), [probe(model, probe.long)[0], alone[1]], exact)


def _check_equally_long(model: nn.Module, probe: Probe, exact: bool) -> None:
    """Rows must have the losses among equally long ones that they have alone.

    Raises:
        JobFailed: they do not.
    """
    for row in (*probe.short[:-1], probe.long):
        pair = row, probe.row(len(row), seed=1)
        if not all_same(probe(model, *pair), [probe(model, one)[0] for one in pair], exact, sure=True):
            raise JobFailed(
                f"the model in {probe.job.model.name} gives other results for a sequence if another, equally long one "
                f"is in its batch: its losses are not reproducible"
            )


def _shortest(model: nn.Module, probe: Probe) -> int:
    """Tokens of the shortest sequence that a model answers."""
    for length in range(1, SHORT[-2]):
        try:
            probe(model, probe.row(length))
        except JobFailed:
            continue
        return length
    return SHORT[-2]


def all_same(got: list[torch.Tensor], wanted: list[torch.Tensor], exact: bool, sure: bool = False) -> bool:
    """Whether rows have the same losses, whatever their labels, but for rounding.

    exact: computed in float32. sure: only what cannot be rounding makes a difference; a batch of another size adds up
    in another order, and large logits lose more by it.
    """
    return all(_same(a, b, exact, sure) for a, b in zip(got, wanted, strict=True))


def _same(a_TC: torch.Tensor, b_TC: torch.Tensor, exact: bool, sure: bool) -> bool:
    a_log, b_log = a_TC.log_softmax(-1), b_TC.log_softmax(-1)
    if not exact:
        # Single tokens may be far off (an expert that is chosen by a hair); all of a row are not.
        off = (a_log - b_log).square().mean().sqrt()
        return not bool(off > _LOW_PRECISION * (4 if sure else 1) * (b_log.std() + 1e-3))
    tolerance = _TOLERANCE * (1 + b_log.abs())
    if sure:
        tolerance = 10 * tolerance + _TOLERANCE * b_TC.abs().max()
    same = ((a_log - b_log).abs() <= tolerance) | (a_log == b_log) | (a_log.isnan() & b_log.isnan())
    return bool(same.all())


def _remembers(fresh: nn.Module, probe: Probe) -> bool:
    """Whether a model answers a long sequence differently after a short one."""
    fresh, exact = fresh.to(probe.device).eval(), is_float32(fresh)
    longest = probe.row(LONGEST)
    first = probe(fresh, longest)
    probe(fresh, probe.short[-2])
    return not all_same(probe(fresh, longest), first, exact, sure=True)


def _state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a call might change in a model, by name: plain attributes, and which modules and tensors it holds."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            inner = value.items() if key in ("_modules", "_buffers", "_parameters") else [(key, value)]
            for name, item in inner:
                if isinstance(item, torch.Tensor):
                    yield f"{path}.{name}", (id(item), _content(item))
                elif isinstance(item, (str, int, float, type(None))):
                    yield f"{path}.{name}", item
                else:
                    yield f"{path}.{name}", id(item)


def _content(tensor: torch.Tensor, counter: str = "_version") -> Any:
    """What tells that a tensor was changed in place: the counter that autograd keeps, or without it the sum of values.
    None of a tensor made in inference mode, which has no counter."""
    if tensor.is_inference():
        return None
    return getattr(tensor, counter) if hasattr(tensor, counter) else float(tensor.detach().double().sum())


def _switches_with_length(config: Any, max_length: int) -> bool:
    """Whether rotary positions have another scale where the longest sequence of a batch exceeds a length in reach.

    Known from the settings, because that length is too long to be tried.
    """
    settings = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ())]
    for rope in (getattr(item, "rope_parameters", None) for item in settings):
        for one in (rope, *rope.values()) if isinstance(rope, dict) else ():
            if isinstance(one, dict) and one.get("rope_type") == "longrope":
                return max_length > one.get("original_max_position_embeddings", 0)
    return False


def _check_positions(model: nn.Module, job: Job) -> None:
    """Positions that are counted from behind the padding id do not reach as far as their table is long."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            usable = len(module.weight) - module.padding_idx - 1
            if usable < job.max_length:
                raise JobFailed(
                    f"the model in {job.model.name} has {usable} positions after its padding id, but sequences may "
                    f"have {job.max_length} tokens: use --max-length {usable}"
                )


def is_float32(model: nn.Module) -> bool:
    """Whether all its weights are."""
    return {parameter.dtype for parameter in model.parameters()} <= {torch.float32}


def in_float32(model: nn.Module) -> nn.Module:
    """The model, or a copy of it in float32, in which a difference cannot be mistaken for rounding."""
    if is_float32(model) or sum(parameter.numel() for parameter in model.parameters()) > _MOST_COPIED:
        return model
    try:
        return copy.deepcopy(model).float()
    except Exception:  # no memory for another, or a model that cannot be copied: then as it is, less closely
        return model
