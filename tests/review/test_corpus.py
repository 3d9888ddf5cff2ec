"""A sentence is found by its row, however files of the input share files of the output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import inline
from tests.support.tiny import row
from tokloss_ray import ScoreConfig
from tokloss_ray.errors import JobFailed
from tokloss_ray.output.records import read_records
from tokloss_ray.review import corpus
from tokloss_ray.review.corpus import Corpus


@pytest.mark.parametrize("shard_tokens", [40, 65_536])
def test_every_row_of_many_small_files(model: Path, tmp_path: Path, shard_tokens: int) -> None:
    for folder in ("b", "a"):
        for number in range(6):
            (tmp_path / folder).mkdir(exist_ok=True)
            rows = [row("Anna", f"{folder}{number}", f"{i}", tags=["B-PER", "O", "O"], lang="de" if i % 2 else "en")
                    for i in range(5)]  # fmt: skip
            inline.write_jsonl(tmp_path / folder / f"{number}.jsonl", rows)
    out = str(tmp_path / "out")
    sources = (str(tmp_path / "b"), str(tmp_path / "a"))  # not in the order of the alphabet
    found = inline.score_inline(
        ScoreConfig(model=str(model), input=sources, output=out, shard_tokens=shard_tokens, partition_by=("lang",))
    )
    one = Corpus(out)
    assert len(found.rows) == 60
    for expected in found.rows:
        sentence = one.sentence((expected["source"], expected["source_row"]))
        assert (sentence.words, sentence.example_id) == (expected["words"], expected["example_id"])
    if shard_tokens > 1000:
        shared = [r for r in read_records(out).values() if r.last_source not in (None, r.source)]
        assert shared, "no shard has several files: the test shows nothing"
    with pytest.raises(JobFailed, match="no file of scores/ has row 99"):
        one.sentence((found.rows[0]["source"], 99))


def test_memory_is_bounded(mined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Corpus(str(mined))
    sizes = []
    for expected in inline.read_rows(mined)[::20]:
        one.sentence((expected["source"], expected["source_row"]))
        sizes.append(one.cached)
    whole = sizes[-1]
    assert len(one._tables) > 3
    monkeypatch.setattr(corpus, "CACHE_BYTES", whole // 2)
    two = Corpus(str(mined))
    for expected in inline.read_rows(mined)[::20]:
        two.sentence((expected["source"], expected["source_row"]))
        assert two.cached <= whole // 2
        assert two.cached == sum(table.nbytes for table in two._tables.values())
