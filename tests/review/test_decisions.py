"""The files of decisions: what is durable, what counts, and how reviewers agree."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from tokloss_ray.errors import Refused, StorageFailed
from tokloss_ray.output import decisions
from tokloss_ray.output.agreement import agreement, conflicts
from tokloss_ray.output.decisions import Decision, by_word, file_stem, from_line, read_decisions, standing, to_line
from tokloss_ray.review import journal
from tokloss_ray.review.journal import Journal


def decision(batch: int = 1, start: int = 0, tags: tuple[str | None, ...] = ("O",), **more: Any) -> Decision:
    about: dict[str, Any] = {
        "reviewer": "anna", "time": "2026-01-02T03:04:05.678+00:00", "action": "accept", "source": "a.jsonl",
        "source_row": 0,
        "words": tuple("w" for _ in tags), "labels": tuple("B-X" for _ in tags), "word_index": start,
    }  # fmt: skip
    return Decision(**about | {"batch": batch, "start": start, "stop": start + len(tags), "tags": tags} | more)


@pytest.mark.parametrize("word", ["plain", "\u2028\n\r\t\"'", "\ud800", "", "名前", "\x00"])
def test_lines_hold_any_text(word: str) -> None:
    one = decision(words=(word,), example_id=word, reviewer=f"n{word}")
    line = to_line(one)
    assert line.count(b"\n") == 1
    assert from_line(line) == one


def test_written_is_read(tmp_path: Path) -> None:
    first, second = [decision(1)], [decision(2, of=2), decision(2, start=4, of=2)]
    written = Journal(str(tmp_path), "anna", 0)
    written.write(first)
    written.write(second)
    assert read_decisions(str(tmp_path)) == {"anna": [*first, *second]}
    written.close()
    again = Journal(str(tmp_path), "anna", 2)
    again.write([decision(3)])
    again.close()
    assert [d.batch for d in read_decisions(str(tmp_path))["anna"]] == [1, 2, 2, 3]


def test_an_unfinished_line_never_counts(tmp_path: Path) -> None:
    """Whatever a process that was killed has left of its last write."""
    line = to_line(decision(2))
    for cut in range(1, len(line)):
        folder = tmp_path / f"{cut}"
        written = Journal(str(folder), "anna", 0)
        written.write([decision(1)])
        written.close()
        with (folder / "review/anna.jsonl").open("ab") as file:
            file.write(line[:cut])
        assert [d.batch for d in read_decisions(str(folder))["anna"]] == [1]
        if cut % 50 == 0:
            again = Journal(str(folder), "anna", 1)
            again.write([decision(2)])
            again.close()
            assert [d.batch for d in read_decisions(str(folder))["anna"]] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    written = Journal(str(tmp_path), "anna", 0)
    written.write([decision(1)])
    written.close()
    file = tmp_path / "review/anna.jsonl"
    for damage in (
        b"{}\n",
        b'{"action": "accept"}\n',
        b"\xff\n",
        file.read_bytes().replace(b'"stop": 1', b'"stop": 2'),
    ):
        file.write_bytes(to_line(decision(1)) + damage)
        with pytest.raises(Refused, match=r"line 2 of .*anna\.jsonl is damaged"):
            read_decisions(str(tmp_path))


def test_half_a_batch_does_not_count() -> None:
    assert standing([decision(1), decision(2, of=3), decision(2, start=1, of=3)]) == [decision(1)]


def test_a_full_disk_leaves_no_half_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Journal(str(tmp_path), "anna", 0)
    written.write([decision(1)])
    calls = iter([10, OSError(28, "No space left on device")])

    def write(descriptor: int, data: bytes) -> int:
        result = next(calls)
        if isinstance(result, OSError):
            raise result
        real(descriptor, data[:result])
        return result

    real = journal.os.write
    monkeypatch.setattr(journal.os, "write", write)
    with pytest.raises(StorageFailed, match="no space left"):
        written.write([decision(2)])
    monkeypatch.undo()
    written.write([decision(3)])
    written.close()
    assert [d.batch for d in read_decisions(str(tmp_path))["anna"]] == [1, 3]


def test_one_process_for_each_reviewer(tmp_path: Path) -> None:
    first = Journal(str(tmp_path), "anna", 0)
    with pytest.raises(Refused, match="in another process"):
        Journal(str(tmp_path), "anna", 0)
    Journal(str(tmp_path), "ben", 0).close()
    first.close()
    Journal(str(tmp_path), "anna", 0).close()


@pytest.mark.parametrize("name", ["", "  ", "x" * 300])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(Refused, match="--reviewer"):
        file_stem(name)


def test_names_are_names_of_files(tmp_path: Path) -> None:
    names = ["anna", "Anna B.", "../../etc", ".hidden", "a/b", "名前", "x\ny", "CON", "a%2Fb"]
    for name in names:
        written = Journal(str(tmp_path), name, 0)
        written.write([decision(reviewer=name)])
        written.close()
    assert set(read_decisions(str(tmp_path))) == set(names)
    assert {path.name for path in tmp_path.iterdir()} == {"review"}


def test_undo_takes_back_a_batch_and_the_one_before_stands() -> None:
    undo = decision(3, action="undo", undoes=2, start=0, tags=(), words=(), labels=())
    done = [decision(1, tags=("X", "X")), decision(2, start=1, tags=("Y",)), undo]
    assert by_word(standing(done[:2]))["a.jsonl", 0][1].batch == 2
    assert {d.batch for d in by_word(standing(done))["a.jsonl", 0].values()} == {1}


def test_conflicts_are_words_with_different_tags() -> None:
    both = {
        "anna": [decision(1, tags=("X", "Y")), decision(2, start=5, tags=("X",), action="skip")],
        "ben": [
            decision(1, start=1, tags=("Y", "Z"), reviewer="ben"),
            decision(2, start=5, tags=("Y",), reviewer="ben"),
        ],
        "cora": [decision(1, start=2, tags=("X",), reviewer="cora")],
    }
    assert conflicts(both) == {("a.jsonl", 0): [2]}


def test_kappa_is_that_of_scikit_learn() -> None:
    chance = random.Random(1)
    for size in (5, 80):
        tags = [[chance.choice("XYZ") for _ in range(size)] for _ in range(2)]
        tags[1] = [b if chance.random() < 0.3 else a for a, b in zip(*tags, strict=True)]
        both = {
            name: [decision(i + 1, start=i, tags=(tag,), reviewer=name) for i, tag in enumerate(own)]
            for name, own in zip(("anna", "ben"), tags, strict=True)
        }
        (pair,) = agreement(both)
        assert (pair.words, pair.same) == (size, sum(a == b for a, b in zip(*tags, strict=True)))
        assert pair.kappa == pytest.approx(cohen_kappa_score(*tags))
    assert agreement({"anna": [decision()], "ben": [decision(reviewer="ben")]})[0].kappa is None
    assert decisions.ACTIONS == ("keep", "accept", "edit", "skip")
