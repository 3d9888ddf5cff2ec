"""A dataset copied file by file, laid out as before."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from fsspec.core import get_compression

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.dataset.publish import check_free
from tokloss_ray.faults import fault_point
from tokloss_ray.inputs.format import PACKED
from tokloss_ray.inputs.formats import format_named
from tokloss_ray.inputs.input_files import InputFile
from tokloss_ray.storage import zstd
from tokloss_ray.storage.files import kind_of, open_file, open_location, read_whole, write_whole
from tokloss_ray.storage.listings import files_below

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_FINGERPRINT = "_fingerprint"


def check_target(dataset: str, output: str) -> None:
    """See that a dataset can be copied.

    Raises:
        Refused: the dataset is a pattern, or the target is there already or lies in the dataset.
    """
    if any(char in dataset for char in "*?["):
        raise Refused(f"--to {dataset} is a pattern: pass a file or a folder")
    check_free(output)
    _, path = open_location(output)
    if path.startswith(f"{open_location(dataset)[1]}/"):
        raise Refused(f"-o {output} is inside the dataset: choose another place")


def is_folder(dataset: str) -> bool:
    """Whether a dataset is a folder."""
    return kind_of(*open_location(dataset)) == "directory"


def read_unpacked(file: InputFile) -> bytes:
    """The bytes of a file of the dataset; of a packed text file, what is in it."""
    fs, path = open_location(file.listed.path)
    if format_named(file.format).packed and path.lower().endswith(PACKED):
        with open_file(fs, path, unpack=True) as opened:
            return opened.read()
    return read_whole(fs, path)


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
    fault_point("apply.file", target)
    write_whole(fs, target, read_whole(source_fs, path) if new is None else _packed(path, new))


def _packed(path: str, data: bytes) -> bytes:
    if path.lower().endswith(zstd.SUFFIX):
        return zstd.packed(data)
    packing = get_compression(path, "infer") if path.lower().endswith(PACKED) else None
    if packing == "gzip":
        return gzip.compress(data, mtime=0)
    return bz2.compress(data) if packing == "bz2" else lzma.compress(data) if packing == "xz" else data


def copy_others(dataset: str, output: str, files: Sequence[InputFile], changed: Mapping[str, bytes]) -> None:
    """Copy what else is in a folder: a README, the description of a saved dataset, its other splits.

    `datasets` finds results of `map` by the fingerprint of a saved dataset, in Arrow files beside the data. So a copy
    with other content gets another fingerprint, and those files stay behind.

    changed: digests of the new content of files, by the path in the dataset.
    """
    fs, root = open_location(dataset)
    done = {open_location(file.listed.path)[1] for file in files}
    others = files_below(fs, root)
    paths = {file.path for file in others}
    # Descriptions last: without them there is nothing that `datasets` would load.
    for other in sorted(others, key=lambda file: posixpath.basename(file.path) in (_STATE, _SPLITS)):
        folder, name = posixpath.split(other.path)
        saved = {posixpath.join(folder, about) for about in (_STATE, _INFO)} <= paths
        if other.path in done or (saved and name.startswith("cache-") and name.endswith(".arrow")):
            continue
        data = read_whole(fs, other.path)
        if saved and name == _STATE:
            data = _renewed(data, [digest for path, digest in changed.items() if posixpath.dirname(path) == folder])
        to, target = _target(output, dataset, other.path)
        fault_point("apply.file", target)
        write_whole(to, target, data)


def _renewed(state: bytes, digests: list[bytes]) -> bytes:
    """The description of a saved dataset with a new fingerprint, made of the old one and of the changed content."""
    if not digests:
        return state
    about = json.loads(state)
    old = str(about.get(_FINGERPRINT)).encode()
    about[_FINGERPRINT] = hashlib.sha256(b"".join([old, *digests])).hexdigest()[:16]
    return json.dumps(about, indent=2, sort_keys=True).encode()
