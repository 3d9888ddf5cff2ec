"""Sentences with neighbours of their document around them, against a loop written by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import reference
from tests.support.inline import Inline, Row, score_inline, write_jsonl
from tests.support.mining_outputs import TAGS
from tokloss_ray import ScoreConfig
from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.output.verify import verify
from tokloss_ray.scoring.stages.context import Context, surround
from tokloss_ray.scoring.stages.row_tokenizer import NO_WORD

MAX_LENGTH = 64


@functools.cache
def corpus(documents: int) -> list[Row]:
    """Documents of one to seven real sentences, long ones among them; three sentences say no document."""
    draw = np.random.default_rng(7)
    sizes = draw.integers(1, 8, documents)
    rows = pq.read_table(DATA).slice(0, int(sizes.sum())).to_pylist()
    names = np.repeat([f"d{i}" for i in range(documents)], sizes).tolist()
    for at in (10, 11, 30):
        names[at] = None
    return [
        {"id": row["id"], "tokens": row["tokens"], "ner_tags": [TAGS[t] for t in row["ner_tags"]], "doc": name}
        for row, name in zip(rows, names, strict=True)
    ]


def by_hand(rows: list[Row], sentences: int | None, tokens: int | None, max_length: int) -> dict[str, tuple[Any, Any]]:
    """Predicted tags and losses of the tokens of each sentence, special tokens left out: one sequence at a time."""
    model, tokenizer = reference.load(MODEL)
    body = [tokenizer(row["tokens"], is_split_into_words=True, add_special_tokens=False) for row in rows]
    (head, tail) = tokenizer("")["input_ids"]
    tags = [model.config.id2label[i] for i in range(model.config.num_labels)]
    found: dict[str, tuple[Any, Any]] = {}
    for i, row in enumerate(rows):
        own = body[i]["input_ids"]
        left: list[int] = []
        right: list[int] = []
        for side, step in ((left, -1), (right, 1)):
            j, seen = i + step, 0
            while 0 <= j < len(rows) and row["doc"] is not None and rows[j]["doc"] == row["doc"]:
                if sentences is not None and seen == sentences:
                    break
                ids = body[j]["input_ids"]
                side[:] = [*ids, *side] if step < 0 else [*side, *ids]
                j, seen = j + step, seen + 1
        if tokens is not None:
            left, right = left[max(0, len(left) - tokens) :], right[:tokens]
        room = max_length - len(own) - 2
        if room < 0:
            continue  # it becomes windows
        while len(left) + len(right) > room:  # from the longer side; of equal ones from the right
            if len(left) > len(right):
                left.pop(0)
            else:
                right.pop()
        ids = [head, *left, *own, *right, tail]
        labels = [tags.index(row["ner_tags"][w]) for w in body[i].word_ids()]
        first = [w != v for w, v in zip(body[i].word_ids(), [None, *body[i].word_ids()], strict=False)]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, 1 + len(left) : 1 + len(left) + len(own)].double()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none").numpy()
        found[row["id"]] = [tags[k] for k in logits.argmax(-1).tolist()], np.where(first, losses, 0)
    return found


@pytest.mark.parametrize(
    ("documents", "sentences", "tokens"),
    [
        (15, 2, None),
        (15, None, 12),
        pytest.param(200, 2, None, marks=pytest.mark.slow),
        pytest.param(200, None, 12, marks=pytest.mark.slow),
    ],
)
def test_equals_a_loop_by_hand(tmp_path: Path, documents: int, sentences: int | None, tokens: int | None) -> None:
    """Whatever the cuts: in row groups and shards of a few documents, that end in the middle of some."""
    rows = corpus(documents)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=10)
    result = score_inline(
        ScoreConfig(
            model=str(MODEL), input=(str(tmp_path / "in.parquet"),), output=str(tmp_path / "out"), id_column="id",
            context_sentences=sentences, context_tokens=tokens, document_column="doc", shard_tokens=100,
            max_length=MAX_LENGTH,
        )
    )  # fmt: skip
    assert len(result.plan.units) > 2
    assert len(result.records) > len(result.plan.units)
    assert verify(str(tmp_path / "out")).problems == []
    whole = [row for row in result.rows if row["window"] == 0]
    assert [row["example_id"] for row in whole] == [row["id"] for row in rows]
    expected = by_hand(rows, sentences, tokens, MAX_LENGTH)
    assert len(rows) >= len(expected) > 0.9 * len(rows)
    for row in whole:
        if row["example_id"] not in expected:
            continue
        predicted, losses = expected[row["example_id"]]
        np.testing.assert_allclose(row["loss"][1:-1], losses, rtol=1e-4, atol=1e-4)
        assert row["predicted_label"][1:-1] == predicted
    # Each labelled word is scored once, in long sentences too.
    assert result.totals.labels == sum(len(row["tokens"]) for row in rows)


def test_cuts_do_not_matter(tmp_path: Path) -> None:
    """The same rows in one file of one row group, in small shards, as JSON lines, and with a limit."""
    rows = corpus(12)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "one.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "many.parquet", row_group_size=7)
    write_jsonl(tmp_path / "lines.jsonl", rows)
    found = []
    for name, options in (
        ("one.parquet", {}), ("many.parquet", {"shard_tokens": 200}), ("lines.jsonl", {"shard_tokens": 200}),
        ("many.parquet", {"limit": 30, "shard_tokens": 200}),
    ):  # fmt: skip
        result = score_inline(
            ScoreConfig(
                model=str(MODEL), input=(str(tmp_path / name),), output=str(tmp_path / f"out{len(found)}"),
                context_sentences=3, document_column="doc", id_column="id", max_length=MAX_LENGTH, **options,
            )
        )  # fmt: skip
        found.append([(row["example_id"], row["window"], row["input_ids"], row["loss"]) for row in result.rows])
    for other in found[1:]:
        assert [row[:3] for row in other] == [row[:3] for row in found[0][: len(other)]]
        for (*_, ours), (*_, theirs) in zip(found[0], other, strict=False):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len({len(rows) for rows in found[:3]}) == 1
    assert len(found[3]) < len(found[0])


CONLL = """-DOCSTART- -X- O

Anton B-PER
wohnt O

in O
Berlin B-LOC

-DOCSTART- -X- O

Die O
Stadt X

am O
See O

# newdoc id = a
Anna B-PER
"""


def test_documents_of_conll_files(run: Callable[..., Inline], tmp_path: Path) -> None:
    """Also where the sentence that begins one is refused."""
    (tmp_path / "in.conll").write_text(CONLL)
    result = run(tmp_path / "in.conll", context_sentences=2, max_error_rate=0.5)
    assert [error["reason"] for error in result.errors] == ["unknown_tag"]
    named = [
        {"tokens": words, "ner_tags": tags, "doc": name}
        for words, tags, name in (
            (["Anton", "wohnt"], ["B-PER", "O"], "1"), (["in", "Berlin"], ["O", "B-LOC"], "1"),
            (["am", "See"], ["O", "O"], "2"), (["Anna"], ["B-PER"], "3"),
        )
    ]  # fmt: skip
    other = run(write_jsonl(tmp_path / "in.jsonl", named), context_sentences=2, document_column="doc")
    for row, wanted in zip(result.rows, other.rows, strict=True):
        assert row["input_ids"] == wanted["input_ids"]
        np.testing.assert_allclose(row["loss"], wanted["loss"], atol=1e-5)
    alone = run(tmp_path / "in.conll", max_error_rate=0.5)
    changed = [not np.allclose(a["loss"], b["loss"], atol=1e-6) for a, b in zip(result.rows, alone.rows, strict=True)]
    assert changed == [True, True, False, False]
    assert not result.plan.warnings
    unnamed = run(tmp_path / "in.jsonl", context_sentences=2)
    assert unnamed.plan.warnings == ["no --document-column: all sentences of a file are taken for one document"]


def test_what_cannot_be_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    encoded = write_jsonl(tmp_path / "ids.jsonl", [{"input_ids": [2, 3], "labels": [-100, -100]}])
    assert "need words" in refused(input=encoded, context_sentences=1)
    assert "context_tokens: cannot be combined" in refused(context_sentences=1, context_tokens=1)
    assert "document_column: is for context_sentences" in refused(document_column="lang")
    assert "no column doc (--document-column)" in refused(context_sentences=1, document_column="doc")


Rows = tuple[list[list[int]], list[int]]


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Rows as words of their tokens, with special tokens at both ends, and their documents."""
    rows = draw(st.lists(st.lists(st.integers(1, 3), max_size=5), min_size=1, max_size=8))
    documents = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    words = [[NO_WORD, *(w for w, size in enumerate(sizes) for _ in range(size)), NO_WORD] for sizes in rows]
    return words, np.cumsum(documents).tolist()


@settings(max_examples=300, deadline=None)
@given(some_rows(), st.integers(0, 3), st.integers(1, 9), st.integers(0, 12), st.data())
def test_each_token_is_its_rows_own_once(
    rows: Rows, sentences: int, tokens: int, more: int, data: st.DataObject
) -> None:
    """And around it stands what is next to it in its document, as much as fits, the sides as equal as can be."""
    words, documents = rows
    most = max(map(len, words)) + more
    begin = data.draw(st.integers(0, len(words)))
    end = data.draw(st.integers(begin, len(words)))
    context = Context(sentences, 0 if sentences else tokens)
    flat, lengths = np.concatenate(words), np.array([len(row) for row in words])
    starts = np.append(0, np.cumsum(lengths))
    found = surround(context, np.array(documents), flat, lengths, slice(begin, end), most)
    assert len(found.at) == len(found.own) == found.lengths.sum()
    assert (found.lengths <= most).all()
    own = found.at[found.own]
    assert own.tolist() == list(range(starts[begin], starts[end])), "each token of each row is its own, once, in order"
    ends = np.cumsum(found.lengths)
    for row, (a, b) in enumerate(zip(ends - found.lengths, ends, strict=True), start=begin):
        at, mine = found.at[a:b].tolist(), found.own[a:b].tolist()
        if len(words[row]) == 2:
            assert all(mine)
            continue
        of = [np.searchsorted(starts, t, side="right") - 1 for t in range(len(flat))]
        body = [t for t in range(len(flat)) if flat[t] != NO_WORD and documents[of[t]] == documents[row]]
        before = [t for t in body if of[t] < row and (not sentences or of[t] >= row - sentences)]
        after = [t for t in body if of[t] > row and (not sentences or of[t] <= row + sentences)]
        if not sentences:
            before, after = before[max(0, len(before) - tokens) :], after[:tokens]
        room = most - len(words[row])
        while len(before) + len(after) > room:
            if len(before) > len(after):
                before.pop(0)
            else:
                after.pop()
        inner = list(range(starts[row] + 1, starts[row + 1] - 1))
        assert at == [starts[row], *before, *inner, *after, starts[row + 1] - 1]
