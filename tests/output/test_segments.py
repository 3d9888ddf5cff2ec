"""Segments of commit records are a cache: whatever happens to them, what is read is what the records' files say."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.records import a_record
from tokloss_ray.errors import JobFailed, StorageFailed
from tokloss_ray.output import records as records_module
from tokloss_ray.output import segments
from tokloss_ray.output.done import Done, file_problems, list_data, read_committed
from tokloss_ray.output.names import shard_name
from tokloss_ray.output.record import CommitRecord, DataFile
from tokloss_ray.output.records import RecordStream, read_records, scan_records
from tokloss_ray.output.segments import RollUp
from tokloss_ray.output.totals import total
from tokloss_ray.storage.files import open_location, read_whole, remove, write_whole
from tokloss_ray.storage.sealed import sealed, unsealed

RUN, COUNT, EACH = "3f2a9c", 23, 5
BY_TAG = {"O": (10, 1.25), "B-PER": (2, 0.1)}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "RECORDS", EACH)


def record(index: int, fingerprint: str = RUN, **changes: Any) -> CommitRecord:
    numbers = dict.fromkeys(
        ("padded_tokens", "batch_tokens", "dropped_words", "storage_retries", "memory_splits", "error_rows"), 0
    )
    known: dict[str, Any] = {
        "fingerprint": fingerprint, "source": "a.parquet", "rows": 2, "scored_rows": 2, "sequences": 2, "tokens": 9,
        "labels": 12, "start": 2 * index, "stop": 2 * index + 2, "first_row": 2 * index, "last_row": 2 * index + 1,
        "seconds": {"encode": 0.1, "score": 0.25}, "batching": "padded", "errors": {}, "loss_by_tag": BY_TAG,
        "files": (DataFile(f"scores/{shard_name(0, index)}-{fingerprint}.parquet", 2, 4, "ab"),),
    }  # fmt: skip
    last = changes.pop("last", index == COUNT - 1)
    return a_record(0, index, last, **numbers | known | changes)


def put(output: str, of: CommitRecord) -> bytes:
    """Commit a shard as a worker does; returns the record's bytes."""
    fs, root = open_location(output)
    data = sealed(of.to_json())
    for file in of.files:
        write_whole(fs, f"{root}/{file.path}", b"data")
    write_whole(fs, f"{root}/_commits/{of.shard}.json", data)
    return data


def run(output: str, indices: range, number: int = 1) -> RollUp:
    """What a driver does while its workers commit shards; they are not done in the order of their names."""
    roll_up = RollUp(output, RUN, number)
    for index in random.Random(0).sample(indices, len(indices)):
        of = record(index)
        roll_up.add(of.shard, put(output, of))
    return roll_up


def names(output: str, start: str = "rolled-") -> list[str]:
    fs, root = open_location(output)
    found = (entry["name"].rpartition("/")[2] for entry in fs.ls(f"{root}/_commits", detail=True))
    return sorted(name for name in found if name.startswith(start))


@pytest.fixture
def read_singly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records that are read from their own files."""
    read: list[str] = []

    def noting(fs: Any, path: str) -> bytes:
        read.append(path.rpartition("/")[2])
        return read_whole(fs, path)

    monkeypatch.setattr(records_module, "read_whole", noting)
    return read


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run of 23 shards with segments of five: three are in none."""
    place = str(tmp_path / "out") if request.param == "disk" else f"{request.getfixturevalue('bucket')}/out"
    assert run(place, range(COUNT)).number == 5
    return place


def assert_as_the_files_say(output: str) -> None:
    rolled, plain = scan_records(output, RUN, rolled=True), scan_records(output, RUN)
    assert rolled == plain
    whole = read_committed(output, RUN)
    assert whole.tally.totals() == total(plain.records.values())
    assert (whole.done.shards, whole.damaged, whole.of_other_runs) == (
        len(plain.records), plain.damaged, plain.of_other_runs,
    )  # fmt: skip


def test_the_rest_alone_is_read_singly(output: str, read_singly: list[str]) -> None:
    assert len(names(output)) == 4
    found = read_records(output, RUN)
    assert list(found.values()) == [record(index) for index in range(COUNT)]
    assert len(read_singly) == 3
    committed = read_committed(output, RUN)
    assert (committed.done.missing([0]), list(committed.done.misfits({0: 2 * COUNT}))) == ([], [])
    assert (committed.done.shards, committed.next_segment) == (COUNT, 5)
    assert file_problems(list_data(output), committed.files()) == []
    assert_as_the_files_say(output)


def test_a_record_that_is_removed_is_gone(output: str) -> None:
    fs, root = open_location(output)
    for index in (0, 7):
        remove(fs, f"{root}/_commits/{shard_name(0, index)}.json")
    committed = read_committed(output, RUN)
    assert committed.done.missing([0]) == [(0, "000000-000"), (0, "000000-007")]
    assert committed.done.held()[0].keys() == set(range(COUNT)) - {0, 7}
    assert_as_the_files_say(output)


def test_a_record_that_is_written_again_counts_as_it_is_now(output: str, read_singly: list[str]) -> None:
    """Of the same size, too; and once it is in another segment, that one counts."""
    again = record(4, loss_by_tag={"O": (10, 9.25), "B-PER": (2, 0.1)})
    put(output, again)
    assert read_records(output, RUN)["000000-004"] == again
    assert "000000-004.json" in read_singly
    assert_as_the_files_say(output)
    run(output, range(COUNT), number=5)
    read_singly.clear()
    assert read_records(output, RUN)["000000-004"] == record(4)
    assert len(read_singly) == 3


@pytest.mark.parametrize("seed", range(2))
def test_damaged_segments_change_nothing(output: str, seed: int) -> None:
    fs, root = open_location(output)
    rng = random.Random(seed)
    for number, name in enumerate(names(output)):
        path = f"{root}/_commits/{name}"
        data = bytearray(read_whole(fs, path))
        if number == 0:
            data = data[: rng.randrange(len(data))]
        elif number == 1:
            data = bytearray(rng.randbytes(len(data)))
        else:
            for at in rng.sample(range(len(data)), 3):
                data[at] ^= rng.randrange(1, 256)
        write_whole(fs, path, bytes(data))
    assert_as_the_files_say(output)
    for name in names(output):
        remove(fs, f"{root}/_commits/{name}")
    assert_as_the_files_say(output)


def test_a_segment_of_another_shape_or_with_false_entries(output: str) -> None:
    """Its checksums are right, so that only the content can tell."""
    fs, root = open_location(output)
    first, second, third, _ = (f"{root}/_commits/{name}" for name in names(output))
    table = segments.read_segment(fs, first)
    assert table is not None
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    entries = [
        segments.Entry(name.decode(), size, version.decode(), data[:-4] + b"0" + data[-3:])
        for name, size, version, data in zip(*columns.values(), strict=True)
    ]
    segments.write_segment(fs, first, entries)
    swapped = [entry._replace(data=columns["record"][place - 1]) for place, entry in enumerate(entries)]
    segments.write_segment(fs, second, swapped)
    buffer = pa.BufferOutputStream()
    pq.write_table(table.drop_columns(["version"]), buffer)
    write_whole(fs, third, memoryview(buffer.getvalue()))
    assert_as_the_files_say(output)


def test_a_damaged_record_that_is_in_a_segment(output: str) -> None:
    """Damage changes version or size; what is wrong is said of the record's file."""
    fs, root = open_location(output)
    write_whole(fs, f"{root}/_commits/000000-003.json", b"{}")
    assert list(read_committed(output, RUN).damaged) == ["000000-003.json"]
    with pytest.raises(JobFailed, match=r"_commits/000000-003\.json is damaged"):
        read_records(output, RUN)
    assert_as_the_files_say(output)


def test_segments_and_records_of_other_runs(output: str) -> None:
    roll_up = RollUp(output, "ffffff", 1)
    for index in range(40, 40 + EACH):
        of = record(index, "ffffff")
        roll_up.add(of.shard, put(output, of))
    committed = read_committed(output, RUN)
    assert committed.done.shards == COUNT
    assert committed.other_segments == ["rolled-000001-ffffff.parquet"]
    assert len(committed.of_other_runs) == EACH
    assert committed.next_segment == 5
    assert_as_the_files_say(output)


def test_an_output_without_segments_gets_them_from_a_driver_alone(output: str, read_singly: list[str]) -> None:
    fs, root = open_location(output)
    for name in names(output):
        remove(fs, f"{root}/_commits/{name}")
    assert read_committed(output, RUN).done.shards == COUNT
    assert names(output) == [], "who only reads, writes nothing"
    assert read_committed(output, RUN, roll_up=True).next_segment == 5
    read_singly.clear()
    assert read_committed(output, RUN).done.shards == COUNT
    assert (len(names(output)), len(read_singly)) == (4, 3)
    assert_as_the_files_say(output)


def test_segments_that_hold_nothing_any_more_are_removed(output: str) -> None:
    fs, root = open_location(output)
    assert len(names(output)) == 4
    for index in range(COUNT):
        put(output, record(index, loss_by_tag={"O": (10, 9.25)}))
    write_whole(fs, f"{root}/_commits/rolled-000009-{RUN}.parquet", b"")
    assert read_committed(output, RUN, roll_up=True).next_segment == 14
    assert names(output) == [segments.segment_name(number, RUN) for number in range(10, 14)]
    assert_as_the_files_say(output)


def test_a_store_whose_etags_are_no_md5(output: str, monkeypatch: pytest.MonkeyPatch, read_singly: list[str]) -> None:
    """As with keys of a key service: versions are asked for."""
    monkeypatch.setattr(segments, "_md5", lambda data: "0" * 32)
    run(output, range(COUNT), number=5)
    assert read_committed(output, RUN).done.shards == COUNT
    assert len(read_singly) == 3


def test_a_roll_up_that_fails_does_not_fail_the_run(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise StorageFailed("cannot write: access denied")

    monkeypatch.setattr(segments, "write_segment", refuse)
    put(output, record(0, loss_by_tag={"O": (10, 9.25)}))
    assert run(output, range(COUNT), number=5).number == 5
    assert read_committed(output, RUN, roll_up=True).done.shards == COUNT


def test_files_beside_the_records(tmp_path: Path) -> None:
    """Temporary files do not count, names that are no shard's are damaged records, and folders are left alone."""
    output = str(tmp_path / "out")
    run(output, range(COUNT))
    folder = tmp_path / "out" / "_commits"
    (folder / ".000000-099.json.12.tmp").write_text("{")
    (folder / ".rolled-000001-3f2a9c.parquet.12.tmp").write_text("{")
    (folder / "notes.json").write_text("{}")
    (folder / "größe.json").write_text("{}")
    (folder / "old").mkdir()
    (folder / "old" / "000000-001.json").write_text("{}")
    committed = read_committed(output, RUN)
    assert sorted(committed.damaged) == ["größe.json", "notes.json"]
    assert committed.done.shards == COUNT
    empty = RecordStream(str(tmp_path / "nothing"), RUN)
    assert (list(empty), empty.next_segment) == ([], 1)


def test_a_file_that_is_touched_back_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """Same name, size, inode and time of modification."""
    output = str(tmp_path / "out")
    run(output, range(COUNT))
    path = tmp_path / "out" / "_commits" / "000000-004.json"
    before = path.stat()
    again = sealed(record(4, loss_by_tag={"O": (10, 9.25), "B-PER": (2, 0.1)}).to_json())
    path.write_bytes(again)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_ino, before.st_mtime_ns) == (after.st_size, after.st_ino, after.st_mtime_ns)
    assert read_records(output, RUN)["000000-004"].loss_by_tag["O"] == (10, 9.25)


def test_fields_that_a_later_version_adds_are_passed_over() -> None:
    later = json.loads(sealed(record(3).to_json()))
    later["files"][0]["codec"] = "zstd"
    later["generation"] = 2
    later.pop("check")
    assert CommitRecord.from_json(unsealed(sealed(later))) == record(3)


def test_a_whole_unit_is_a_line() -> None:
    """And the same is said of it as of one whose shards are kept."""
    indices = random.Random(1).sample(range(COUNT), COUNT)
    done = Done(record(index) for index in indices)
    assert done.held() == {}
    assert not done.add(record(3)), "Ray may deliver a shard twice"
    assert done.shards == COUNT
    assert list(done.misfits({0: 99})) == [("000000-022", "its unit ends at row 46, but the plan says 99")]
    assert list(done.misfits({})) == [("000000-000", "the plan has no unit 0")]
    assert done.add(record(COUNT + 1))
    problems = list(done.misfits({0: None}))
    assert problems == [("000000-022", "it is the last of its unit, but shard 000000-024 follows")]
    apart = Done([record(0), record(2), record(COUNT - 1)])
    assert apart.missing([0])[0] == (0, "000000-001")
    hole = Done([record(0), record(2, last=True), record(5)])
    assert hole.missing([0]) == [(0, "000000-001")], "as many shards as the last one's number says, but not those"
