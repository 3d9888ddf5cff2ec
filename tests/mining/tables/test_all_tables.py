"""Every table equals what pandas makes of the same rows; outputs, columns and files are opened as documented."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleanlab.token_classification.filter import find_label_issues
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import tokloss_ray
from tests.support import mining_outputs
from tokloss_ray.errors import JobFailed, Refused
from tokloss_ray.mining.words.load import file_batches, read_tokens, read_words
from tokloss_ray.mining.words.words import concat_words, first_tokens
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.storage.sealed import sealed, unsealed

TAGS = mining_outputs.TAGS
TOPIC = ["a", "b c", None, ""]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's 10,000 sentences, partitioned by `topic` (one value is null, one is empty); `half` is kept."""
    folder = tmp_path_factory.mktemp("mining")
    count = mining_outputs.SENTENCES
    source = mining_outputs.demo_sentences(
        folder, topic=[TOPIC[i % 4] for i in range(count)], half=[i % 2 for i in range(count)]
    )
    return mining_outputs.score_demo(
        folder, source, partition_by=("topic",), keep=("half",), add_column={"split": "dev"}, keep_probs=True
    )


@pytest.fixture(scope="module")
def tokens(output: Path) -> Any:
    return mining_outputs.explode(output)


@pytest.fixture(scope="module")
def tables(output: Path) -> dict[str, pa.Table]:
    return tokloss_ray.mine(str(output))


def sums(groups: Any) -> Any:
    return groups["loss"].agg(["count", "mean", "sum", "max", "std"])


def assert_same(table: pa.Table, expected: Any, key: str) -> None:
    """Same keys, same figures."""
    got = table.to_pandas().set_index(key)
    assert sorted(got.index) == sorted(expected.index)
    for column in expected.columns:
        np.testing.assert_allclose(
            got.loc[expected.index, column].astype(float), expected[column].astype(float), rtol=1e-6, err_msg=column
        )


def test_tokens(tables: dict[str, pa.Table], tokens: Any) -> None:
    assert_same(tables["tokens"], sums(tokens.groupby("input_tokens")), "token")
    assert tables["tokens"].column_names == ["token", "count", "mean", "sum", "max", "std", "errors"]
    got = tables["tokens"].to_pandas()
    assert got["sum"].is_monotonic_decreasing
    assert got["errors"].sum() == tokens["error"].sum()
    assert tables["tokens"].column("std").null_count == (got["count"] == 1).sum()


def test_words(tables: dict[str, pa.Table], tokens: Any) -> None:
    expected = sums(tokens.groupby("word"))
    expected["errors"] = tokens.groupby("word")["error"].sum()
    assert_same(tables["words"], expected, "word")
    pairs = {
        "labelled": tokens.groupby(["word", "labels"]).size().to_dict(),
        "predicted": tokens.groupby(["word", "predicted_label"]).size().to_dict(),
    }
    for column, counts in pairs.items():
        rows = tables["words"].select(["word", column]).to_pylist()
        assert {(row["word"], item["tag"]): item["count"] for row in rows for item in row[column]} == counts
        for row in rows:
            assert [item["count"] for item in row[column]] == sorted((i["count"] for i in row[column]), reverse=True)


def test_tags(tables: dict[str, pa.Table], tokens: Any) -> None:
    expected = sums(tokens.groupby("labels"))
    figures = precision_recall_fscore_support(tokens["labels"], tokens["predicted_label"], labels=expected.index)
    for name, values in zip(("precision", "recall", "f1"), figures[:3], strict=True):
        expected[name] = values
    assert_same(tables["tags"], expected, "tag")
    assert tables["tags"].to_pandas()["mean"].is_monotonic_decreasing


def test_confusion(tables: dict[str, pa.Table], tokens: Any) -> None:
    def type_of(tag: str) -> str:
        return tag if tag == "O" else tag[2:]

    types = list(dict.fromkeys(type_of(tag) for tag in TAGS))
    for level, names, of in (("tag", TAGS, str), ("type", types, type_of)):
        label, predicted = tokens["labels"].map(of), tokens["predicted_label"].map(of)
        rows = [row for row in tables["confusion"].to_pylist() if row["level"] == level]
        for column, normalize in (("count", None), ("share", "true")):
            matrix = np.zeros((len(names), len(names)))
            for row in rows:
                matrix[names.index(row["label"]), names.index(row["predicted"])] = row[column]
            expected = confusion_matrix(label, predicted, labels=names, normalize=normalize)
            np.testing.assert_allclose(matrix, expected)
        places = [(names.index(row["label"]), names.index(row["predicted"])) for row in rows]
        assert places == sorted(places)


def test_entities_equal_seqeval(tables: dict[str, pa.Table], tokens: Any) -> None:
    groups = tokens.groupby("example_id", sort=False)
    labels, predicted = (groups[name].agg(list).tolist() for name in ("labels", "predicted_label"))
    for mode, options in (("default", {}), ("strict", {"mode": "strict", "scheme": IOB2})):
        expected = classification_report(labels, predicted, output_dict=True, zero_division=0, **options)
        found = [row for row in tables["entities"].to_pylist() if row["mode"] == mode]
        assert len(found) == len(expected) == 6
        for row in found:
            figures = expected[row["type"] or f"{row['level']} avg"]
            assert [row[name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(
                [figures[name] for name in ("precision", "recall", "f1-score", "support")], abs=1e-12
            )


def test_label_issues_equal_cleanlab(output: Path, tokens: Any) -> None:
    groups = tokens.groupby("example_id", sort=False)
    labels = [[TAGS.index(tag) for tag in tags] for tags in groups["labels"].agg(list)]
    probs = [np.stack(rows).astype(np.float64) for rows in groups["probs"].agg(list)]
    expected = find_label_issues(labels, probs, n_jobs=1)
    table = tokloss_ray.mine(str(output), rank="confident-joint", limit=10**6, write=False)["label_issues"]
    number = {example: i for i, example in enumerate(groups.groups)}
    found = {(number[row["example_id"]], row["word_index"]) for row in table.to_pylist()}
    assert len(expected) > 2000
    # By what is known of a word: of two words with the same probabilities, either may be the last that is taken.
    assert [len(found), len(found & set(expected))] == pytest.approx([len(expected)] * 2, abs=2)
    assert sorted((*probs[i][j], labels[i][j]) for i, j in found) == sorted(
        (*probs[i][j], labels[i][j]) for i, j in expected
    )


def test_sequences(tables: dict[str, pa.Table], tokens: Any) -> None:
    table = tables["sequences"].to_pandas().set_index("example_id")
    groups = tokens.groupby("example_id")
    expected = groups["loss"].agg(["sum", "mean", "max", "count"])
    assert sorted(table.index) == sorted(expected.index)
    for name, column in (("total_loss", "sum"), ("mean_loss", "mean"), ("max_loss", "max"), ("num_labels", "count")):
        np.testing.assert_allclose(table.loc[expected.index, name], expected[column], rtol=1e-6)
    for rank, column in (("rank_total", "sum"), ("rank_mean", "mean"), ("rank_max", "max")):
        best = expected[column].sort_values(ascending=False)
        assert sorted(table[rank]) == list(range(1, len(table) + 1))
        np.testing.assert_allclose(expected.loc[table.sort_values(rank).index, column], best, rtol=1e-6)
    for example in list(table.index[:50]):
        mine, theirs = table.loc[example], groups.get_group(example)
        assert list(mine["tokens"]) == list(theirs["input_tokens"])
        assert list(mine["words"]) == list(theirs["word"])
        assert list(mine["labels"]) == list(theirs["labels"])
        assert list(mine["predicted"]) == list(theirs["predicted_label"])
        np.testing.assert_allclose(mine["losses"], theirs["loss"])
        assert mine["errors"] == theirs["error"].sum()


def test_inconsistent(tables: dict[str, pa.Table], tokens: Any) -> None:
    types = tokens["labels"].str.replace(r"^[BI]-", "", regex=True)
    counts = pd.crosstab(tokens["word"], types)
    several = counts[(counts > 0).sum(axis=1) > 1]
    rows = tables["inconsistent"].to_pylist()
    assert {row["word"] for row in rows} == set(several.index)
    assert [row["bits"] for row in rows] == sorted((row["bits"] for row in rows), reverse=True)
    places = tokens.set_index(["example_id", "word_ids"])
    for row in rows:
        n = several.loc[row["word"]]
        share = n[n > 0] / n.sum()
        assert row["count"] == n.sum()
        assert row["minority"] == n.sum() - n.max()
        assert n[row["majority"]] == n.max()
        assert row["entropy"] == pytest.approx(-(share * np.log2(share)).sum())
        of_word = tokens[tokens["word"] == row["word"]]
        for item in row["labelled"]:
            of_tag = of_word[of_word["labels"] == item["tag"]]
            assert item["count"] == len(of_tag)
            there = places.loc[(item["example_id"], item["word_index"])]
            assert (there["word"], there["labels"]) == (row["word"], item["tag"])
            assert there["loss"] == of_tag["loss"].max()
            assert there["source_row"] == item["source_row"]


def test_lengths(tables: dict[str, pa.Table], tokens: Any) -> None:
    by_sequence = tokens.groupby("example_id")["loss"].transform("size")
    values = {
        "sequence_length": by_sequence,
        "position": tokens["word_ids"].astype(int) + 1,
        "word_frequency": tokens.groupby("word")["loss"].transform("size"),
    }
    for row in tables["lengths"].to_pylist():
        if row["property"] == "subtokens":
            continue
        inside = tokens[values[row["property"]].between(row["low"], row["high"])]
        assert row["count"] == len(inside)
        assert row["sum"] == pytest.approx(inside["loss"].sum())
        assert row["error_rate"] == pytest.approx(inside["error"].mean())
    for name in (*values, "subtokens"):
        rows = [row for row in tables["lengths"].to_pylist() if row["property"] == name]
        assert sum(row["count"] for row in rows) == len(tokens)
        for row in rows:
            assert row["high"] == 2 ** math.ceil(math.log2(row["high"]))
            assert row["low"] == row["high"] // 2 + 1


def test_subtokens(output: Path) -> None:
    scores = open_outputs(str(output))
    frame = tokloss_ray.load(str(output), as_="pandas").set_index("example_id")
    words = read_words(scores.files[0], scores.tags)
    for i in range(0, len(words), 97):
        sequence = int(words.sequence[i])
        ids = frame.loc[words.example_id[sequence].as_py(), "word_ids"]
        assert words.num_subtokens[i] == sum(index == words.word_index[i] for index in ids)


def test_slices_equal_tables_of_each_slice_alone(output: Path) -> None:
    sliced = tokloss_ray.mine(str(output), by=["half"], write=False)
    for half in ("0", "1"):
        alone = tokloss_ray.mine(str(output), where=[f"half={half}"], write=False)
        assert alone.keys() == sliced.keys()
        for name, table in alone.items():
            part = sliced[name].filter(pa.compute.equal(sliced[name].column("half"), half)).drop_columns(["half"])
            assert_equal_tables(part, table, name)
        assert sliced[name].column_names[0] == "half"


def assert_equal_tables(a: pa.Table, b: pa.Table, name: str) -> None:
    """Equal but for the last digits of floating-point numbers."""
    assert a.schema.names == b.schema.names, name
    assert a.num_rows == b.num_rows, name
    for column in a.schema.names:
        x, y = a.column(column), b.column(column)
        if pa.types.is_floating(x.type):
            np.testing.assert_allclose(
                x.to_pandas().astype(float), y.to_pandas().astype(float), rtol=1e-9, err_msg=f"{name}.{column}"
            )
        else:
            assert x.to_pylist() == y.to_pylist(), f"{name}.{column}"


def test_where_reads_partitions_as_values(output: Path, tokens: Any) -> None:
    frame = tokens.assign(topic=tokens["topic"].fillna(""))
    for where, expected in (
        (["topic=b c"], frame["topic"] == "b c"),
        (["topic=a", "topic=b c"], frame["topic"].isin(["a", "b c"])),
        (["topic="], frame["topic"] == ""),
        (["topic!="], frame["topic"] != ""),
        (["topic!=a", "half=0", "split=dev"], (frame["topic"] != "a") & (frame["half"] == 0)),
    ):
        tables = tokloss_ray.mine(str(output), where=where, write=False)
        assert pa.compute.sum(tables["tags"].column("count")).as_py() == expected.sum(), where
    by_topic = tokloss_ray.mine(str(output), by=["topic"], write=False)["tags"].to_pandas()
    counts = by_topic.assign(topic=by_topic["topic"].fillna("")).groupby("topic")["count"].sum()
    assert counts.to_dict() == {
        name.replace("%20", " "): count for name, count in frame.groupby("topic").size().to_dict().items()
    }


def test_min_count_and_limit(output: Path, tables: dict[str, pa.Table]) -> None:
    few = tokloss_ray.mine(str(output), min_count=3, limit=7, write=False)
    for name in ("tokens", "words"):
        assert few[name].num_rows == pa.compute.sum(pa.compute.greater_equal(tables[name].column("count"), 3)).as_py()
    assert few["inconsistent"].num_rows == 7
    ranks = few["sequences"].select(["rank_total", "rank_mean", "rank_max"]).to_pandas()
    for name in ranks:
        assert sorted(ranks[name].dropna()) == list(range(1, 8))
    whole = tables["sequences"].to_pandas().set_index("example_id")
    for row in few["sequences"].to_pylist():
        for name in ranks:
            assert row[name] == (whole.loc[row["example_id"], name] if row[name] else None)


def test_several_outputs_are_one(output: Path, tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    again = tmp_path / "again"
    import shutil

    shutil.copytree(output, again)
    run = unsealed((again / "_run.json").read_bytes())
    run["tags"] = run["tags"][::-1]  # another order of the same tags
    (again / "_run.json").write_bytes(sealed(run))
    both = tokloss_ray.mine([str(output), str(again)], write=False)
    for column in ("count", "sum", "errors"):
        once, twice = (t["tags"].sort_by("tag").column(column).to_numpy() for t in (tables, both))
        np.testing.assert_allclose(twice, 2 * once)
    assert both["confusion"].select(["label", "predicted"]).equals(tables["confusion"].select(["label", "predicted"]))
    apart = tokloss_ray.mine([str(output), str(again)], by=["output"], write=False)["tags"]
    assert set(apart.column("output").to_pylist()) == {str(output), str(again)}


def test_files_of_no_record_do_not_count(output: Path, tables: dict[str, pa.Table]) -> None:
    stranger = output / "scores/topic=a/000000-099-ffffff.parquet"
    first = next((output / "scores").rglob("*.parquet"))
    stranger.write_bytes(first.read_bytes())
    try:
        again = tokloss_ray.mine(str(output), write=False)
    finally:
        stranger.unlink()
    assert again["tags"].equals(tables["tags"])


def test_written_tables_are_the_returned_ones(output: Path, tables: dict[str, pa.Table]) -> None:
    files = sorted((output / "mining").iterdir())
    assert [file.stem for file in files] == sorted(tables)
    for file in files:
        table = pq.read_table(file)
        assert table.equals(tables[file.stem])
        assert json.loads(table.schema.metadata[b"tokloss"])["outputs"] == [str(output)]
    before = {file.name: file.read_bytes() for file in files}
    tokloss_ray.mine(str(output))
    assert {file.name: file.read_bytes() for file in sorted((output / "mining").iterdir())} == before


def test_refusals(output: Path, tmp_path: Path) -> None:
    def refused(*outputs: str, **options: Any) -> str:
        with pytest.raises(Refused) as error:
            tokloss_ray.mine(list(outputs), write=False, **options)
        return str(error.value)

    out = str(output)
    assert "is not an output" in refused(str(tmp_path))
    assert "is not an output" in refused(str(tmp_path / "nothing"))
    assert "given twice" in refused(out, out + "/")
    assert "available: topic, half, split, output" in refused(out, by=["nothing"])
    assert "available: topic, half, split, output" in refused(out, where=["nothing=1"])
    assert "COLUMN=VALUE" in refused(out, where=["topic"])
    assert "leaves no file" in refused(out, where=["topic=z"])
    assert "leaves no words" in refused(out, where=["half=7"])
    assert "at least 1" in refused(out, limit=0)
    (output / "_SUCCESS").rename(output / "_S")
    try:
        assert "is not finished" in refused(out)
        assert tokloss_ray.mine(out, partial=True, write=False)["tags"].num_rows == 7
    finally:
        (output / "_S").rename(output / "_SUCCESS")
    other = mining_outputs.write_output(tmp_path / "other", [], ["O", "X"])
    assert "different tags" in refused(out, str(other))
    assert "there are no scored rows" not in refused(str(other))


def test_a_damaged_file_is_one_sentence(output: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(output, tmp_path / "out")
    file = next((tmp_path / "out/scores").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(JobFailed, match=r"cannot read .*tokloss verify"):
        tokloss_ray.mine(str(tmp_path / "out"), write=False)
    file.unlink()
    with pytest.raises(JobFailed, match="cannot read"):
        tokloss_ray.mine(str(tmp_path / "out"), write=False)


def test_load(output: Path) -> None:
    table = tokloss_ray.load(str(output))
    assert table.num_rows == mining_outputs.SENTENCES
    assert set(table.column("topic").to_pylist()) == {"a", "b c", None}
    frame = tokloss_ray.load(str(output), as_="pandas", columns=["topic", "example_id"], where=["half=1"])
    assert list(frame.columns) == ["topic", "example_id"]
    assert len(frame) == mining_outputs.SENTENCES // 2
    with pytest.raises(Refused, match="no such column"):
        tokloss_ray.load(str(output), columns=["nothing"])
    with pytest.raises(Refused, match="choose arrow, pandas or ray"):
        tokloss_ray.load(str(output), as_="polars")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 1000, 20_000, 10**9])
def test_reading_in_steps_of_any_size(output: Path, size: int) -> None:
    scores = open_outputs(str(output))
    whole = concat_words(list(read_tokens(scores.files, scores.tags, by=["topic", "half"])))
    parts = []
    for batch in file_batches(scores.files, size):
        parts += list(read_tokens(batch, scores.tags, by=["topic", "half"], tokens=size)) if size > 1 else []
    if size > 1:
        again = concat_words(parts)
        assert again.word.to_pylist() == whole.word.to_pylist()
        assert (again.offsets == whole.offsets).all()
        assert (again.loss == whole.loss).all()
        assert again.by["topic"].to_pylist() == whole.by["topic"].to_pylist()
    assert first_tokens(whole) is whole
