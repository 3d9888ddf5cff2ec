"""Two models on the same words, against pandas, seqeval and simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from typer.testing import CliRunner

import tokloss_ray
from tests.support import inline, models
from tokloss_ray import ScoreConfig
from tokloss_ray.cli.app import app
from tokloss_ray.demo import DATA
from tokloss_ray.errors import Refused
from tokloss_ray.mining.diff import bootstrap, large_words
from tokloss_ray.mining.diff.bootstrap import add_to_groups, paired_bootstrap, resampled_totals
from tokloss_ray.mining.diff.compare import Diff, diff, diff_folder
from tokloss_ray.mining.diff.counts import OUTCOMES
from tokloss_ray.mining.write import write_tables
from tokloss_ray.spill import Spill

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]

# The bootstrap


def _sentences(rng: np.random.Generator, count: int) -> np.ndarray:
    """Sums of made-up sentences: gold, hits of A and B, losses of A and B, words; B is better, both share hard ones."""
    words = rng.integers(3, 30, count)
    hard = rng.beta(2, 2, count)
    gold = rng.binomial(words // 3, 0.5)
    hits_a, hits_b = rng.binomial(gold, 0.4 + 0.4 * hard), rng.binomial(gold, 0.5 + 0.4 * hard)
    loss_a = rng.gamma(words * (1.2 - hard), 0.3)
    loss_b = 0.7 * loss_a + rng.gamma(words * 0.2, 0.2)
    return np.stack([gold, hits_a, hits_b, loss_a, loss_b, words], axis=1).astype(float)


STATISTICS = {
    "recall": lambda t: (t[..., 2] - t[..., 1]) / t[..., 0],
    "loss": lambda t: (t[..., 4] - t[..., 3]) / t[..., 5],
}


@pytest.mark.parametrize("sentences", [150, 400])
def test_intervals_cover_what_they_should(sentences: int) -> None:
    rng = np.random.default_rng(3)
    population = _sentences(rng, 1_000_000).sum(axis=0)
    truth = {name: float(statistic(population)) for name, statistic in STATISTICS.items()}
    runs, covered, tails = 300, dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for run in range(runs):
        found = paired_bootstrap(_sentences(rng, sentences), STATISTICS, resamples=600, seed=run)
        for name, interval in found.items():
            covered[name] += interval.low <= truth[name] <= interval.high
            tails[name] += truth[name] > interval.high
    for name in truth:
        # 0.95 and 0.025, three standard deviations of 300 draws either way, and a little for small samples.
        assert 0.95 - 0.038 - 0.005 <= covered[name] / runs <= 0.95 + 0.038, (name, covered[name] / runs)
        assert tails[name] / runs <= 0.025 + 0.027 + 0.005


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(5)
    values = []
    for run in range(400):
        sums = _sentences(rng, 150)
        swap = rng.random(150) < 0.5
        sums[swap] = sums[swap][:, [0, 2, 1, 4, 3, 5]]
        values.append(paired_bootstrap(sums, STATISTICS, resamples=400, seed=run)["loss"].p_value)
    for level in (0.05, 0.2, 0.5):
        spread = 3 * (level * (1 - level) / 400) ** 0.5
        assert abs(np.mean(np.array(values) <= level) - level) < spread + 0.01


def test_a_resample_is_a_sum_of_drawn_rows() -> None:
    sums = np.eye(5)
    totals = resampled_totals(sums, 200)
    assert (totals.sum(axis=1) == 5).all()
    assert (totals == np.rint(totals)).all()
    assert abs(totals.mean() - 1) < 1e-12
    assert (resampled_totals(sums, 200) == totals).all()
    assert (resampled_totals(sums, 200, seed=1) != totals).any()


def test_bca_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    sums = _sentences(np.random.default_rng(0), 300)
    ours = paired_bootstrap(sums, STATISTICS, resamples=20_000)["recall"]
    theirs = scipy.bootstrap(
        tuple(sums[:, :3].T),
        lambda gold, a, b, axis: (b.sum(axis) - a.sum(axis)) / gold.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        rng=0,
        method="BCa",
    ).confidence_interval
    width = ours.high - ours.low
    assert abs(ours.low - theirs.low) < 0.03 * width
    assert abs(ours.high - theirs.high) < 0.03 * width


def test_equal_models_have_no_interval() -> None:
    sums = _sentences(np.random.default_rng(0), 50)
    sums[:, 2], sums[:, 4] = sums[:, 1], sums[:, 3]
    for found in paired_bootstrap(sums, STATISTICS, resamples=50).values():
        assert (found.estimate, found.low, found.high, found.p_value, found.share_above) == (0, 0, 0, 1, 0.5)


def test_groups_take_sentences_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "GROUPS", 7)
    sums = np.random.default_rng(0).random((40, 2))
    expected = np.array([sums[i::7].sum(axis=0) for i in range(7)])
    for cuts in ([5, 6, 20], [1], [39], []):
        groups, before = np.zeros((0, 2)), 0
        for part in np.split(sums, cuts):
            groups, before = add_to_groups(groups, part, before), before + len(part)
        assert np.allclose(groups, expected)
    assert np.allclose(add_to_groups(np.zeros((0, 2)), sums[:3], 0), sums[:3])


# Two outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with different tokenizers on 300 real sentences of two files, scored into different shards."""
    folder = tmp_path_factory.mktemp("diff")
    table = pq.read_table(DATA)
    words = table["tokens"].slice(0, 300).to_pylist()
    models.build("bert", folder / "bert", words, TAGS, max_length=64)
    models.build("roberta", folder / "roberta", words, TAGS[::-1], seed=1, max_length=48)
    (folder / "data").mkdir()
    topic = pa.array([("news", "sport", None)[i % 3] for i in range(300)])
    table = table.slice(0, 300).append_column("topic", topic)
    pq.write_table(table.slice(0, 200), folder / "data" / "a.parquet", row_group_size=30)
    pq.write_table(table.slice(200, 100), folder / "data" / "b.parquet")
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(300)))
    pq.write_table(shuffled, folder / "shuffled.parquet")
    score(folder, "A", "bert", "data", shard_tokens=700, partition_by=("topic",))
    score(folder, "B", "roberta", "data", shard_tokens=450, keep=("topic",), overlap=6)
    score(folder, "C", "roberta", "shuffled.parquet", shard_tokens=450, keep=("topic",), overlap=6)
    return folder


def score(folder: Path, name: str, model: str, data: str, **options: Any) -> str:
    options = {"id_column": "id"} | options
    inline.score_inline(
        ScoreConfig(model=str(folder / model), input=(str(folder / data),), output=str(folder / name), **options)
    )
    return str(folder / name)


def words_of(output: Path) -> pd.DataFrame:
    """One row a labelled word, by pandas."""
    rows = pd.DataFrame(inline.read_rows(output))
    columns = ["word_ids", "labels", "predicted_label", "loss"]
    flat = rows[["example_id", "source", "source_row", "words", *columns]].explode(columns)
    flat = flat[flat["labels"] != "IGN"]
    flat["word"] = [words[int(i)] for words, i in zip(flat["words"], flat["word_ids"], strict=True)]
    return flat.drop(columns="words").astype({"loss": "float64", "word_ids": "int64"})


@pytest.fixture(scope="module")
def joined(folder: Path) -> pd.DataFrame:
    left, right = words_of(folder / "A"), words_of(folder / "B")
    keys = ["example_id", "source", "source_row", "word_ids", "word", "labels"]
    frame = left.merge(right, on=keys, suffixes=("_a", "_b"), validate="one_to_one")
    right_a, right_b = (frame[f"predicted_label_{s}"] == frame["labels"] for s in "ab")
    same = frame["predicted_label_a"] == frame["predicted_label_b"]
    frame["outcome"] = np.select(
        [right_a & right_b, ~right_a & right_b, right_a & ~right_b, same], OUTCOMES[:4], OUTCOMES[4]
    )
    frame["difference"] = frame["loss_b"] - frame["loss_a"]
    return frame.sort_values(["source", "source_row", "word_ids"], ignore_index=True)


@pytest.fixture(scope="module")
def found(folder: Path) -> Diff:
    return diff(str(folder / "A"), str(folder / "B"))


def test_words_are_joined_as_pandas_joins_them(folder: Path, found: Diff, joined: pd.DataFrame) -> None:
    matched = found.matched
    assert (matched.rows, matched.only_a, matched.only_b) == (300, 0, 0)
    assert matched.words == len(joined) > 2500
    assert max(row["window"] for row in inline.read_rows(folder / "B")) > 0
    counts = dict(zip(*(found.tables["outcomes"][name].to_pylist() for name in ("outcome", "words")), strict=True))
    assert counts == joined["outcome"].value_counts().to_dict()
    assert all(counts[name] > 20 for name in OUTCOMES)


@pytest.mark.parametrize(("name", "column"), [("tags", "labels"), ("words", "word")])
def test_tables_by_tag_and_word(found: Diff, joined: pd.DataFrame, name: str, column: str) -> None:
    table = found.tables[name].to_pandas().set_index("tag" if name == "tags" else "word")
    groups = joined.groupby(column)
    assert table["count"].to_dict() == groups.size().to_dict()
    for outcome in OUTCOMES:
        expected = joined[joined["outcome"] == outcome].groupby(column).size()
        assert table[outcome].to_dict() == expected.reindex(table.index, fill_value=0).to_dict()
    for side in "ab":
        expected = groups[f"loss_{side}"].mean()
        assert np.allclose(table[f"mean_loss_{side}"], expected.reindex(table.index), rtol=1e-12)
    assert np.allclose(table["difference"], table["mean_loss_b"] - table["mean_loss_a"])
    order = [
        (fixed - broken, key) for key, fixed, broken in zip(table.index, table["fixed"], table["broken"], strict=True)
    ]
    assert order == sorted(order)


def sequences_of(joined: pd.DataFrame, column: str) -> list[list[str]]:
    return joined.groupby(["source", "source_row"])[column].agg(list).to_list()


def test_span_figures_are_seqevals(found: Diff, joined: pd.DataFrame) -> None:
    true = sequences_of(joined, "labels")
    summary = {row["metric"]: row for row in found.tables["summary"].to_pylist()}
    types = {row["type"]: row for row in found.tables["types"].to_pylist()}
    for side in "ab":
        predicted = sequences_of(joined, f"predicted_label_{side}")
        scores = {"span_f1": f1_score, "span_precision": precision_score, "span_recall": recall_score}
        for name, function in scores.items():
            assert summary[name][side] == pytest.approx(function(true, predicted), abs=1e-12)
        report = classification_report(true, predicted, output_dict=True, zero_division=0)
        for type_, row in types.items():
            assert row["support"] == report[type_]["support"]
            for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                assert row[f"{ours}_{side}"] == pytest.approx(report[type_][theirs], abs=1e-12)
        assert summary["mean_loss"][side] == pytest.approx(joined[f"loss_{side}"].mean(), rel=1e-12)
        right = joined["labels"] == joined[f"predicted_label_{side}"]
        assert summary["accuracy"][side] == pytest.approx(right.mean(), rel=1e-12)
    for row in types.values():
        assert row["support"] == row["fixed"] + row["broken"] + row["both"] + row["neither"]
    for row in summary.values():
        assert row["difference"] == pytest.approx(row["b"] - row["a"])
        assert row["low"] <= row["difference"] <= row["high"]


def test_intervals_are_those_of_a_plain_loop(found: Diff, joined: pd.DataFrame) -> None:
    groups = [frame for _, frame in joined.groupby(["source", "source_row"])]
    rng = np.random.default_rng(9)
    differences = []
    sums = np.array([[len(f), f["loss_a"].sum(), f["loss_b"].sum()] for f in groups])
    for _ in range(2000):
        drawn = sums[rng.integers(0, len(sums), len(sums))].sum(axis=0)
        differences.append((drawn[2] - drawn[1]) / drawn[0])
    row = next(row for row in found.tables["summary"].to_pylist() if row["metric"] == "mean_loss")
    low, high = np.quantile(differences, [0.025, 0.975])
    assert abs(row["low"] - low) < 0.1 * (high - low)
    assert abs(row["high"] - high) < 0.1 * (high - low)
    assert abs(row["share_above"] - np.mean(np.array(differences) > 0)) < 0.03


def test_regressions_are_the_largest_differences(found: Diff, joined: pd.DataFrame) -> None:
    worse = joined[joined["difference"] > 0]
    order = ["difference", "example_id", "source", "source_row", "word_ids"]
    expected = worse.sort_values(order, ascending=[False, True, True, True, True])
    table = found.tables["regressions"].to_pandas()
    assert table["difference"].to_list() == expected["difference"].to_list()
    for ours, theirs in (("word", "word"), ("outcome", "outcome"), ("word_index", "word_ids"), ("label", "labels")):
        assert table[ours].to_list() == expected[theirs].to_list()
    rows = joined.groupby(["example_id", "source", "source_row"], as_index=False)[["loss_a", "loss_b"]].sum()
    rows["difference"] = rows["loss_b"] - rows["loss_a"]
    rows = rows[rows["difference"] > 0].sort_values("difference", ascending=False)
    table = found.tables["sequences"].to_pandas()
    assert np.allclose(table["difference"], rows["difference"])
    assert table["example_id"].to_list() == rows["example_id"].to_list()
    broken = joined[joined["outcome"] == "broken"].groupby("example_id").size()
    assert table["broken"].to_list() == broken.reindex(table["example_id"], fill_value=0).to_list()


@pytest.mark.parametrize("other", ["B", "C"])
@pytest.mark.parametrize("batch_tokens", [200, 1500])
def test_small_steps_and_a_join_by_id_give_the_same(folder: Path, found: Diff, other: str, batch_tokens: int) -> None:
    again = diff(str(folder / "A"), str(folder / other), batch_tokens=batch_tokens)
    assert (again.matched.rows, again.matched.words) == (300, found.matched.words)
    for name, table in found.tables.items():
        assert again.tables[name].num_rows == table.num_rows
        left, right = again.tables[name].to_pandas(), table.to_pandas()
        if other == "B":
            pd.testing.assert_frame_equal(left, right, rtol=1e-9)
            continue
        # Other batches, and so losses that differ in their last digits; other draws of sentences.
        if name == "summary":
            left, right = left[["a", "b", "difference"]], right[["a", "b", "difference"]]
        elif name in ("regressions", "sequences"):
            keys = ["source_row", "source", *(["word_index"] if name == "regressions" else [])]
            left, right = (frame.sort_values(keys, ignore_index=True) for frame in (left, right))
        pd.testing.assert_frame_equal(left, right, rtol=1e-3, atol=1e-4)


def test_many_sentences_are_drawn_in_groups(folder: Path, found: Diff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "GROUPS", 70)
    small, large = (diff(str(folder / "A"), str(folder / "B"), batch_tokens=n).tables["summary"] for n in (300, 10**6))
    pd.testing.assert_frame_equal(small.to_pandas(), large.to_pandas(), rtol=1e-9)
    for row, expected in zip(small.to_pylist(), found.tables["summary"].to_pylist(), strict=True):
        assert row["difference"] == pytest.approx(expected["difference"])
        assert 0.6 < (row["high"] - row["low"]) / (expected["high"] - expected["low"]) < 1.5


def test_limits_keep_the_worst(folder: Path, found: Diff) -> None:
    few = diff(str(folder / "A"), str(folder / "B"), limit=5, batch_tokens=400)
    for name in ("regressions", "sequences"):
        assert few.tables[name].equals(found.tables[name].slice(0, 5))


def test_slices_are_diffs_of_their_rows(folder: Path) -> None:
    sliced = diff(str(folder / "A"), str(folder / "B"), by=["topic"], batch_tokens=500)
    for topic in ("news", "sport", None):
        alone = diff(str(folder / "A"), str(folder / "B"), where=[f"topic={topic or ''}"])
        for name, table in alone.tables.items():
            frame = sliced.tables[name].to_pandas()
            part = frame[frame["topic"].isna() if topic is None else frame["topic"] == topic].drop(columns="topic")
            pd.testing.assert_frame_equal(part.reset_index(drop=True), table.to_pandas(), rtol=1e-9)
        assert alone.matched.rows == 100


@pytest.mark.parametrize("by", [[], ["topic"]])
@pytest.mark.parametrize("held", [0, 900])
def test_words_that_go_to_disk_make_the_same_table(
    folder: Path, by: list[str], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = str(folder / "A"), str(folder / "B")
    expected = diff(a, b, by=by, batch_tokens=200, resamples=100).tables
    monkeypatch.setattr(large_words, "MOST_ROWS", held)
    spills = []
    monkeypatch.setattr(large_words, "Spill", lambda parts: spills.append(Spill(parts)) or spills[-1])
    found = diff(a, b, by=by, batch_tokens=200, resamples=100).tables
    assert len(spills) == 1
    assert list(found) == list(expected)
    for name, table in expected.items():
        assert found[name].to_pylist() == table.to_pylist(), name


def test_a_model_and_itself(folder: Path) -> None:
    tables = diff(str(folder / "A"), str(folder / "A")).tables
    assert tables["regressions"].num_rows == tables["sequences"].num_rows == 0
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in tables["summary"].to_pylist())


def test_dropped_words_are_counted(folder: Path, tmp_path: Path) -> None:
    score(folder, "short", "bert", "data", max_length=12, overflow="truncate")
    found = diff(str(folder / "A"), str(folder / "short"))
    dropped = sum(row["num_dropped_words"] for row in inline.read_rows(folder / "short"))
    assert found.matched.rows == 300
    assert (found.matched.words_only_a, found.matched.words_only_b) == (dropped, 0)
    assert dropped > 50


def test_rows_of_one_side_are_refused_unless_told(folder: Path) -> None:
    score(folder, "fewer", "roberta", "data", limit=120)
    with pytest.raises(Refused, match=r"180 are only in the first, 0 only in the second .* --common .* the 120"):
        diff(str(folder / "A"), str(folder / "fewer"))
    found = diff(str(folder / "fewer"), str(folder / "A"), common=True)
    assert (found.matched.rows, found.matched.only_a, found.matched.only_b) == (120, 0, 180)


def test_other_labels_words_and_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "shuffled.parquet")
    for name, column, change in (
        ("labels", "ner_tags", lambda row: [(row[0] + 1) % 7, *row[1:]]),
        ("texts", "tokens", lambda row: ["other", *row[1:]]),
        ("ids", "id", lambda _: "same"),
    ):
        index = table.schema.get_field_index(column)
        values = [change(row) if i < 4 else row for i, row in enumerate(table[column].to_pylist())]
        changed = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
        pq.write_table(changed, folder / f"{name}.parquet")
        score(folder, f"{name}-out", "bert", f"{name}.parquet")
    with pytest.raises(Refused, match=r"against different labels: 4 of [\d,]+ words differ \(word 0 of de-val-"):
        diff(str(folder / "A"), str(folder / "labels-out"))
    with pytest.raises(Refused, match=r"do not have the same text: 4 of .* and 'other'"):
        diff(str(folder / "A"), str(folder / "texts-out"))
    with pytest.raises(Refused, match="two rows have the example_id same"):
        diff(str(folder / "A"), str(folder / "ids-out"))
    no_ids = score(folder, "no-ids", "bert", "shuffled.parquet", id_column=None)
    with pytest.raises(Refused, match="no rows in common"):
        diff(str(folder / "A"), no_ids)
    with pytest.raises(Refused, match="is not an output"):
        diff(str(folder / "A"), str(tmp_path))
    with pytest.raises(Refused, match="--where topic: no such column; available: none in both outputs"):
        diff(str(folder / "A"), str(folder / "labels-out"), where=["topic=news"])
    with pytest.raises(Refused, match="no such column"):
        diff(str(folder / "A"), str(folder / "B"), by=["language"])


def test_tables_are_written_in_the_folder_of_b(folder: Path, found: Diff) -> None:
    target = diff_folder(str(folder / "A"), str(folder / "B"))
    write_tables(target, found.tables, {})
    assert target.startswith(f"{folder}/B/mining/diff-")
    for name, table in found.tables.items():
        assert pq.read_table(f"{target}/{name}.parquet").equals(table)


def test_the_command(folder: Path, found: Diff, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["diff", str(folder / "A"), str(folder / "B")], env={"COLUMNS": "100"})
    assert run.exit_code == 0, run.output
    f1 = found.tables["summary"].to_pylist()[0]
    assert f"{f1['a']:.4f}  {f1['b']:.4f}  {f1['difference']:+.4f}  {f1['low']:+.4f} to {f1['high']:+.4f}" in run.output
    assert diff_folder(str(folder / "A"), str(folder / "B")) in run.output.replace("\n", "")
    options = ["--by", "topic", "--to", str(tmp_path / "to"), "--show", "2", "--resamples", "100"]
    run = CliRunner().invoke(app, ["diff", str(folder / "A"), str(folder / "B"), *options])
    assert run.exit_code == 0, run.output
    assert pq.read_table(tmp_path / "to" / "summary.parquet").column_names[:2] == ["topic", "metric"]
    assert all(len(line) <= 80 for line in run.output.split("\n")[:12])
    assert tokloss_ray.diff is diff
