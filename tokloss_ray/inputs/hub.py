"""Datasets of the Hugging Face hub by name: which of their files are read, at which commit.

`datasets` finds configurations, splits and features, as it does for everybody else; nothing is downloaded but the
repository's card. Workers then read the files by ranges, at the commit that the plan found (`hf://datasets/...@COMMIT/`).
Data that are not Parquet are read from the hub's own conversion, if it has one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from tokloss_ray.errors import Refused
from tokloss_ray.inputs.formats import format_of
from tokloss_ray.inputs.input_files import InputFile, InputFiles
from tokloss_ray.inputs.listing import Inspected
from tokloss_ray.inputs.parquet import PARQUET
from tokloss_ray.storage.files import Listed

_NAMED = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+|refs/[^/]+/[^/]+))?/?")
_CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class HubData:
    """A dataset of the hub.

    Attributes:
        name: its repository and commit, `org/name@commit`.
        files: at this commit, or in the hub's conversion of it.
        features: what `datasets` knows of the columns, as it writes it into files; None if nothing.
    """

    name: str
    files: InputFiles
    features: dict[str, Any] | None


def names_dataset(uri: str) -> bool:
    """Whether an --input is a dataset of the hub, not a file or folder in one."""
    return _NAMED.fullmatch(uri) is not None


def find_on_hub(uri: str, config: str | None, split: str | None, recorded: str | None = None) -> HubData:
    """The files of a dataset.

    Args:
        uri: `hf://datasets/org/name`, perhaps with `@revision`.
        config: which of its configurations; None: its default, or the only one.
        split: which of its splits; None: the only one.
        recorded: `name` of an earlier attempt, whose commit counts if the address has no revision.

    Raises:
        Refused: it is not to be had, or several configurations or splits are left to choose from.
    """
    match = _NAMED.fullmatch(uri)
    assert match is not None
    repo, revision = match["repo"], match["revision"]
    before, _, commit = (recorded or "").partition("@")
    if revision is None and before == repo:
        revision = commit
    with _as_refusal(repo, revision):
        from datasets import get_dataset_config_names, get_dataset_default_config_name, load_dataset_builder
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(repo, revision=revision)
        if info.gated:
            HfApi().auth_check(repo, repo_type="dataset")
        commit = info.sha or ""
        configs = get_dataset_config_names(repo, revision=commit)
        config = _chosen(repo, "configuration", "--dataset-config", config, configs) or (
            get_dataset_default_config_name(repo, revision=commit)
        )
        if config is None:
            raise Refused(f"{repo} has the configurations {', '.join(configs)}: choose one with --dataset-config")
        builder = load_dataset_builder(repo, config, revision=commit)
        splits = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
        if not all(path.endswith(PARQUET.suffixes) for paths in splits.values() for path in paths):
            splits = _converted(repo, config, match["revision"]) or splits
        split = _chosen(repo, "split", "--split", split, list(splits))
        if split is None and len(splits) > 1:
            raise Refused(f"{repo} holds the splits {', '.join(splits)}: choose one with --split")
        files = _listed(repo, splits[split or next(iter(splits))])
        features = builder.info.features
    return HubData(f"{repo}@{commit}", files, None if features is None else features.to_dict())


def with_features(inspected: Sequence[Inspected], features: dict[str, Any] | None) -> list[Inspected]:
    """Files that say nothing of their columns' features get those that the card tells."""

    def one(item: Inspected) -> Inspected:
        if features is None or item.schema is None or b"huggingface" in (item.schema.metadata or {}):
            return item
        metadata = {**(item.schema.metadata or {}), b"huggingface": json.dumps({"info": {"features": features}})}
        return replace(item, schema=item.schema.with_metadata(metadata))

    return [one(item) for item in inspected]


def _chosen(repo: str, what: str, option: str, name: str | None, names: Sequence[str]) -> str | None:
    if name is not None and name not in names:
        raise Refused(f"{repo} has no {what} {name} ({option}); it has {', '.join(names)}")
    return name


def _converted(repo: str, config: str, revision: str | None) -> dict[str, list[str]]:
    """The files of the hub's own conversion to Parquet, by split; empty if there is none, or it is of the first
    gigabytes only. It is of the main branch."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    if revision not in (None, "main"):
        return {}
    found: dict[str, list[str]] = {}
    try:
        commit = HfApi().dataset_info(repo, revision=_CONVERTED).sha
        tree = HfApi().list_repo_tree(repo, config, recursive=True, revision=commit, repo_type="dataset")
        for entry in tree:
            parts = entry.path.split("/")
            if entry.path.endswith(PARQUET.suffixes) and len(parts) == 3:
                found.setdefault(parts[1], []).append(f"hf://datasets/{repo}@{commit}/{entry.path}")
    except (EntryNotFoundError, RevisionNotFoundError):
        return {}
    partial = next((name for name in found if name.startswith("partial-")), None)
    return {} if partial else found


def _listed(repo: str, paths: Sequence[str]) -> InputFiles:
    """The files at their commit; the content's hash is their version.

    Raises:
        Refused: one has a format that is not read.
    """
    from huggingface_hub import HfApi

    files = []
    root, commit = paths[0].split("@")[0], paths[0].split("@")[1].split("/")[0]
    inside = [path.removeprefix(f"{root}@{commit}/") for path in paths]
    infos: dict[str, Any] = {}
    for start in range(0, len(inside), 500):
        for info in HfApi().get_paths_info(repo, inside[start : start + 500], revision=commit, repo_type="dataset"):
            infos[info.path] = info
    for path in inside:
        format_ = format_of(path, in_folder=False)
        if format_ is None:
            raise Refused(f"{repo} holds {path}, which is no format that is read, and the Hub has no Parquet of it")
        info = infos[path]
        version = info.lfs.sha256 if info.lfs else info.blob_id
        files.append(InputFile(Listed(f"{root}@{quote(commit)}/{path}", info.size, version), path, format_.name))
    return InputFiles.of(files)


@contextmanager
def _as_refusal(repo: str, revision: str | None) -> Iterator[None]:
    """What the client raises as one sentence. Its own messages go over many lines, with links: the first line is shown
    where nothing better is known."""
    noisy = logging.getLogger("huggingface_hub.repocard_data"), logging.getLogger("huggingface_hub.repocard")
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # a score of types, from two libraries and the client of HTTP below them
        names = {cls.__name__ for e in _chain(error) for cls in type(e).__mro__}
        raise Refused(_sentence(repo, revision, names, error)) from None
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _sentence(repo: str, revision: str | None, names: set[str], error: Exception) -> str:
    if "GatedRepoError" in names:
        return (
            f"{repo} is gated: accept its conditions on the Hub, then log in with `hf auth login` or set HF_TOKEN, on "
            f"all nodes"
        )
    if "RevisionNotFoundError" in names:
        return f"{repo} has no revision {revision}"
    if "RepositoryNotFoundError" in names:
        return f"no dataset {repo} on the Hub; if it is private, log in with `hf auth login` or set HF_TOKEN"
    if "OfflineModeIsEnabled" in names:
        return f"cannot look {repo} up: HF_HUB_OFFLINE is set"
    if names & {"ConnectError", "ConnectionError", "TimeoutException", "ConnectTimeout", "ReadTimeout"}:
        return f"cannot look {repo} up: the Hub does not respond"
    if names & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return f"{repo} holds no data files"
    first = str(error).strip().split("\n")[0]
    return f"cannot look {repo} up on the Hub: {first or type(error).__name__}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
