"""Data files first, then the record that makes them count.

A shard without a record does not exist; running it again overwrites the same names. The record holds the shard's
figures too, so that totals and progress are sums over records, whoever wrote them.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokloss_ray import schema
from tokloss_ray.errors import JobFailed
from tokloss_ray.faults import fault_point
from tokloss_ray.output.names import COMMITS, ERRORS, SCORES, partition_folder, shard_name
from tokloss_ray.output.record import CommitRecord, DataFile
from tokloss_ray.output.totals import wait_share
from tokloss_ray.scoring.job import Job
from tokloss_ray.scoring.lease import check_owner
from tokloss_ray.scoring.stages.decode import Decoded
from tokloss_ray.storage.failures import take_retries
from tokloss_ray.storage.files import open_location, write_whole
from tokloss_ray.storage.sealed import sealed

MAX_PARTITIONS = 1000


def commit_shard(job: Job, about: dict[str, Any], decoded: Decoded) -> CommitRecord:
    """Write a shard's files, then its commit record; returns the record.

    Raises:
        JobFailed: the partition columns take too many values, rows got lost on the way, or the folder is another
            run's by now.
    """
    if about["rows"] != decoded.figures["rows"]:
        raise JobFailed(f"{about['rows']:,} rows were encoded, but {decoded.figures['rows']:,} were scored")
    fs, root = open_location(job.output)
    name = shard_name(about["unit"], about["index"])
    files = []
    fault_point("commit.before", name)
    check_owner(job.output, job.fingerprint)
    for folder, part in _partitions(job, decoded.scores):
        files.append(_write(fs, root, f"{folder}/{name}-{job.fingerprint}.parquet", part))
        fault_point("commit.data", name)
    errors_file = None
    if decoded.errors.num_rows:
        errors_file = _write(fs, root, f"{ERRORS}/{name}-{job.fingerprint}.parquet", decoded.errors)
        fault_point("commit.errors", name)
    retries = about.get("storage_retries", 0) + take_retries()
    known = {"memory_splits": 0, **about, **decoded.figures, "storage_retries": retries}
    seconds = about["seconds"]
    known["device_wait"] = wait_share(seconds["wait"], seconds["score"]) if "wait" in seconds else None
    del known["sources"]
    record = CommitRecord(shard=name, fingerprint=job.fingerprint, files=tuple(files), errors_file=errors_file, **known)
    check_owner(job.output, job.fingerprint)
    write_whole(fs, f"{root}/{COMMITS}/{name}.json", sealed(record.to_json()))
    fault_point("commit.record", name)
    return record


def _write(fs: fsspec.AbstractFileSystem, root: str, path: str, table: pa.Table) -> DataFile:
    data = memoryview(parquet_bytes(table))
    write_whole(fs, f"{root}/{path}", data)
    return DataFile(path, table.num_rows, len(data), sha256(data).hexdigest())


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """A table of scores/ or errors/ as the content of a file.

    In memory, because an object store must get the file in one call, never as a stream that may break off.
    """
    stored = _declared(table.schema)
    leaves = [leaf for field in stored for leaf in _leaves(field.name, field.type)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        # Hardly any two losses or probabilities are the same: a dictionary of them makes files larger, and slow.
        use_dictionary=[path for path, type_ in leaves if not pa.types.is_floating(type_)],
        write_statistics=[path for path, _ in leaves if "." not in path],  # nobody skips row groups by a token's
        # Checksums of pages let readers notice damage in what they read; that of the file covers every byte.
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        # Strings that come as dictionaries are strings to readers: this is where Arrow looks for the types.
        writer.add_key_value_metadata({"ARROW:schema": b64encode(stored.serialize()).decode()})
    return sink.getvalue()


def _declared(given: pa.Schema) -> pa.Schema:
    """The types of columns as readers see them."""
    declared = {field.name: field for field in schema.SCORES_FIELDS}
    return pa.schema([declared.get(field.name, field) for field in given], given.metadata)


def _leaves(path: str, type_: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """The columns that Parquet has for an Arrow column, with their types."""
    if pa.types.is_struct(type_):
        for field in type_:
            yield from _leaves(f"{path}.{field.name}", field.type)
    elif pa.types.is_map(type_):
        yield from _leaves(f"{path}.key_value.key", type_.key_type)
        yield from _leaves(f"{path}.key_value.value", type_.item_type)
    elif hasattr(type_, "value_field"):
        yield from _leaves(f"{path}.list.element", type_.value_type)
    else:
        yield path, type_


def _partitions(job: Job, scores: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each partition with its folder; the partition columns live in the folder's name alone."""
    if not scores.num_rows:
        return
    code = np.zeros(scores.num_rows, dtype=np.int64)
    folders = [SCORES]
    for column in job.partition_by:
        values = pc.dictionary_encode(scores.column(column).combine_chunks(), null_encoding="encode")
        names = [partition_folder(column, v) for v in values.dictionary.to_pylist()]
        code = code * len(names) + values.indices.to_numpy()
        present, code = np.unique(code, return_inverse=True)
        folders = [f"{folders[c // len(names)]}/{names[c % len(names)]}" for c in present]
        if len(folders) > MAX_PARTITIONS:
            raise JobFailed(
                f"--partition-by {' '.join(job.partition_by)} makes more than {MAX_PARTITIONS:,} folders per shard: "
                f"choose a column with fewer values, or a larger --shard-tokens"
            )
    data = scores.drop_columns(list(job.partition_by))
    # Two values can share a folder (null and the empty string): their rows go into one file.
    unique, of_code = np.unique(np.array(folders, dtype=object).astype(str), return_inverse=True)
    if len(unique) > 1:  # each file would have the dictionaries of all
        data = data.cast(_declared(data.schema))
    for i, folder in enumerate(unique.tolist()):
        yield folder, data if len(unique) == 1 else data.filter(pa.array(of_code[code] == i))
