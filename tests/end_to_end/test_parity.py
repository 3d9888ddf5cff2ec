"""The job against the plain procedure: each value it writes, on real sentences and on one model of every family.

`reference.py` scores one sentence at a time without padding; the job batches, pads, sorts and cuts windows. The rows
must be the same: identifiers exactly, losses and probabilities within float32 tolerance, and the predicted tag wherever
the two best logits are not tied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import models, reference, warm
from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig, score
from tokloss_ray.demo import DATA, MODEL

pytestmark = pytest.mark.usefixtures("ray_session")

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
TIE = 1e-4  # logits closer than this may swap places between two float32 runs
WINDOW = 32
OVERLAP = 8

Row = dict[str, Any]


# Data.


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep the reference out of the actors' way: two busy thread pools on two cores are several times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo_rows() -> list[Row]:
    return pq.read_table(DATA, columns=["id", "tokens", "ner_tags"]).to_pylist()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, demo_rows: list[Row]) -> Callable[..., Path]:
    """`models.build` on a vocabulary from 300 demo sentences, each distinct model built once."""
    root = tmp_path_factory.mktemp("models")
    sentences = [row["tokens"] for row in demo_rows[:300]]
    built: dict[str, Path] = {}

    def build_once(family: str, tags: list[str] = TAGS, **variations: Any) -> Path:
        key = repr((family, tags, sorted(variations.items())))
        if key not in built:
            built[key] = models.build(family, root / f"{family}-{len(built)}", sentences, tags, **variations)
        return built[key]

    return build_once


@pytest.fixture(scope="module")
def sample(demo_rows: list[Row]) -> list[Row]:
    """60 sentences outside the vocabulary's 300, ten of them among the longest, and some awkward ones."""
    rest = demo_rows[300:]
    longest = sorted(rest, key=lambda row: -len(row["tokens"]))[:50:5]
    others = [row for row in rest if row not in longest]
    return longest + others[:: len(others) // 50][:50] + AWKWARD


def _awkward(name: str, words: list[str], tags: list[int | None] | None = None) -> Row:
    return {"id": name, "tokens": words, "ner_tags": [i % 7 for i in range(len(words))] if tags is None else tags}


AWKWARD = [
    _awkward("one-word", ["Anton"]),
    # Special tokens written in the text are words like others; some have the pad token's id.
    _awkward("special-tokens", ["[SEP]", "Zu", "<s>", "[MASK]", "</s>", "<pad>", "[PAD]", "Ende", "[CLS]", "<unk>"]),
    _awkward("no-tokens", ["\u200b", "Haus", "\u00ad", "\ufeff", "", "Berg", " "]),
    _awkward("unicode", ["\U0001f600", "日本語", "e\u0301", "\u00e9", "Gru\u0308n", "New York", "ﬁn"]),
    _awkward("long-word", ["a" * 150, "und", "b"]),
    _awkward("some-untagged", ["Haus", "am", "See", "Anton"], [None, 0, None, 1]),
    _awkward("all-untagged", ["Haus", "am", "See"], [None, None, None]),
]


@pytest.fixture(scope="module")
def long_rows(demo_rows: list[Row], build: Callable[..., Path]) -> list[Row]:
    """Twelve rows of 150 tokens and more, made by joining real sentences, and 20 rows of two to four words."""
    _, tokenizer = reference.load(build("bert"))
    rows = []
    sentences = iter(demo_rows[1000:])
    for number in range(12):
        words: list[str] = []
        tags: list[int | None] = []
        while len(tokenizer(words, is_split_into_words=True)["input_ids"]) < 150 + 5 * number:
            sentence = next(sentences)
            words += sentence["tokens"]
            tags += sentence["ner_tags"]
        tags[3::11] = [None] * len(tags[3::11])  # words without a tag are scored in no window
        rows.append({"id": f"long-{number}", "tokens": words, "ner_tags": tags})
    short = [row for row in demo_rows if 2 <= len(row["tokens"]) <= 4][:20]
    return rows + short


# Running the job and comparing.


def write_rows(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(
    folder: Path, model: Path, rows: list[Row], job: Callable[[ScoreConfig], Any] = score_inline, **options: Any
) -> list[Row]:
    """Score words+tags rows and return the output's rows. job: `score` to go through Ray, which takes seconds."""
    options = {"tokens_column": "tokens", "labels_column": "ner_tags", "id_column": "id", "tags": TAGS} | options
    source = write_rows(folder / "in.parquet", rows)
    job(ScoreConfig(model=str(model), input=[str(source)], output=str(folder / "out"), **options))
    return read_rows(folder / "out" / "scores")


def read_rows(folder: Path) -> list[Row]:
    files = sorted(folder.rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def by_id(rows: list[Row]) -> dict[str, Row]:
    """Index rows that are one window each."""
    assert all(row["window"] == 0 for row in rows)
    indexed = {row["example_id"]: row for row in rows}
    assert len(indexed) == len(rows), "an example_id appears twice"
    return indexed


def assert_same(rows: list[Row], expected: dict[str, Row]) -> None:
    """Compare output rows, one window each, with the reference's rows by id."""
    got = by_id(rows)
    assert set(got) == set(expected)
    for name, want in expected.items():
        row = got[name]
        for column in ("input_ids", "input_tokens", "word_ids", "labels", "num_tokens", "num_labels"):
            assert row[column] == want[column], (name, column)
        for column in ("predicted_label", "second_label", "loss", "predicted_prob", "second_prob"):
            assert len(row[column]) == want["num_tokens"], (name, column)
        assert row["num_dropped_words"] == want["num_dropped_words"], name
        assert_totals(row)
    pairs = [(got[name], want) for name, want in expected.items()]
    assert_values(pairs)


def assert_values(pairs: list[tuple[Row, Row]]) -> None:
    """Compare losses, probabilities and predicted tags of (output row, reference row) pairs over all their tokens."""

    def flat(side: int, column: str) -> np.ndarray:
        return np.array([value for pair in pairs for value in pair[side][column]])

    for column in ("loss", "predicted_prob", "second_prob"):
        np.testing.assert_allclose(flat(0, column), flat(1, column), rtol=1e-4, atol=1e-4, err_msg=column)
    ignored = flat(1, "labels") == reference.IGN
    assert (flat(0, "loss")[ignored] == 0.0).all()
    clear = flat(1, "gap") > TIE
    assert clear.mean() > 0.95  # or this would compare next to nothing
    assert (flat(0, "predicted_label")[clear] == flat(1, "predicted_label")[clear]).all()
    clear &= flat(1, "second_gap") > TIE
    assert (flat(0, "second_label")[clear] == flat(1, "second_label")[clear]).all()


def assert_totals(row: Row) -> None:
    """Check the numbers of one output row against plain sums over its own tokens."""
    labelled = [loss for loss, label in zip(row["loss"], row["labels"], strict=True) if label != reference.IGN]
    assert row["num_tokens"] == len(row["input_ids"])
    assert row["num_labels"] == len(labelled)
    assert math.isclose(row["total_loss"], sum(labelled), rel_tol=1e-4, abs_tol=1e-4)
    if labelled:
        assert math.isclose(row["mean_loss"], sum(labelled) / len(labelled), rel_tol=1e-4, abs_tol=1e-4)
        assert row["max_loss"] == max(labelled)
    else:
        assert row["mean_loss"] is None
        assert row["max_loss"] is None


def expect(model_path: Path, rows: list[Row], **options: Any) -> dict[str, Row]:
    """The reference's rows by id; the data's tag ids are mapped to the model's by name."""
    model, tokenizer = reference.load(model_path)
    ids = [model.config.label2id[tag] for tag in TAGS]
    expected = {}
    for row in rows:
        tag_ids = [None if tag is None else ids[tag] for tag in row["ner_tags"]]
        expected[row["id"]] = reference.reference_words(model, tokenizer, row["tokens"], tag_ids, **options)
    return expected


# Tests.


def test_demo_model_on_600_real_sentences(tmp_path: Path) -> None:
    """Tag names come from the file's ClassLabel, not from `tags`."""
    table = pq.read_table(DATA)
    lengths = np.array([len(words) for words in table["tokens"].to_pylist()])
    longest = np.argsort(-lengths, kind="stable")[:50]
    spread = np.setdiff1d(np.arange(7, len(table), len(table) // 600), longest)[:550]
    chosen = table.take(pa.array(np.concatenate([longest, spread])))
    assert len(chosen) == 600
    pq.write_table(chosen, tmp_path / "in.parquet")
    score(
        ScoreConfig(
            model=str(MODEL),
            input=[str(tmp_path / "in.parquet")],
            output=str(tmp_path / "out"),
            tokens_column="tokens",
            labels_column="ner_tags",
            id_column="id",
        )
    )
    rows = read_rows(tmp_path / "out" / "scores")
    sentences = chosen.select(["id", "tokens", "ner_tags"]).to_pylist()
    assert_same(rows, expect(MODEL, sentences))
    words = {row["id"]: row["tokens"] for row in sentences}
    assert {row["example_id"]: row["words"] for row in rows} == words


def score_apart(config: ScoreConfig) -> None:
    """Without Ray, in a process that has loaded no other model, as a worker of Ray's has not."""
    done = warm.run(score_inline, config)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("job", [score_apart, pytest.param(score, marks=pytest.mark.slow)], ids=["apart", "ray"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_family(
    family: str, job: Callable[[ScoreConfig], Any], tmp_path: Path, build: Callable[..., Path], sample: list[Row]
) -> None:
    model = build(family)
    rows = run(tmp_path, model, sample, job)
    assert_same(rows, expect(model, sample))
    assert {row["example_id"]: row["words"] for row in rows} == {row["id"]: row["tokens"] for row in sample}


PERMUTED = ["I-LOC", "B-ORG", "O", "I-PER", "B-LOC", "B-PER", "I-ORG"]


@pytest.mark.parametrize(
    ("family", "variations"),
    [
        # Absolute positions: a batch padded on the left must still give each sentence the positions it has alone.
        pytest.param("bert", {"padding_side": "left"}, id="left padding, absolute positions"),
        pytest.param("xlm-roberta", {"padding_side": "left"}, id="left padding, positions from the pad id"),
        pytest.param("electra", {"tags": PERMUTED, "stale_tokenizer_json": True}, id="permuted tags, stale json"),
        pytest.param("bert", {"special_tokens": False}, id="no special tokens"),
    ],
)
def test_variation(
    family: str, variations: dict[str, Any], tmp_path: Path, build: Callable[..., Path], sample: list[Row]
) -> None:
    model = build(family, **variations)
    expected = expect(model, sample)
    assert_same(run(tmp_path, model, sample), expected)


def test_all_subtokens_labelled(tmp_path: Path, build: Callable[..., Path], sample: list[Row]) -> None:
    model = build("xlm-roberta")
    expected = expect(model, sample, label_all_subtokens=True)
    rows = run(tmp_path, model, sample, label_all_subtokens=True)
    assert_same(rows, expected)
    plain = expect(model, sample)
    assert sum(row["num_labels"] for row in rows) > 1.2 * sum(row["num_labels"] for row in plain.values())


def test_pre_encoded_gives_the_losses_of_words(tmp_path: Path, build: Callable[..., Path], sample: list[Row]) -> None:
    """The reference's own encoding as input; a few rows bring padding of their own, which the mask hides."""
    model_path = build("bert")
    model, tokenizer = reference.load(model_path)
    from_words = expect(model_path, sample)
    encoded = []
    for number, (name, want) in enumerate(from_words.items()):
        padding = 5 if number % 10 == 0 else 0
        encoded.append(
            {
                "id": name,
                "input_ids": want["input_ids"] + [tokenizer.pad_token_id] * padding,
                "attention_mask": [1] * want["num_tokens"] + [0] * padding,
                "labels": want["label_ids"] + [reference.IGNORE_INDEX] * padding,
            }
        )
    source = write_rows(tmp_path / "in.parquet", encoded)
    score(ScoreConfig(model=str(model_path), input=[str(source)], output=str(tmp_path / "out"), id_column="id"))
    rows = by_id(read_rows(tmp_path / "out" / "scores"))
    assert set(rows) == set(from_words)
    pairs = []
    for given in encoded:
        row, words_row = rows[given["id"]], from_words[given["id"]]
        want = reference.reference_encoded(
            model, given["input_ids"], given["labels"], given["attention_mask"], tokenizer=tokenizer
        )
        for column in ("input_ids", "input_tokens", "labels", "num_labels"):
            assert row[column] == want[column], (given["id"], column)
        assert row["words"] is None
        assert row["word_ids"] is None
        assert_totals(row)
        # What stands under the mask is the data's own padding: its labels are ignored, its predictions mean nothing.
        length = words_row["num_tokens"]
        assert not any(row["loss"][length:])
        columns = ("loss", "predicted_prob", "second_prob", "predicted_label", "second_label")
        pairs.append(({column: row[column][:length] for column in columns}, words_row))
    assert_values(pairs)


# Windows.


@pytest.mark.parametrize(
    ("family", "variations"),
    [
        pytest.param("bert", {}, id="limit of the tokenizer"),
        # The tokenizer knows no limit and the position table has two rows that no token can use.
        pytest.param("roberta", {"tokenizer_knows_limit": False}, id="limit of the positions alone"),
    ],
)
def test_windows(
    family: str, variations: dict[str, Any], tmp_path: Path, build: Callable[..., Path], long_rows: list[Row]
) -> None:
    """Every tagged word is scored once, where it has most context, with the loss of that window scored alone."""
    model_path = build(family, max_length=WINDOW, **variations)
    model, tokenizer = reference.load(model_path)
    output = run(tmp_path, model_path, long_rows, overlap=OVERLAP)
    assert {row["example_id"] for row in output} == {row["id"] for row in long_rows}
    pairs = []
    for given in long_rows:
        rows = sorted((row for row in output if row["example_id"] == given["id"]), key=lambda row: row["window"])
        assert [row["window"] for row in rows] == list(range(len(rows)))
        windows = locate_windows(rows, given["tokens"], tokenizer)
        assert (len(windows) > 5) == given["id"].startswith("long")
        assert_scored_once(rows, windows, given, tokenizer, model.config.id2label)
        for row in rows:
            assert row["num_tokens"] <= WINDOW
            assert_totals(row)
            label_ids = [reference.IGNORE_INDEX if x == reference.IGN else TAGS.index(x) for x in row["labels"]]
            want = reference.reference_encoded(model, row["input_ids"], label_ids, tokenizer=tokenizer)
            assert row["input_tokens"] == want["input_tokens"]
            pairs.append((row, want))
    assert_values(pairs)


def locate_windows(rows: list[Row], words: list[str], tokenizer: Any) -> list[tuple[int, int, int]]:
    """Return (start, end, first) per window: its body is tokens[start:end] of the whole sentence, encoded without
    special tokens, and stands at position `first` of the window.

    Checks the special tokens around each body, that the windows cover all tokens in order and overlap enough, and that
    `word_ids` and `words` name the right words, whether a window carries all words or its own.
    """
    whole = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
    tokens, word_ids = whole["input_ids"], whole.word_ids()
    framed = tokenizer(words, is_split_into_words=True)["input_ids"]
    first = next(i for i in range(len(framed)) if framed[i : i + len(tokens)] == tokens)
    after = len(framed) - len(tokens) - first
    windows: list[tuple[int, int, int]] = []
    for row in rows:
        ids = row["input_ids"]
        last = len(ids) - after
        assert ids[:first] == framed[:first]
        assert ids[last:] == framed[len(framed) - after :]
        body = ids[first:last]
        at_least, at_most = (windows[-1][0] + 1, windows[-1][1] - OVERLAP) if windows else (0, 0)
        starts = [i for i in range(at_least, at_most + 1) if tokens[i : i + len(body)] == body]
        assert starts, (row["example_id"], row["window"], "does not follow the window before it")
        windows.append((starts[0], starts[0] + len(body), first))

        assert row["word_ids"][:first] == [None] * first
        assert row["word_ids"][last:] == [None] * after
        own = row["word_ids"][first:last]
        of_sentence = word_ids[starts[0] : starts[0] + len(body)]
        assert len({a - b for a, b in zip(own, of_sentence, strict=True)}) <= 1
        assert [row["words"][i] for i in own] == [words[i] for i in of_sentence]
    assert windows[0][0] == 0
    assert windows[-1][1] == len(tokens)
    return windows


def assert_scored_once(
    rows: list[Row], windows: list[tuple[int, int, int]], given: Row, tokenizer: Any, names: dict[int, str]
) -> None:
    """Each word with a tag is labelled in one window: where the smaller of its left and right context is largest; on a
    tie in one that has the whole word, if there is one.

    Context is counted in tokens of the window's body, to the left of the word's first sub-token. To the right it may be
    counted from the word's first or its last sub-token in the window: the design says only "its right context".
    """
    word_ids = tokenizer(given["tokens"], is_split_into_words=True, add_special_tokens=False).word_ids()
    labelled: dict[int, list[int]] = {}  # position in the whole sentence: windows that label it
    for number, (row, (start, end, first)) in enumerate(zip(rows, windows, strict=True)):
        for i, label in enumerate(row["labels"]):
            if label != reference.IGN:
                position = start + i - first
                assert start <= position < end, "a special token carries a label"
                assert label == names[given["ner_tags"][word_ids[position]]]
                labelled.setdefault(position, []).append(number)
    position_of = {word: word_ids.index(word) for word in set(word_ids) if given["ner_tags"][word] is not None}
    assert {position: len(found) for position, found in labelled.items()} == dict.fromkeys(position_of.values(), 1)
    for word, position in position_of.items():
        end_of_word = position + word_ids.count(word) - 1
        best, whole = set(), {number for number, (_, end, _) in enumerate(windows) if end_of_word < end}
        for last in (position, end_of_word):
            contexts = {
                number: min(position - start, end - 1 - min(last, end - 1))
                for number, (start, end, _) in enumerate(windows)
                if start <= position < end
            }
            tied = {number for number, context in contexts.items() if context == max(contexts.values())}
            best |= tied & whole or tied
        assert labelled[position][0] in best, (given["id"], word)


def test_overflow_truncate(tmp_path: Path, build: Callable[..., Path], long_rows: list[Row]) -> None:
    model = build("bert", max_length=WINDOW)
    expected = expect(model, long_rows, max_length=WINDOW)
    assert sum(row["num_dropped_words"] > 0 for row in expected.values()) == 12
    assert_same(run(tmp_path, model, long_rows, overflow="truncate"), expected)


def test_overflow_reject(tmp_path: Path, build: Callable[..., Path], long_rows: list[Row]) -> None:
    model = build("bert", max_length=WINDOW)
    rows = run(tmp_path, model, long_rows, overflow="reject", max_error_rate=1.0)
    assert_same(rows, expect(model, [row for row in long_rows if not row["id"].startswith("long")]))
    errors = read_rows(tmp_path / "out" / "errors")
    rejected = {row["example_id"]: row["reason"] for row in errors}
    assert rejected == {f"long-{number}": "too_long" for number in range(12)}
    assert len(errors) == 12
