"""IOB1 and IOB2 have the same names of tags: check, score and mine say where data and model differ in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tokloss_ray
from tests.support import inline
from tests.support.mining_outputs import TAGS, demo_sentences, score_demo, write_output
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.scoring.plan import make_plan
from tokloss_ray.scoring.preflight import preflight
from tokloss_ray.tags.schemes import begins_with_inside, is_mostly, read_tag_set
from tokloss_ray.tags.warnings import scheme_hint

ROWS = 300
Convert = Callable[[list[str]], list[str]]


def iob1(tags: list[str]) -> list[str]:
    """Tags of IOB2 as CoNLL-2003 was published: B only where an entity touches one of its type."""
    before = ["O", *tags[:-1]]
    return [f"I{t[1:]}" if t[0] == "B" and p[1:] != t[1:] else t for p, t in zip(before, tags, strict=True)]


def io(tags: list[str]) -> list[str]:
    return [f"I{t[1:]}" if t != "O" else t for t in tags]


def same(tags: list[str]) -> list[str]:
    return tags


def sloppy(tags: list[str]) -> list[str]:
    """Every fourth entity was begun with I."""
    return io(tags) if sum(t[0] == "B" for t in tags) and hash_of(tags) % 4 == 0 else tags


def hash_of(tags: list[str]) -> int:
    return sum(len(t) * i for i, t in enumerate(tags, 1))


def named(rows: pa.Table) -> list[list[str]]:
    return [[TAGS[t] for t in row] for row in rows["ner_tags"].to_pylist()]


def test_the_demo_in_either_scheme() -> None:
    tag_set = read_tag_set(tuple(TAGS))
    assert tag_set
    rows = named(pq.read_table(DATA))
    for convert, expected in ((same, False), (sloppy, False), (iob1, True), (io, True)):
        for start in range(0, len(rows), 500):
            some = [convert(row) for row in rows[start : start + 500]]
            codes = np.array([TAGS.index(t) for row in some for t in row])
            index = np.concatenate([np.arange(len(row)) for row in some])
            offsets = np.cumsum([0, *map(len, some)])
            assert is_mostly(*begins_with_inside(codes, offsets, index, tag_set)) == expected, (convert, start)


def planned(folder: Path, convert: Convert, words: bool = True, **options: Any) -> list[str]:
    """The warnings of the preflight about some sentences, as text tags or as token ids."""
    table = pq.read_table(DATA).slice(0, ROWS)
    columns: dict[str, Any] = {"tokens": table["tokens"], "tags": [convert(row) for row in named(table)]}
    if not words:
        tag_ids = [[TAGS.index(t) for t in row] for row in columns["tags"]]
        columns = {"input_ids": [[5] * (len(row) + 1) for row in tag_ids], "labels": [[-100, *row] for row in tag_ids]}
    pq.write_table(pa.table(columns), folder / "in.parquet")
    settings: dict[str, Any] = {"model": str(MODEL), "input": (str(folder / "in.parquet"),), "output": f"{folder}/out"}
    found = make_plan(preflight(ScoreConfig(**settings | options)), gpu=False, bfloat16=False).warnings
    return [warning for warning in found if "begin with I-" in warning]


@pytest.mark.parametrize("options", [{}, {"max_length": 24}, {"label_all_subtokens": True}, {"words": False}])
def test_the_preflight_warns(tmp_path: Path, options: dict[str, Any]) -> None:
    for convert, expected in ((same, 0), (sloppy, 0), (iob1, 1), (io, 1)):
        warnings = planned(tmp_path, convert, **options)
        assert len(warnings) == expected, convert
        if expected:
            assert "convert the tags to IOB2 before scoring" in warnings[0]
            assert "--scheme IOB1" in warnings[0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Real sentences with what the demo's model predicts."""
    folder = tmp_path_factory.mktemp("rows")
    return inline.read_rows(score_demo(folder, demo_sentences(folder, 0, ROWS)))


CASES: list[tuple[Convert, Convert, str | None, str | None]] = [
    (same, same, None, None),
    (sloppy, same, None, None),
    (iob1, iob1, "IOB1", None),
    (iob1, iob1, None, "labelled and predicted entities begin with I-, as in IOB1: mine with --scheme IOB1"),
    (same, same, "IOB1", "labelled and predicted entities begin with B-, as in IOB2: leave out --scheme IOB1"),
    (iob1, same, None, "convert the tags in the data to IOB2 and score again"),
    (iob1, same, "IOB1", "convert the tags in the data to IOB2 and score again"),
    (same, iob1, None, "convert the tags in the data to IOB1 and score again, then mine with --scheme IOB1"),
]


@pytest.mark.parametrize(("labels", "predicted", "scheme", "says"), CASES)
def test_mine_says_what_differs(
    rows: list[dict[str, Any]],
    labels: Convert,
    predicted: Convert,
    scheme: str | None,
    says: str | None,
    tmp_path: Path,
) -> None:
    changed = []
    for row in rows:
        at = [i for i, tag in enumerate(row["labels"]) if tag != "IGN"]
        new = row | {name: list(row[name]) for name in ("labels", "predicted_label")}
        for name, convert in (("labels", labels), ("predicted_label", predicted)):
            for i, tag in zip(at, convert([row[name][i] for i in at]), strict=True):
                new[name][i] = tag
        changed.append(new)
    output = str(write_output(tmp_path / "out", changed, TAGS))
    hint = scheme_hint(tokloss_ray.mine(output, scheme=scheme, write=False), scheme)
    assert (hint is None) if says is None else (hint or "").endswith(says)
    words = ["mine", output, "--show", "0", *(["--scheme", scheme] if scheme else [])]
    said = " ".join(CliRunner().invoke(app, words, env={"COLUMNS": "100"}).output.split())
    assert ("warning:" in said) == (says is not None)
    assert (says or "") in said
