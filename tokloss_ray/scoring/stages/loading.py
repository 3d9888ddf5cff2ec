"""Loading the model from local files, as the job has it."""

from __future__ import annotations

import torch

from tokloss_ray.errors import JobFailed
from tokloss_ray.model.store import check_unchanged, fetch_model
from tokloss_ray.scoring.job import Job


def load_model(job: Job) -> torch.nn.Module:
    """The model in the job's dtype, from local files only.

    Raises:
        JobFailed: with the cause in one sentence.
    """
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    path = fetch_model(job.model)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModelForTokenClassification.from_pretrained(
            path,
            dtype=getattr(torch, job.dtype),
            local_files_only=True,
            use_safetensors=None if job.allow_pickle else True,
            trust_remote_code=job.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and torch raise what they like here
        cause = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise JobFailed(f"cannot load the model in {job.model.name}: {cause}") from error
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # they were windows on the file, which somebody may write to
    check_unchanged(job.model)
    missing = sorted(report["missing_keys"])
    if missing:
        raise JobFailed(
            f"the weights in {job.model.name} lack {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": it would be filled with random numbers; use a model fine-tuned for token classification"
        )
    if model.config.num_labels != len(job.tags):
        raise JobFailed(
            f"the model has {model.config.num_labels} classes, but its configuration has {len(job.tags)} tags"
        )
    return model
