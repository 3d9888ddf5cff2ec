"""Loading the model from local files, as the job has it."""

from __future__ import annotations

import re
from typing import Any

import torch

from tokloss_ray.errors import JobFailed, first_sentence
from tokloss_ray.model.adapter import held, merge, settings_path
from tokloss_ray.model.store import check_unchanged, fetch_model
from tokloss_ray.scoring.job import Job

_CRF = re.compile(r"(^|\.)(crf\.|transitions$|(start|end)_transitions$)")
"""Weights of a conditional random field, by the names that the usual packages give them."""


def load_model(job: Job) -> torch.nn.Module:
    """The model in the job's dtype, from local files only; an adapter is merged into the model it belongs to.

    Raises:
        JobFailed: with the cause in one sentence.
    """
    path = fetch_model(job.model)
    base = None if job.model.base is None else fetch_model(job.model.base)
    try:
        model, report = _load(job, path) if base is None else _load_merged(job, path, base)
    except Exception as error:  # transformers, PEFT, safetensors and torch raise what they like here
        raise JobFailed(f"cannot load the model in {job.model.name}: {first_sentence(error)}") from error
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # they were windows on the file, which somebody may write to
    check_unchanged(job.model)
    _check_complete(job, report)
    if model.config.num_labels != len(job.tags):
        raise JobFailed(
            f"the model has {model.config.num_labels} classes, but its configuration has {len(job.tags)} tags"
        )
    return model


def _load(job: Job, path: str, dtype: str | None = None, config: Any = None) -> tuple[Any, dict[str, Any]]:
    """The model in a folder, and what transformers reports of its weights."""
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, report = AutoModelForTokenClassification.from_pretrained(
        path,
        config=config,
        dtype=getattr(torch, dtype or job.dtype),
        local_files_only=True,
        use_safetensors=None if job.allow_pickle else True,
        trust_remote_code=job.trust_remote_code,
        output_loading_info=True,
    )
    return model, report


def _load_merged(job: Job, path: str, base: str) -> tuple[Any, dict[str, Any]]:
    """An adapter in the model it belongs to. Merged in float32: in bfloat16 small steps would round to nothing."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        settings_path(path, base), trust_remote_code=job.trust_remote_code, local_files_only=True
    )
    config.id2label = dict(enumerate(job.tags))
    config.label2id = {tag: number for number, tag in enumerate(job.tags)}
    model, report = _load(job, base, "float32", config)
    missing = sorted(report["missing_keys"])
    report["missing_keys"] = set(missing) - set(held(missing, path))
    return merge(model, path).to(getattr(torch, job.dtype)), report


def _check_complete(job: Job, report: dict[str, Any]) -> None:
    """Refuse a model that would not be the one that was trained."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise JobFailed(
            f"the weights in {job.model.name} lack {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": it would be filled with random numbers; use a model fine-tuned for token classification"
        )
    unused = next((name for name in sorted(report["unexpected_keys"]) if _CRF.search(name)), None)
    if unused is not None:
        raise JobFailed(
            f"the weights in {job.model.name} have a CRF ({unused}), whose loss is of whole sentences and not of "
            f"tokens: use a model with a softmax over the tags"
        )
