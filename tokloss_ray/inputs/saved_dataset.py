"""Folders that `datasets` has written with `save_to_disk`: which of their Arrow files are the dataset."""

from __future__ import annotations

import json
import posixpath

import fsspec

from tokloss_ray.errors import Refused
from tokloss_ray.storage.files import read_whole


def saved_dataset(
    fs: fsspec.AbstractFileSystem, path: str, uri: str, split: str | None, files: set[str]
) -> list[str] | None:
    """The Arrow files of a folder written by `datasets`' save_to_disk, or None if it is none. `files` are all in it."""
    splits_file = posixpath.join(path, "dataset_dict.json")
    if splits_file in files:
        splits = _description(fs, splits_file, "splits")["splits"]
        if split is None and len(splits) > 1:
            raise Refused(f"{uri} holds the splits {', '.join(splits)}: choose one with --split")
        chosen = split or splits[0]
        if chosen not in splits:
            raise Refused(f"{uri} has no split {chosen}; it has {', '.join(splits)}")
        return saved_dataset(fs, posixpath.join(path, chosen), uri, None, files)
    state_file = posixpath.join(path, "state.json")
    if not {state_file, posixpath.join(path, "dataset_info.json")} <= files:
        return None
    if split is not None:
        raise Refused(f"{uri} is a single dataset without splits: leave out --split")
    state = _description(fs, state_file, "_data_files")
    if state.get("_indices_data_files"):
        raise Refused(f"{uri} has an index over its rows: save it again with a newer version of datasets")
    names = [item["filename"] for item in state["_data_files"]]
    lost = next((name for name in names if posixpath.join(path, name) not in files), None)
    if lost is not None:
        raise Refused(f"the dataset in {uri} is incomplete: {lost} is missing")
    return [posixpath.join(path, name) for name in names]


def _description(fs: fsspec.AbstractFileSystem, path: str, key: str) -> dict:
    """A description that `datasets` wrote beside its Arrow files, with a list under `key`."""
    try:
        description = json.loads(read_whole(fs, path))
    except ValueError:
        description = None
    if not isinstance(description, dict) or not isinstance(description.get(key), list):
        raise Refused(f"{path} is damaged: it has no list of {key.removeprefix('_')}")
    return description
