"""A dataset copied file by file, laid out as before."""

from __future__ import annotations

import bz2
import gzip
import lzma
import posixpath
from typing import Any

from fsspec.core import get_compression

from tokloss_ray.errors import Refused
from tokloss_ray.scoring.inputs import InputFile
from tokloss_ray.storage import files_below, kind_of, open_location, read_whole, write_whole


def check_target(dataset: str, output: str) -> None:
    """See that a dataset can be copied.

    Raises:
        Refused: the dataset is a pattern, or the target is there already or lies in the dataset.
    """
    if any(char in dataset for char in "*?["):
        raise Refused(f"--to {dataset} is a pattern: name a file or a folder")
    fs, path = open_location(output)
    if kind_of(fs, path) is not None:
        raise Refused(f"-o {output} is there already: name a new file or folder")
    if path.startswith(f"{open_location(dataset)[1]}/"):
        raise Refused(f"-o {output} lies in the dataset: name another place")


def read_unpacked(file: InputFile) -> bytes:
    """The bytes of a file of the dataset; of a packed text file, what is in it."""
    fs, path = open_location(file.listed.path)
    data = read_whole(fs, path)
    packing = get_compression(path, "infer")
    if packing and file.format in ("jsonl", "conll"):
        with fs.open(path, "rb", compression=packing) as opened:
            return opened.read()
    return data


def _target(output: str, dataset: str, path: str) -> tuple[Any, str]:
    """Where a file of the dataset goes: below the output as it is below the dataset."""
    fs, root = open_location(output)
    _, base = open_location(dataset)
    path = open_location(path)[1]
    return fs, root if path == base else posixpath.join(root, posixpath.relpath(path, base))


def write_file(output: str, dataset: str, file: InputFile, new: bytes | None) -> None:
    """Write a file's new content, packed as before, to its place below the output; None: a copy."""
    source_fs, path = open_location(file.listed.path)
    fs, target = _target(output, dataset, file.listed.path)
    write_whole(fs, target, read_whole(source_fs, path) if new is None else _packed(path, new))


def _packed(path: str, data: bytes) -> bytes:
    packing = get_compression(path, "infer") if path.endswith((".gz", ".bz2", ".xz")) else None
    if packing == "gzip":
        return gzip.compress(data, mtime=0)
    return bz2.compress(data) if packing == "bz2" else lzma.compress(data) if packing == "xz" else data


def copy_others(dataset: str, output: str, files: list[InputFile]) -> None:
    """Copy what else is in a folder: a README, the description of a saved dataset, its other splits."""
    fs, root = open_location(dataset)
    if kind_of(fs, root) != "directory":
        return
    done = {open_location(file.listed.path)[1] for file in files}
    for other in files_below(fs, root):
        if other.path not in done:
            to, target = _target(output, dataset, other.path)
            write_whole(to, target, read_whole(fs, other.path))
