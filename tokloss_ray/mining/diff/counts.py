"""Two models on the same words: what the second one (B) mends and breaks, and how sure that is.

Tables (all with the slice columns of `--by` first):

- `summary`: metric (span_f1, span_precision, span_recall, accuracy, mean_loss), a, b, difference (b - a), low, high
  (the interval of the difference), p_value, share_above (of the resamples, those with a difference above 0); float64.
  The span metrics are missing where tags mark no spans.
- `outcomes`: outcome, words (int64), share (float64). An outcome is one of `OUTCOMES`.
- `tags`, `words`: tag or word, count, one column for each outcome (int64), mean_loss_a, mean_loss_b, difference
  (float64); by what B gained or lost (`broken - fixed`, descending), then by name.
- `types`: type, support, fixed, broken (annotated entities that B alone and A alone finds), both, neither (int64), then
  precision, recall and F1 of A and B and the difference of F1 (float64).
- `regressions`: the words whose loss has grown most: example_id, source, source_row, word_index, word, label,
  predicted_a, predicted_b, outcome, loss_a, loss_b, difference.
- `sequences`: the rows whose total loss has grown most: example_id, source, source_row, words, fixed, broken,
  total_loss_a, total_loss_b, difference.
- `agreement`: of the words that have no label: predicted_a, predicted_b, count (int64); most frequent first. All other
  tables are about the words that have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tokloss_ray.mining.diff.bootstrap import add_to_groups
from tokloss_ray.mining.tables.grouping import group_rows, sum_counts
from tokloss_ray.mining.words.words import Words, take_words
from tokloss_ray.tags.schemes import TagSet, breaks_of, read_spans, read_tag_set

BOTH_RIGHT, FIXED, BROKEN = "both_right", "fixed", "broken"
WRONG_SAME, WRONG_DIFFERENTLY = "both_wrong_same", "both_wrong_differently"
OUTCOMES = (BOTH_RIGHT, FIXED, BROKEN, WRONG_SAME, WRONG_DIFFERENTLY)
"""Of a word: both models are right; B alone; A alone; neither, with the same tag; neither, with different tags."""

SUMS = ("words", "right_a", "right_b", "loss_a", "loss_b", "gold", "spans_a", "hits_a", "spans_b", "hits_b")
AT = {name: i for i, name in enumerate(SUMS)}
SPANS = ("support", "spans_a", "hits_a", "spans_b", "hits_b", "both")
FIGURES = (*OUTCOMES, "loss_a", "loss_b")

_PREDICTED = ("predicted_a", "predicted_b")

Partial = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The words of both outputs with codes of the same tags, as `align_tags` makes them."""

    a: Words
    b: Words
    tag_set: TagSet | None


def align_tags(a: Words, b: Words, scheme: str | None = None) -> Pair:
    """Give B's codes the meaning they have in A; tags that B alone has come after A's.

    a, b: the same words, as `matching_words` gives them. scheme: how entities are tagged, where the tags do not say it.
    """
    tags = tuple(dict.fromkeys([*a.tags, *b.tags]))
    to = np.array([tags.index(tag) for tag in b.tags], dtype=np.int32)
    label = np.where(b.label < 0, np.int32(-1), to[b.label])
    other = replace(b, tags=tags, label=label, predicted=to[b.predicted])
    return Pair(replace(a, tags=tags), other, read_tag_set(tags, scheme))


def outcome_of(pair: Pair) -> np.ndarray:
    """[N] int8: the position in `OUTCOMES` of what became of each word."""
    gold, a, b = pair.a.label, pair.a.predicted, pair.b.predicted
    right_a, right_b = a == gold, b == gold
    result = np.where(a == b, 3, 4)
    result[right_a & right_b], result[~right_a & right_b], result[right_a & ~right_b] = 0, 1, 2
    return result.astype(np.int8)


def diff_partial(pair: Pair, limit: int) -> Partial:
    """The figures of some rows, to be merged with those of others by `diff_combine`."""
    has_label = (pair.a.label >= 0) & (pair.b.label >= 0)
    agreement = _agreement(pair, np.flatnonzero(~has_label))
    if not has_label.all():
        at = np.flatnonzero(has_label)
        pair = replace(pair, a=take_words(pair.a, at), b=take_words(pair.b, at))
    outcome = outcome_of(pair)
    found = _spans(pair)
    figures = {name: outcome == i for i, name in enumerate(OUTCOMES)} | {"loss_a": pair.a.loss, "loss_b": pair.b.loss}
    tag = pa.array(pair.a.tags).take(pa.array(pair.a.label))
    return {
        "sentences": add_to_groups(np.zeros((0, len(SUMS))), _sentence_sums(pair, outcome, found), 0),
        "seen": len(pair.a.offsets) - 1,
        "tags": _sums_by("tag", tag, figures),
        "words": _sums_by("word", pair.a.word, figures),
        "types": _sums_by("type", *_span_counts(pair.tag_set, found)),
        "regressions": _regressed_words(pair, outcome, limit),
        "sequences": _regressed_sequences(pair, outcome, limit),
        "agreement": agreement,
    }


def diff_combine(parts: Sequence[Partial], limit: int) -> Partial:
    """Partials of several parts as one, in the order given."""
    result = dict(parts[0])
    for part in parts[1:]:
        result["sentences"] = add_to_groups(result["sentences"], part["sentences"], result["seen"])
        result["seen"] += part["seen"]
    for name, key in (("tags", "tag"), ("words", "word"), ("types", "type")):
        if name in parts[0]:  # words may have been taken out
            result[name] = sums_by_key(pa.concat_tables([part[name] for part in parts]), key)
    result["agreement"] = sum_counts([part["agreement"] for part in parts], _PREDICTED, ["count"])
    for name in ("regressions", "sequences"):
        result[name] = _top(pa.concat_tables([part[name] for part in parts]), limit)
    return result


def _agreement(pair: Pair, at: np.ndarray) -> pa.Table:
    """How often words at some positions are predicted as each pair of tags."""
    tags = pa.array(pair.a.tags, pa.string())
    codes = pair.a.predicted[at].astype(np.int64) * len(tags) + pair.b.predicted[at]
    counts = np.bincount(codes, minlength=len(tags) ** 2)
    there = np.flatnonzero(counts)
    of_side = zip(_PREDICTED, np.divmod(there, len(tags)), strict=True)
    columns = {name: tags.take(pa.array(code)) for name, code in of_side}
    return pa.table(columns | {"count": pa.array(counts[there], pa.int64())})


def sums_by_key(sums: pa.Table, key: str) -> pa.Table:
    """Sums by key of rows that are such sums, added up in their order."""
    figures = {column: sums.column(column).to_numpy() for column in sums.column_names if column != key}
    return _sums_by(key, sums.column(key), figures)


def _spans(pair: Pair) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For the labels and each model: a key of each span, the word it begins at, and its type."""
    if pair.tag_set is None:
        return {}
    n, types = len(pair.a) + 1, len(pair.tag_set.types) + 1
    breaks = breaks_of(pair.a.offsets, pair.a.word_index)
    found = {}
    for name, codes in (("gold", pair.a.label), ("a", pair.a.predicted), ("b", pair.b.predicted)):
        spans = read_spans(codes, breaks, pair.tag_set)
        found[name] = (spans.start * n + spans.stop) * types + spans.type, spans.start, spans.type
    return found


def _sentence_sums(pair: Pair, outcome: np.ndarray, found: dict[str, Any]) -> np.ndarray:
    """[S, K] float64, the columns `SUMS`."""
    sequence, sentences = pair.a.sequence, len(pair.a.offsets) - 1
    sums = np.zeros((sentences, len(SUMS)))

    def put(name: str, at: np.ndarray, weights: np.ndarray | None = None) -> None:
        sums[:, AT[name]] = np.bincount(at, weights, minlength=sentences)

    put("words", sequence)
    put("right_a", sequence[np.isin(outcome, (0, 2))])
    put("right_b", sequence[np.isin(outcome, (0, 1))])
    put("loss_a", sequence, pair.a.loss.astype(np.float64))
    put("loss_b", sequence, pair.b.loss.astype(np.float64))
    if found:
        gold, start, _ = found["gold"]
        put("gold", sequence[start])
        for side in ("a", "b"):
            keys, start, _ = found[side]
            put(f"spans_{side}", sequence[start])
            put(f"hits_{side}", sequence[start[np.isin(keys, gold)]])
    return sums


def _span_counts(tag_set: TagSet | None, found: dict[str, Any]) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """The type of each span of labels or models, and what it counts for."""
    if tag_set is None:
        return pa.array([], pa.string()), {name: np.zeros(0, np.int64) for name in SPANS}
    (gold, _, gold_type), (a, _, a_type), (b, _, b_type) = found["gold"], found["a"], found["b"]
    kinds = np.concatenate([gold_type, a_type, b_type])
    sides = np.repeat([0, 1, 2], [len(gold), len(a), len(b)])
    nothing = [np.zeros(len(a), bool), np.zeros(len(b), bool)]
    in_a, in_b = np.isin(gold, a), np.isin(gold, b)
    return pa.array(tag_set.types).take(pa.array(kinds)), {
        "support": sides == 0,
        "spans_a": sides == 1,
        "hits_a": np.concatenate([in_a, *nothing]),
        "spans_b": sides == 2,
        "hits_b": np.concatenate([in_b, *nothing]),
        "both": np.concatenate([in_a & in_b, *nothing]),
    }


def _sums_by(name: str, keys: pa.Array | pa.ChunkedArray, figures: dict[str, np.ndarray]) -> pa.Table:
    """Sums of some columns by key: counts of booleans and integers as int64, of floats as float64."""
    group, first = group_rows([keys], len(keys))
    text = keys.take(pa.array(first)).cast(pa.string())
    columns = {name: text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text}
    for figure, values in figures.items():
        total = _sum_floats(group, values, len(first))
        columns[figure] = pa.array(total if values.dtype.kind == "f" else np.rint(total).astype(np.int64))
    return pa.table(columns)


def _sum_floats(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """[G] float64 sums; where there is nothing to add up, bincount alone would give integers."""
    return np.bincount(group, values.astype(np.float64), minlength=groups).astype(np.float64)


def _regressed_words(pair: Pair, outcome: np.ndarray, limit: int) -> pa.Table:
    a, b = pair.a, pair.b
    change = b.loss.astype(np.float64) - a.loss
    at = _largest(change, limit)
    row, tags = pa.array(a.sequence[at]), pa.array(a.tags)
    return _top(
        pa.table(
            {
                "example_id": a.example_id.take(row),
                "source": a.source.take(row),
                "source_row": a.source_row[a.sequence[at]],
                "word_index": a.word_index[at],
                "word": a.word.take(pa.array(at)).cast(pa.string()),
                "label": tags.take(pa.array(a.label[at])),
                "predicted_a": tags.take(pa.array(a.predicted[at])),
                "predicted_b": tags.take(pa.array(b.predicted[at])),
                "outcome": pa.array(OUTCOMES).take(pa.array(outcome[at])),
                "loss_a": a.loss[at],
                "loss_b": b.loss[at],
                "difference": change[at],
            }
        ),
        limit,
    )


def _regressed_sequences(pair: Pair, outcome: np.ndarray, limit: int) -> pa.Table:
    a, sequence, rows = pair.a, pair.a.sequence, len(pair.a.offsets) - 1
    loss_a, loss_b = (_sum_floats(sequence, side.loss, rows) for side in (pair.a, pair.b))
    at = _largest(loss_b - loss_a, limit)
    chosen = pa.array(at)
    return _top(
        pa.table(
            {
                "example_id": a.example_id.take(chosen),
                "source": a.source.take(chosen),
                "source_row": a.source_row[at],
                "words": np.diff(a.offsets)[at],
                "fixed": np.bincount(sequence[outcome == 1], minlength=rows)[at],
                "broken": np.bincount(sequence[outcome == 2], minlength=rows)[at],
                "total_loss_a": loss_a[at],
                "total_loss_b": loss_b[at],
                "difference": (loss_b - loss_a)[at],
            }
        ),
        limit,
    )


def _largest(change: np.ndarray, limit: int) -> np.ndarray:
    """Positions of the `limit` largest of the positive changes, and of all that tie with the last of them."""
    if len(change) > limit:
        floor = np.partition(change, len(change) - limit)[len(change) - limit]
        return np.flatnonzero((change >= floor) & (change > 0))
    return np.flatnonzero(change > 0)


def _top(table: pa.Table, limit: int) -> pa.Table:
    keys = ["example_id", "source", "source_row", "word_index"]
    order = [("difference", "descending"), *((key, "ascending") for key in keys if key in table.column_names)]
    return table.sort_by(order).slice(0, limit).combine_chunks()
