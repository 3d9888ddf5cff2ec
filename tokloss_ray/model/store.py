"""Where model files are, and how each node gets them once.

The driver finds the folder (`find_model`) and reads the small files of it; a model actor asks for all of it
(`fetch_model`), on whatever node it runs. A local folder is used in place; one on object storage, or on the Hugging
Face hub, is copied to this node's disk, under a lock, so that actors on one node read each file once.

A model that is replaced during a run must not score its later shards. A hub repository goes by its commit, a copy by
the versions of its objects, and a local folder is looked at before it is loaded and again after it.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock

from tokloss_ray.errors import JobFailed, Refused, TokLossError
from tokloss_ray.storage.files import RangeFile, children, is_local, listed, open_location

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.vocab", "*.tiktoken", "*.py", "*.jinja")
WEIGHTS = ("*.safetensors",)
PICKLED_WEIGHTS = ("*.bin",)
MODEL_FILES = (*SMALL_FILES, *WEIGHTS, *PICKLED_WEIGHTS)


@dataclass(frozen=True)
class ModelFolder:
    """A folder of model files, findable from any node.

    Attributes:
        name: local path (absolute), URI, or hub id.
        kind: local, remote or hub.
        revision: commit of a hub repository.
        files: (name, size, version) of each file that may be needed; the version of a remote file changes when its
            content does (an etag), that of a local file when it is written (its times), that of a hub's is empty.
        counted: patterns of the files that results depend on; content: what `content_of` said of them.
        base: of an adapter, the model it belongs to.
    """

    name: str
    kind: str
    revision: str | None
    files: tuple[tuple[str, int, str], ...]
    counted: tuple[str, ...] = ()
    content: str = ""
    base: ModelFolder | None = None

    def names(self, *patterns: str) -> list[str]:
        """Names of the files that match any of the patterns."""
        return [name for name, _, _ in self.files if _matches(name, patterns)]


def find_model(name: str, revision: str | None, what: str) -> ModelFolder:
    """The folder behind a path, URI or hub id; nothing is copied of a URI, the snapshot is taken of a hub repository.

    Raises:
        Refused: there is none.
    """
    name = name.removeprefix("file://")
    if "://" in name:
        files = _remote_files(name)
        if not files:
            raise Refused(f"no {what} at {name}: it has no model files (config.json, *.safetensors)")
        return ModelFolder(name.rstrip("/"), "remote", None, files)
    local = os.path.expanduser(name)
    if os.path.isdir(local):
        return ModelFolder(os.path.abspath(local), "local", None, _local_files(local, times=True))
    if os.path.exists(local) or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise Refused(f"no {what} at {name}: expected a folder with config.json and *.safetensors, or a Hub id")
    try:
        snapshot = _snapshot(name, revision)
    except Exception as error:  # the hub client raises a score of types, all of which mean: not to be had
        reason = str(error).strip().split("\n")[0]
        raise Refused(f"{what} {name} is neither a local folder nor available from the Hub: {reason}") from None
    return ModelFolder(name, "hub", os.path.basename(snapshot), _local_files(snapshot))


def fetch_model(folder: ModelFolder, small_only: bool = False) -> str:
    """A folder on this node with the files (without weights if `small_only`); copies what is not there yet.

    Raises:
        JobFailed: the files are not to be had from this node, or have changed since the run began.
    """
    if folder.kind == "local":
        if not os.path.isdir(folder.name):
            raise JobFailed(f"this node has no folder {folder.name}: put the model where all nodes see it")
        check_unchanged(folder)
        return folder.name
    if folder.kind == "hub":
        try:
            return _snapshot(folder.name, folder.revision)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise JobFailed(f"cannot get {folder.name} from the Hub: {reason}") from None
    return _copy(folder, folder.names(*SMALL_FILES) if small_only else [name for name, _, _ in folder.files])


def check_unchanged(folder: ModelFolder) -> None:
    """Hold a local folder to what it was when the run began. Times tell at once; where they differ the content counts,
    as a copy on another node, or a file that was only touched, is the same model.

    Raises:
        JobFailed: it is another model by now.
    """
    if folder.base is not None:
        check_unchanged(folder.base)
    if folder.kind != "local" or not folder.content:
        return
    try:
        now = replace(folder, files=_local_files(folder.name, times=True))
        same = _counted(now) == _counted(folder) or content_of(now, folder.name) == folder.content
    except OSError as error:
        raise JobFailed(f"cannot read the model in {folder.name}: {error.strerror or error}") from None
    if not same:
        raise JobFailed(f"the model in {folder.name} has changed since the run began; {_CHANGED}")


def check_finished(folder: ModelFolder) -> None:
    """Refuse a local folder that was written to while it was looked at.

    Raises:
        Refused: it was.
    """
    if folder.kind == "local" and _counted(replace(folder, files=_local_files(folder.name, True))) != _counted(folder):
        raise Refused(f"the model in {folder.name} is being written: wait until that is done")


_CHANGED = "restore the old files, or choose another --output for the new ones"


def _counted(folder: ModelFolder) -> list[tuple[str, int, str]]:
    return [file for file in folder.files if _matches(file[0], folder.counted)]


def see_model(folder: ModelFolder) -> bool:
    """Whether this node finds the files, without copying any; the hub is left to `fetch_model`."""
    if folder.base is not None and not see_model(folder.base):
        return False
    if folder.kind == "local":
        sizes = tuple((name, size, "") for name, size, _ in folder.files)
        return os.path.isdir(folder.name) and _local_files(folder.name) == sizes
    return folder.kind == "hub" or _remote_files(folder.name) == folder.files


def content_of(folder: ModelFolder, path: str) -> str:
    """SHA-256 that changes with the counted files: over their content, or the versions the object store gives them."""
    total = hashlib.sha256()
    versions = {name: f"{size} {version}" for name, size, version in folder.files}
    for name in sorted(folder.names(*folder.counted)):
        total.update(name.encode())
        if folder.kind == "remote":
            total.update(versions[name].encode())
        else:
            with open(os.path.join(path, name), "rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def cache_folder() -> str:
    """Where copies of models go on this node: TOKLOSS_CACHE, or the user's cache folder."""
    given = os.environ.get("TOKLOSS_CACHE")
    if given:
        return os.path.abspath(os.path.expanduser(given))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "tokloss")


def _copy(folder: ModelFolder, names: list[str]) -> str:
    """Bring the named files of a remote folder into the cache. Copies of other versions have folders of their own."""
    key = hashlib.sha256(repr((folder.name, folder.files)).encode()).hexdigest()[:16]
    target = os.path.join(cache_folder(), "models", key)
    sizes = {name: size for name, size, _ in folder.files}
    try:
        os.makedirs(target, exist_ok=True)
        with FileLock(target + ".lock"):
            lacking = [name for name in names if not os.path.exists(os.path.join(target, name))]
            if lacking:
                _check_remote(folder)
            copies = {name: os.path.join(target, f"{name}.new") for name in lacking}
            for name, copy in copies.items():
                _copy_file(f"{folder.name}/{name}", copy, sizes[name])
            if lacking:  # again: of an object that was replaced meanwhile the copy may hold parts of both
                _check_remote(folder)
            for name, copy in copies.items():
                os.replace(copy, os.path.join(target, name))
    except TokLossError:
        raise
    except OSError as error:
        raise JobFailed(f"cannot cache {folder.name} in {target}: {error.strerror or error} (TOKLOSS_CACHE)") from None
    return target


def _check_remote(folder: ModelFolder) -> None:
    if _remote_files(folder.name) != folder.files:
        raise JobFailed(f"the model at {folder.name} has changed since the run began; {_CHANGED}")


def _copy_file(uri: str, target: str, size: int) -> None:
    """One file, whole or not at all."""
    fs, path = open_location(uri)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), delete=False) as temporary:
        try:
            with RangeFile(fs, path, size) as source:
                buffer = memoryview(bytearray(min(_BLOCK, max(1, size))))
                while count := source.readinto(buffer):
                    temporary.write(buffer[:count])
            temporary.flush()
            os.replace(temporary.name, target)
        except BaseException:
            Path(temporary.name).unlink(missing_ok=True)
            raise


_BLOCK = 32 << 20


def _remote_files(uri: str) -> tuple[tuple[str, int, str], ...]:
    fs, root = open_location(uri)
    if is_local(fs):
        raise Refused(f"use {root} instead of {uri}")
    entries = {posixpath.basename(e["name"]): e for e in children(fs, root) if e["type"] == "file"}
    wanted = sorted(name for name in entries if _matches(name, MODEL_FILES))
    found = [(name, listed(fs, entries[name]["name"], entries[name])) for name in wanted]
    return tuple((name, one.size, one.version) for name, one in found)


def _local_files(path: str, times: bool = False) -> tuple[tuple[str, int, str], ...]:
    """`times`: of change of the content, which tools set as they like, and of the file, which they cannot."""
    names = sorted(name for name in os.listdir(path) if _matches(name, MODEL_FILES))
    found = [(name, os.stat(os.path.join(path, name))) for name in names]
    return tuple((name, s.st_size, f"{s.st_mtime_ns} {s.st_ctime_ns}" if times else "") for name, s in found)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _snapshot(name: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES))
