"""Where is my tagger wrong, and where is my data wrong? Per-token losses over large corpora, on Ray."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "RunSummary",
    "ScoreConfig",
    "TokLossError",
    "__version__",
    "apply_fixes",
    "diff",
    "estimate",
    "export",
    "load",
    "mine",
    "open_review",
    "score",
]

_HOME = {
    "ScoreConfig": "tokloss_ray.config",
    "TokLossError": "tokloss_ray.errors",
    "RunSummary": "tokloss_ray.output.totals",
    "apply_fixes": "tokloss_ray.exporting.apply",
    "diff": "tokloss_ray.mining.diff.compare",
    "estimate": "tokloss_ray.review.estimate",
    "export": "tokloss_ray.exporting.export",
    "load": "tokloss_ray.mining.words.load",
    "mine": "tokloss_ray.mining.mine",
    "open_review": "tokloss_ray.review.handle",
    "score": "tokloss_ray.scoring.driver",
}


def __getattr__(name: str) -> Any:
    """Load the public names on first use: `tokloss --help` must not wait for Ray and torch."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
