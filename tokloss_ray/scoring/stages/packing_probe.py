"""Whether a model answers sequences that are packed end to end as it answers each alone, and how it is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from tokloss_ray.ragged import offsets_of
from tokloss_ray.scoring.stages import attention
from tokloss_ray.scoring.stages.forward import logits_of, on_device, on_host
from tokloss_ray.scoring.stages.packing import Packing, pack
from tokloss_ray.scoring.stages.probe import LONG, Probe, all_same, in_float32, is_float32

_WINDOWS = ("sliding_window", "local_attention", "attention_window", "window_size", "attention_chunk_size")
"""Settings under which configurations have the reach of attention."""
_SPECIAL = 40
"""Ids at the beginning of a vocabulary among which its special tokens usually are, padding too."""


def find_packing(model: nn.Module, probe: Probe) -> Packing | None:
    """How a model takes packed sequences; None if it does not, or not exactly. The model is left as it was."""
    subject = in_float32(model)
    for packing in _candidates(model):
        if _answers_alike(subject, probe, packing) and (
            subject is model or _answers_alike(model, probe, packing)  # other kernels in another precision
        ):
            return packing
    return None


def _candidates(model: nn.Module) -> Iterator[Packing]:
    yield Packing()
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    paddings = {getattr(table, "padding_idx", None) for table in tables}
    yield from (Packing(after) for after in paddings if isinstance(after, int))


def _answers_alike(model: Any, probe: Probe, packing: Packing) -> bool:
    """Whether rows have the losses in a pack that they have alone."""
    groups = _rows(model, probe)
    exact = is_float32(model)
    with _looked_up(model) as alone_reach:
        alone = [probe(model, row)[0] for group in groups for row in group]
    try:
        attention.switch(model, packed=True)
        with _looked_up(model) as reach:
            packed = [logits for group in groups for logits in _packed(model, probe, group, packing)]
        # On a GPU a look-up beyond a table's end ends the process, so that none may grow with the length of the pack.
        if any(index > alone_reach.get(table, -1) or index == float("inf") for table, index in reach.items()):
            return False
        return all_same(packed, alone, exact)
    except Exception:  # whatever a model's code says to what it does not know
        return False
    finally:
        with suppress(Exception):
            attention.switch(model, packed=False)


def _rows(model: Any, probe: Probe) -> list[list[np.ndarray]]:
    """Rows to pack: short ones and one with the first ids of the vocabulary, which are special to some models, then one
    beyond windows and kernels' blocks. No pack has more tokens than a sequence may have, and so no position is out of
    reach, however the model counts."""
    room = probe.job.max_length
    special = np.arange(min(_SPECIAL, probe.job.embedding_rows))
    window = max((size for name in _WINDOWS if isinstance(size := getattr(model.config, name, 0), int)), default=0)
    beside = probe.short[1]
    long = probe.row(max(1, min(max(LONG, 2 * window), room - len(beside))))
    groups = _fitting([special, *probe.short], room), _fitting([long, beside], room)
    return [rows for rows in groups if len(rows) > 1]


def _fitting(rows: list[np.ndarray], room: int) -> list[np.ndarray]:
    """Of some rows, in their order, those that fit into a pack of so many tokens."""
    chosen: list[np.ndarray] = []
    for row in rows:
        if len(row) <= room:
            chosen.append(row)
            room -= len(row)
    return chosen


def _packed(model: nn.Module, probe: Probe, rows: list[np.ndarray], packing: Packing) -> list[torch.Tensor]:
    """Logits of some rows in one pack: float32 [tokens, classes] of each."""
    lengths = np.array([len(row) for row in rows])
    made = pack(np.concatenate(rows), offsets_of(lengths)[:-1], lengths, np.arange(len(rows)), packing)
    batch = on_host(made, np.zeros(len(made.at), np.int64))
    with torch.inference_mode():
        logits_TC = logits_of(model, on_device(batch, probe.device)).float()
    return list(logits_TC.split(lengths.tolist()))


@contextmanager
def _looked_up(model: nn.Module) -> Iterator[dict[str, float]]:
    """The largest index looked up in each table of the model meanwhile; infinite where a table is not given indices."""
    largest: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            indices = next(iter([*args, *named.values()]), None)
            reach = float(indices.max()) if isinstance(indices, torch.Tensor) else float("inf")
            largest[name] = max(reach, largest.get(name, -1))

        return hook

    tables = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    hooks = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in tables]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
