"""How many errors a reviewer finds sooner when `tokloss review` learns from decisions: on corrections by people.

    python benchmarks/learning.py --model MODEL --data corrected.parquet

The file has the columns `id`, `tokens`, `given` (tags with errors) and `final` (the tags after correction); the model
must not have been trained on it. Scores the given tags and lets a reviewer who knows the final ones go through the
words, 50 at a time, in the order of the table of label issues, and in the order that is learnt after every 50. Prints
how many of the errors are among the words seen, and as its last line one JSON object. Words are decided on one by one;
in the program a decision covers an entity.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import show

import tokloss_ray
from tokloss_ray.mining.ranks.label_scores import label_scores
from tokloss_ray.mining.words.load import read_words
from tokloss_ray.mining.words.words import Words, concat_words
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.ragged import one_array
from tokloss_ray.review.issues import Index
from tokloss_ray.review.learning import EVERY, Example, fit, values

SEEN = (50, 100, 200, 400, 1000, 2000)


def scored(model: str, data: str, folder: str) -> tuple[Words, np.ndarray]:
    """The words of a corrected file, and of each whether its given tag was corrected."""
    table = pq.read_table(data)
    source = Path(folder, "given.parquet")
    pq.write_table(table.select(["id", "tokens", "given"]), source)
    out = str(Path(folder, "out"))
    tokloss_ray.score(
        tokloss_ray.ScoreConfig(model=model, input=str(source), output=out, id_column="id", labels_column="given")
    )
    scores = open_outputs(out)
    words = concat_words([read_words(file, scores.tags) for file in scores.files])
    final = table.column("final").to_pylist()
    tags = [final[row][word] for row, word in zip(words.source_row[words.sequence], words.word_index, strict=True)]
    return words, np.array([words.tags[code] != tag for code, tag in zip(words.label, tags, strict=True)])


def index_of(words: Words) -> Index:
    """The words as a review has them in memory, the most suspicious first or not."""
    found = label_scores(words)
    score, suggested = found[0], found[1]
    tags = pa.array([*words.tags, None], pa.string())
    word = one_array(pa.chunked_array([words.word.cast(pa.string())])).dictionary_encode()
    codes = {"word": word.indices.to_numpy(), "label": words.label, "suggested_label": suggested}
    return Index(codes, {"word": word.dictionary, "label": tags, "suggested_label": tags}, score, None)


def review(index: Index, wrong: np.ndarray, learn: bool, seen: Sequence[int] = SEEN) -> list[int]:
    """Errors among the first words that a reviewer sees, for each number of words."""
    names = {name: strings.to_pylist() for name, strings in index.strings.items()}

    def example(row: int) -> Example:
        word, label, suggested = (names[name][index.codes[name][row]] for name in ("word", "label", "suggested_label"))
        return word, label, suggested, float(index.score[row]), bool(wrong[row])

    order = np.argsort(-index.score, kind="stable")
    done, given, found = np.zeros(len(wrong), bool), [], {}
    while len(given) < min(max(seen), len(wrong)):
        now = order[~done[order]][:EVERY]
        done[now] = True
        given += [example(int(row)) for row in now]
        found[len(given)] = int(wrong[done].sum())
        if learn:
            order = np.argsort(-values(fit(given), index), kind="stable")
    return [found.get(count, int(wrong[done].sum())) for count in seen]


def main() -> None:
    """Score the files and go through each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    given = parser.parse_args()
    rows, found = [], {}
    for data in given.data:
        with tempfile.TemporaryDirectory() as folder:
            words, wrong = scored(given.model, data, folder)
        index, name = index_of(words), Path(data).stem
        found[name] = {"words": len(wrong), "errors": int(wrong.sum())}
        for how, learn in (("table", False), ("learnt", True)):
            found[name][how] = dict(zip(SEEN, review(index, wrong, learn), strict=True))
            rows.append([f"{name}, {how}", int(wrong.sum()), *found[name][how].values()])
    show("Errors found", ["", "errors", *(f"{count:,} seen" for count in SEEN)], rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
