"""What the input is: its files, their columns, and the tag names they declare."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import fsspec
import pyarrow as pa

from tokloss_ray.errors import Refused
from tokloss_ray.inputs.arrow import ARROW
from tokloss_ray.inputs.conll import CONLL
from tokloss_ray.inputs.csv_table import CSV, is_table
from tokloss_ray.inputs.format import UNREADABLE, Groups
from tokloss_ray.inputs.formats import format_named, format_of, known_formats
from tokloss_ray.inputs.nested import value_of
from tokloss_ray.storage.failures import display
from tokloss_ray.storage.files import (
    Listed,
    files_below,
    is_local,
    kind_of,
    listed,
    matching,
    open_location,
    read_whole,
)
from tokloss_ray.threads import in_context

_GLOB = "*?["
_COMPANIONS = (
    "readme*", "license*", "licence*", "*.md", "*.py", "*.lock", "dataset_dict.json", "dataset_info.json",
    "dataset_infos.json", "state.json", "cache-*.arrow", "data-*-of-*.arrow",
)  # fmt: skip
"""What lies beside data and is none, in lower case: nobody expects these to be read."""
_MOST_NAMES = 3
INCOMPLETE = "_INCOMPLETE"
"""Name of a file in a folder on object storage into which a dataset is being copied."""


MOST_LOOKED_AT, MOST_OBJECTS = 2_000, 200
"""Files up to which each is looked into before the job begins, on a file system and on object storage, where each costs
several requests."""
_LARGE = 1 << 20
"""Bytes from which a file is always looked into: it may be cut into parts."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file: its listing, its path relative to the input root, and the name of its format."""

    listed: Listed
    source: str
    format: str


@dataclass(frozen=True, slots=True)
class Inspected:
    """A file and what its metadata say; `groups` are (rows, bytes, offset of an Arrow batch) read together.

    `schema` is None for JSON lines, whose rows may differ, and for CoNLL files without a sentence.
    """

    file: InputFile
    schema: pa.Schema | None
    groups: Groups


def list_inputs(inputs: Sequence[str], split: str | None = None, warnings: list[str] | None = None) -> list[InputFile]:
    """All input files, in the order of the arguments, each argument's files by name.

    `warnings` gets a sentence for each folder of which files are left out that one might take for input.

    Raises:
        Refused: nothing there, a format that is not known, or a --split that does not fit.
    """
    if len({type(open_location(uri)[0]) for uri in inputs}) > 1:
        raise Refused(f"--input mixes kinds of storage ({', '.join(inputs)}): score them in separate jobs")
    roots: list[str] = []
    files: list[tuple[Listed, str]] = []
    beside: list[tuple[str, str, list[Listed]]] = []
    for uri in inputs:
        fs, path = open_location(uri)
        root, found, others = _one_input(fs, path, uri, split)
        roots.append(root)
        if len(others) > len(found):  # files are left out
            beside.append((uri, root, others))
        files += found
    if warnings is not None and beside:
        read = {one.path for one, _ in files}
        warnings += [said for uri, root, others in beside if (said := _left_out(uri, root, others, read))]
    common = roots[0] if len(roots) == 1 else posixpath.commonpath(roots)
    below = posixpath.join(common, "")
    result: dict[str, InputFile] = {}
    for one, form in files:
        source = one.path.removeprefix(below) if one.path.startswith(below) else posixpath.relpath(one.path, common)
        shown = display(fs, one.path)
        result.setdefault(source, InputFile(one if shown == one.path else replace(one, path=shown), source, form))
    return list(result.values())


def _one_input(
    fs: fsspec.AbstractFileSystem, path: str, uri: str, split: str | None
) -> tuple[str, list[tuple[Listed, str]], list[Listed]]:
    """Root and files (with their format) of one --input argument, and of a folder the files that are visible in it."""
    pattern = any(c in path for c in _GLOB)
    kind = None if pattern and not is_local(fs) else kind_of(fs, path)
    if pattern and kind is None:
        root = posixpath.dirname(path[: min(path.index(c) for c in _GLOB if c in path)])
        matches = matching(fs, path)
        if not matches:
            kind_of(fs, root)  # says so if there is not even a bucket
            raise Refused(f"no input: nothing matches {uri}")
        _no_split(split)
        return root, list(zip(matches, _formats(fs, [file.path for file in matches]), strict=True)), []
    if kind is None:
        raise Refused(f"no input: {uri} does not exist")
    if kind != "directory":
        _no_split(split)
        return posixpath.dirname(path), [(listed(fs, path), _formats(fs, [path])[0])], []
    files = files_below(fs, path)
    if any(file.path == posixpath.join(path, INCOMPLETE) for file in files):
        raise Refused(f"{uri} is incomplete: apply-fixes is still writing it, or was interrupted and must be run again")
    about = {posixpath.join(path, name) for name in ("dataset_dict.json", "state.json")}
    saved = None
    if any(file.path in about for file in files):
        saved = _saved_dataset(fs, path, uri, split, {file.path: file for file in files})
    shown = [file for file in files if not _hidden(posixpath.relpath(file.path, path))]
    if saved is not None:
        folders = {path, *(posixpath.dirname(file.path) for file in saved)}  # others hold other splits
        beside = [file for file in shown if posixpath.dirname(file.path) in folders]
        return path, [(file, ARROW.name) for file in saved], beside
    _no_split(split)
    states = {posixpath.dirname(file.path) for file in files if posixpath.basename(file.path) == "state.json"}
    known = [
        (file, found.name)
        for file in shown
        if (found := format_of(file.path, in_folder=True)) and not (found is ARROW and _is_of_datasets(file, states))
    ]
    if not known:
        endings = sorted({posixpath.splitext(file.path)[1] for file in shown if format_of(file.path, in_folder=False)})
        globs = ", ".join(posixpath.join(uri, f"*{ending}") for ending in endings)
        hint = f"; {' and '.join(endings)} files are read only if --input names them: {globs}" if endings else ""
        raise Refused(f"no input: {uri} holds no {' or '.join(known_formats(named=False))} files{hint}")
    return path, known, shown


def _is_of_datasets(file: Listed, states: set[str]) -> bool:
    """Whether `datasets` keeps an Arrow file there for itself: a cached result of `map`, or a part of a saved dataset,
    of which only its `state.json` says which files count: --input must name the dataset's own folder."""
    folder, name = posixpath.split(file.path)
    return name.lower().startswith("cache-") or folder in states


def _left_out(uri: str, root: str, there: list[Listed], read: set[str]) -> str | None:
    """Which files of a folder are not read, in a sentence; None where it is clear that they are no input."""
    left = [file.path for file in there if file.path not in read]
    left = [path for path in left if not any(fnmatch(posixpath.basename(path).lower(), c) for c in _COMPANIONS)]
    if not left:
        return None
    names = [posixpath.relpath(path, root) for path in left]
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    listing = f"{', '.join(names[:_MOST_NAMES])}{more}"
    hint = ""
    named = [format_of(path, in_folder=False) for path in left if format_of(path, in_folder=True) is None]
    if unread := list(dict.fromkeys(found for found in named if found is not None)):
        endings = " and ".join(f"{found.title} in files named {' or '.join(found.named_suffixes)}" for found in unread)
        hint = f"; {endings} are read only if --input names them"
    count = f"{len(names):,} files in {uri} are" if len(names) > 1 else f"1 file in {uri} is"
    return f"{count} not input, judging by the name, and skipped: {listing}{hint}"


def _no_split(split: str | None) -> None:
    if split is not None:
        raise Refused("--split is for folders written by DatasetDict.save_to_disk; pass the split's files to --input")


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _formats(fs: fsspec.AbstractFileSystem, paths: list[str]) -> list[str]:
    """The formats of files that --input names, by their names; where these say too little, by their first lines.

    Raises:
        Refused: one has none, or cannot be looked into.
    """

    def look(path: str) -> str:
        try:
            return CSV.name if is_table(display(fs, path)) else CONLL.name
        except UNREADABLE as error:
            raise Refused(f"cannot read {path}: {error}") from None

    found = [format_of(path, in_folder=False) for path in paths]
    strange = next((path for path, format_ in zip(paths, found, strict=True) if format_ is None), None)
    if strange is not None:
        raise Refused(f"{strange} is neither {' nor '.join(known_formats(named=True))}, judging by its name")
    unclear = [path for path, f in zip(paths, found, strict=True) if f is CONLL and not format_of(path, in_folder=True)]
    with ThreadPoolExecutor(16) as pool:
        looked = dict(zip(unclear, pool.map(in_context(look), unclear), strict=True))
    return [looked.get(path) or f.name for path, f in zip(paths, found, strict=True) if f is not None]


def _saved_dataset(
    fs: fsspec.AbstractFileSystem, path: str, uri: str, split: str | None, files: dict[str, Listed]
) -> list[Listed] | None:
    """The Arrow files of a folder written by `datasets`' save_to_disk, or None if it is none. `files` are all in it."""
    splits_file = posixpath.join(path, "dataset_dict.json")
    if splits_file in files:
        splits = _description(fs, splits_file, "splits")["splits"]
        if split is None and len(splits) > 1:
            raise Refused(f"{uri} holds the splits {', '.join(splits)}: choose one with --split")
        chosen = split or splits[0]
        if chosen not in splits:
            raise Refused(f"{uri} has no split {chosen}; it has {', '.join(splits)}")
        return _saved_dataset(fs, posixpath.join(path, chosen), uri, None, files)
    state_file = posixpath.join(path, "state.json")
    if not {state_file, posixpath.join(path, "dataset_info.json")} <= files.keys():
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
    return [files[posixpath.join(path, name)] for name in names]


def _description(fs: fsspec.AbstractFileSystem, path: str, key: str) -> dict:
    """A description that `datasets` wrote beside its Arrow files, with a list under `key`."""
    try:
        description = json.loads(read_whole(fs, path))
    except ValueError:
        description = None
    if not isinstance(description, dict) or not isinstance(description.get(key), list):
        raise Refused(f"{path} is damaged: it has no list of {key.removeprefix('_')}")
    return description


def inspect_files(files: list[InputFile], every: bool = False) -> list[Inspected]:
    """Schema and row groups of the files, from metadata alone.

    Of more than MOST_LOOKED_AT files (MOST_OBJECTS), only the large ones and so many others, evenly spread, are looked
    into, unless `every` is set: `read_part` holds the others to these when it reads them.

    Raises:
        Refused: a file is not what its name says.
    """
    local = not files or is_local(open_location(files[0].listed.path)[0])
    step = 1 if every else max(1, -(-len(files) // (MOST_LOOKED_AT if local else MOST_OBJECTS)))
    chosen = [file for i, file in enumerate(files) if not i % step or file.listed.size >= _LARGE]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(in_context(inspect_file), chosen))


def inspect_file(file: InputFile) -> Inspected:
    """Schema and row groups of one file.

    Raises:
        Refused: it is not what its name says.
    """
    format_ = format_named(file.format)
    try:
        return Inspected(file, *format_.inspect(file.listed))
    except (*UNREADABLE, pa.ArrowException) as error:
        cause = str(error).split("\n")[0].rstrip(".")
        raise Refused(f"cannot read {file.source} as {format_.title}: {cause}") from None


def declared_tags(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The tag names that `datasets` recorded for a ClassLabel column in a file's metadata, if any."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    feature = value_of(json.loads(metadata).get("info", {}).get("features", {}), column)
    while isinstance(feature, (dict, list)):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            return tuple(names) if names else None
        else:
            feature = feature.get("feature")
    return None
