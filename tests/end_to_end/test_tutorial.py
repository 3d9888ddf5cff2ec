"""docs/tutorial.md from its first line to its last: every command and every example, one after the other."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.test_docs import TUTORIAL, blocks, missing, run, score_here
from tokloss_ray.output.decisions import read_decisions, standing
from tokloss_ray.scoring import driver


@pytest.mark.slow
def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(driver, "score", score_here)
    names: dict[str, Any] = {}
    commands = []
    for block in blocks(TUTORIAL):
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n".join(block.lines), block.where, "exec"), names)
        elif block.language == "console" and not block.note.startswith("not run"):
            said, quoted = "", []
            for line in [*block.lines, "$ "]:
                if line.startswith("$ "):
                    lost = missing(quoted, said)
                    assert lost is None, f"{block.where} quotes {lost!r}, but {commands[-1]} prints\n{said}"
                    if words := shlex.split(line.removeprefix("$ "))[1:]:
                        said, quoted = run(words), []
                        commands.append(words[0])
                        assert "error:" not in said, said
                else:
                    quoted.append(line)
    assert commands == ["score", "mine", "review", "apply-fixes", "score", "score", "diff"]
    # What the reader is told has happened.
    decided = standing(read_decisions("before")["anna"])
    assert len({d.batch for d in decided}) == 300
    assert sum(d.stratum is not None for d in decided) == 30
    changed = {
        (d.example_id, w): d.tags[w - d.start] for d in decided for w in range(d.start, d.stop) if d.tags != d.labels
    }
    assert changed
    names_of = pq.read_table("fixed.parquet")
    old, new = pq.read_table("corpus.parquet"), names_of
    assert old.schema.equals(new.schema, check_metadata=True)
    assert old["tokens"].equals(new["tokens"])
    differ = {
        (name, i)
        for name, a, b in zip(
            *(t[c].to_pylist() for t, c in ((old, "id"), (old, "ner_tags"), (new, "ner_tags"))), strict=True
        )
        for i, (x, y) in enumerate(zip(a, b, strict=True))
        if x != y
    }
    assert differ
    assert differ <= set(changed)
