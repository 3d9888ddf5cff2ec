"""The work on a micro-batch, compiled by torch for whatever sizes come: once, and never again for a new size.

Sizes are symbols in what is compiled, so that one graph serves all micro-batches. That this holds is seen when the
model is loaded: a second micro-batch, of other sizes throughout, must not be compiled again. From then on nothing is:
what the graph does not cover runs as it would have without one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from tokloss_ray.model.store import cache_folder

BACKEND: Any = "inductor"
PAYS = 1e17
"""Multiplications and additions for which compiling pays: ten minutes of a large GPU at 170 TFLOP/s. It takes one."""
_TOLERANCE, _LOW_PRECISION = 1e-4, 0.1
"""What losses may differ by from those without compiling: in float32 each of them, absolutely and relatively; in low
precision the root of their mean square, against their spread."""

Step = Callable[[Any], torch.Tensor]


def pays(model: nn.Module, tokens: int) -> bool:
    """Whether compiling a model is worth its time before so many tokens."""
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    weights = sum(parameter.numel() for parameter in model.parameters()) - tables
    return 2.0 * weights * tokens >= PAYS


class Compiled:
    """A compiled step, for one thread at a time: whether torch may compile is a setting of the process.

    Args:
        step: makes scores of a micro-batch's tokens, as `loss.to_words` has them.
        examples: at least two micro-batches, no size of one of which is a size of another.
        width: words that a token has in the scores.
        exact: computed in float32.

    Raises:
        Exception: torch cannot compile it, needs another graph for other sizes, or it answers otherwise then.
    """

    def __init__(self, step: Step, examples: Sequence[Any], width: int, exact: bool) -> None:
        _use_cache()
        self._compiled: Step = torch.compile(step, dynamic=True, backend=BACKEND)
        for number, example in enumerate(examples):
            with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                got = self._compiled(example)
            if not _alike(_losses(got, width), _losses(step(example), width), exact):
                raise ValueError("it answers otherwise when it is compiled")

    def __call__(self, batch: Any) -> torch.Tensor:
        """Scores of the tokens of a micro-batch; not compiled if the graph is not for such a one."""
        with torch.compiler.set_stance("eager_on_recompile"):
            return self._compiled(batch)


def _use_cache() -> None:
    """Keep compiled kernels where the next process finds them, unless the environment says where."""
    folder = os.path.join(cache_folder(), "inductor")
    with suppress(OSError):  # without a place of ours, torch has one
        os.makedirs(folder, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)


def _losses(words: torch.Tensor, width: int) -> np.ndarray:
    return words[: len(words) // width].view(torch.float32).cpu().numpy()


def _alike(got: np.ndarray, wanted: np.ndarray, exact: bool) -> bool:
    off = np.abs(got - wanted)
    if exact:
        return bool((off <= _TOLERANCE * (1 + np.abs(wanted))).all())
    return bool(np.sqrt(np.mean(off**2)) <= _LOW_PRECISION * (wanted.std() + 1e-3))
