"""What the input is: its files, their columns, and the tag names they declare."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokloss_ray.errors import Refused
from tokloss_ray.inputs.arrow import ARROW
from tokloss_ray.inputs.conll import CONLL
from tokloss_ray.inputs.csv_table import CSV, is_table
from tokloss_ray.inputs.format import UNREADABLE, Groups
from tokloss_ray.inputs.formats import format_named, format_of, known_formats
from tokloss_ray.inputs.input_files import INPUT_FILES, InputFile, InputFiles
from tokloss_ray.inputs.nested import value_of
from tokloss_ray.inputs.saved_dataset import saved_dataset
from tokloss_ray.storage.failures import display
from tokloss_ray.storage.files import Listed, is_local, kind_of, listed, open_location
from tokloss_ray.storage.listings import LISTING, list_files, matching
from tokloss_ray.threads import in_context

_GLOB = "*?["
_COMPANIONS = (
    "readme*", "license*", "licence*", "*.md", "*.py", "*.lock", "dataset_dict.json", "dataset_info.json",
    "dataset_infos.json", "state.json", "cache-*.arrow", "data-*-of-*.arrow",
)  # fmt: skip
"""What lies beside data and is none, in lower case: nobody expects these to be read."""
_HIDDEN = "(^|/)[._]"
_MOST_NAMES = 3
INCOMPLETE = "_INCOMPLETE"
"""Name of a file in a folder on object storage into which a dataset is being copied."""


MOST_LOOKED_AT, MOST_OBJECTS = 2_000, 200
"""Files up to which each is looked into before the job begins, on a file system and on object storage, where each costs
several requests."""
_LARGE = 1 << 20
"""Bytes from which a file is always looked into: it may be cut into parts."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """A file and what its metadata say; `groups` are (rows, bytes, offset of an Arrow batch) read together.

    `schema` is None for JSON lines, whose rows may differ, and for CoNLL files without a sentence.
    """

    file: InputFile
    schema: pa.Schema | None
    groups: Groups


class _Found(NamedTuple):
    """What one --input argument names.

    Attributes:
        root: the folder that paths are relative to.
        files: rows of LISTING, and the `format` of each.
        visible: rows of LISTING, of a folder's files that are not hidden.
    """

    root: str
    files: pa.Table
    visible: pa.Table | None = None


def list_inputs(inputs: Sequence[str], split: str | None = None, warnings: list[str] | None = None) -> InputFiles:
    """All input files, in the order of the arguments, each argument's files by name.

    `warnings` gets a sentence for each folder of which files are left out that one might take for input.

    Raises:
        Refused: nothing there, a format that is not known, or a --split that does not fit.
    """
    systems = [open_location(uri)[0] for uri in inputs]
    if len({type(fs) for fs in systems}) > 1:
        raise Refused(f"--input mixes kinds of storage ({', '.join(inputs)}): score them in separate jobs")
    found = [_one_input(*open_location(uri), uri, split) for uri in inputs]
    roots = [one.root for one in found]
    common = roots[0] if len(roots) == 1 else posixpath.commonpath(roots)
    tables = [
        _input_files(one.files, display(fs, one.root), posixpath.relpath(one.root, common))
        for fs, one in zip(systems, found, strict=True)
    ]
    table = pa.concat_tables(tables)
    if warnings is not None:
        for uri, fs, one in zip(inputs, systems, found, strict=True):
            if one.visible is not None and one.visible.num_rows > one.files.num_rows:  # files are left out
                paths = _below(display(fs, one.root), one.visible.column("path"))
                left = one.visible.column("path").filter(pc.invert(pc.is_in(paths, table.column("path"))))
                warnings += [said] if (said := _left_out(uri, left.to_pylist())) else []
    return InputFiles(table if len(tables) == 1 else _each_once(table))


def _below(folder: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(folder.rstrip("/"), paths, "/")


def _input_files(files: pa.Table, root: str, inside: str) -> pa.Table:
    """Rows of INPUT_FILES. root: as users write it; inside: where it is in what all inputs have in common."""
    source = files.column("path") if inside == "." else _below(inside, files.column("path"))
    columns = {"path": _below(root, files.column("path")), "source": source}
    columns |= {name: files.column(name) for name in ("size", "version", "format")}
    return pa.table([columns[name] for name in INPUT_FILES.names], INPUT_FILES)


def _each_once(table: pa.Table) -> pa.Table:
    """The files without those that an argument before has named too."""
    places = pa.table({"source": table.column("source"), "place": np.arange(table.num_rows)})
    first = places.group_by("source").aggregate([("place", "min")]).column("place_min")
    return table.take(first.take(pc.sort_indices(first)))


def _one_input(fs: fsspec.AbstractFileSystem, path: str, uri: str, split: str | None) -> _Found:
    """What one --input argument names."""
    pattern = any(c in path for c in _GLOB)
    kind = None if pattern and not is_local(fs) else kind_of(fs, path)
    if pattern and kind is None:
        root = posixpath.dirname(path[: min(path.index(c) for c in _GLOB if c in path)])
        matches = matching(fs, path)
        if not matches:
            kind_of(fs, root)  # says so if there is not even a bucket
            raise Refused(f"no input: nothing matches {uri}")
        _no_split(split)
        return _Found(root, _named_files(fs, root, matches))
    if kind is None:
        raise Refused(f"no input: {uri} does not exist")
    if kind != "directory":
        _no_split(split)
        root = posixpath.dirname(path)
        return _Found(root, _named_files(fs, root, [listed(fs, path)]))
    return _folder(fs, path, uri, split)


def _named_files(fs: fsspec.AbstractFileSystem, root: str, files: list[Listed]) -> pa.Table:
    formats = _formats(fs, [file.path for file in files])
    below = posixpath.join(root, "")
    rows = [(file.path.removeprefix(below), file.size, file.version) for file in files]
    arrays = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), LISTING, strict=True)]
    return pa.table(arrays, LISTING).append_column("format", pa.array(formats))


def _folder(fs: fsspec.AbstractFileSystem, path: str, uri: str, split: str | None) -> _Found:
    files = list_files(fs, path, as_listed=True).sort_by("path").combine_chunks()
    paths = files.column("path")
    if _any(pc.equal(paths, INCOMPLETE)):
        raise Refused(f"{uri} is incomplete: apply-fixes is still writing it, or was interrupted and must be run again")
    shown = files.filter(pc.invert(pc.match_substring_regex(paths, _HIDDEN)))
    if _any(pc.is_in(paths, pa.array(["dataset_dict.json", "state.json"]))):
        there = set(_below(path, paths).to_pylist())
        saved = saved_dataset(fs, path, uri, split, there)
        if saved is not None:
            names = pa.array([posixpath.relpath(one, path) for one in saved], pa.string())
            found = files.take(pc.index_in(names, paths.combine_chunks()))
            # Other folders hold other splits.
            folders = pa.array({"", *(posixpath.dirname(name) for name in names.to_pylist())}, pa.string())
            beside = shown.filter(pc.is_in(_folders(shown.column("path")), folders))
            return _Found(path, found.append_column("format", pa.repeat(ARROW.name, len(names))), beside)
    _no_split(split)
    states = _folders(paths.filter(pc.match_substring_regex(paths, r"(^|/)state\.json$")))
    names, formats = shown.column("path"), _formats_in_folder(shown.column("path"))
    # `datasets` keeps Arrow files there for itself: cached results of `map`, and parts of a saved dataset, of which
    # only its `state.json` says which count: --input must name the dataset's own folder.
    of_datasets = pc.match_substring_regex(names, r"(^|/)cache-[^/]*$", ignore_case=True)
    of_datasets = pc.or_(of_datasets, pc.is_in(_folders(names), states.unique()))
    of_datasets = pc.and_(of_datasets, pc.fill_null(pc.equal(formats, ARROW.name), False))
    known = pc.and_(pc.is_valid(formats), pc.invert(of_datasets))
    if not _any(known):
        endings = sorted({posixpath.splitext(one)[1] for one in names.to_pylist() if format_of(one, in_folder=False)})
        globs = ", ".join(posixpath.join(uri, f"*{ending}") for ending in endings)
        hint = f"; {' and '.join(endings)} files are read only if --input names them: {globs}" if endings else ""
        raise Refused(f"no input: {uri} holds no {' or '.join(known_formats(named=False))} files{hint}")
    return _Found(path, shown.append_column("format", formats).filter(known), shown)


def _any(flags: pa.ChunkedArray) -> bool:
    return bool(pc.any(flags).as_py())


def _folders(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """The folder that each file is in, '' for the topmost."""
    return pc.replace_substring_regex(paths, r"/?[^/]*$", "")


def _formats_in_folder(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name of each file's format, null where a folder's file is left alone: looked up once for each ending."""
    endings = pc.struct_field(pc.extract_regex(paths, r"(?P<ending>\.[^/]*|[^/.]+)$"), "ending")
    kinds = endings.unique()
    found = [format_of(ending, in_folder=True) for ending in kinds.to_pylist()]
    names = pa.array([None if format_ is None else format_.name for format_ in found], pa.string())
    return names.take(pc.index_in(endings, kinds))


def _left_out(uri: str, names: list[str]) -> str | None:
    """Which files of a folder are not read, in a sentence; None where it is clear that they are no input."""
    names = [name for name in names if not any(fnmatch(posixpath.basename(name).lower(), c) for c in _COMPANIONS)]
    if not names:
        return None
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    listing = f"{', '.join(names[:_MOST_NAMES])}{more}"
    hint = ""
    named = [format_of(name, in_folder=False) for name in names if format_of(name, in_folder=True) is None]
    if unread := list(dict.fromkeys(found for found in named if found is not None)):
        endings = " and ".join(f"{found.title} in files named {' or '.join(found.named_suffixes)}" for found in unread)
        hint = f"; {endings} are read only if --input names them"
    count = f"{len(names):,} files in {uri} are" if len(names) > 1 else f"1 file in {uri} is"
    return f"{count} not input, judging by the name, and skipped: {listing}{hint}"


def _no_split(split: str | None) -> None:
    if split is not None:
        raise Refused("--split is for folders written by DatasetDict.save_to_disk; pass the split's files to --input")


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


def inspect_files(files: Sequence[InputFile], every: bool = False) -> list[Inspected]:
    """Schema and row groups of the files, from metadata alone.

    Of more than MOST_LOOKED_AT files (MOST_OBJECTS), only the large ones and so many others, evenly spread, are looked
    into, unless `every` is set: `read_part` holds the others to these when it reads them.

    Raises:
        Refused: a file is not what its name says.
    """
    local = not files or is_local(open_location(files[0].listed.path)[0])
    step = 1 if every else max(1, -(-len(files) // (MOST_LOOKED_AT if local else MOST_OBJECTS)))
    files = InputFiles.of(files)
    chosen = files.take((np.arange(len(files)) % step == 0) | (files.sizes >= _LARGE))
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
