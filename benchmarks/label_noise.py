"""How well the label-issue ranks find seeded annotation errors in real sentences.

    python benchmarks/label_noise.py --model tokloss_ray/demo/model --data de-val.parquet nl-val.parquet --seeds 3

Each file (words in `tokens`, tag ids in `ner_tags`, tags of the model in the same order) is scored once; an error
changes the annotation and not the probabilities, so that all kinds, rates and seeds use the same ones. The model must
not have been trained on the files. Of the entities, a share (`--rates`) gets an error:

    type      another type, drawn evenly
    boundary  one word more or less at the beginning or the end
    drop      the annotation is removed
    invent    beside each of them: one or two words that are in no entity are annotated; mostly (4 of 5) capitalised
    mixed     one of the four, drawn evenly
    same      the same name wrong each time, as annotators err: names that occur three times or more, each in four of
              five places dropped (three of five names) or given one other type

Average precision by word and by sentence (with an error or not; a sentence scores its worst word), mean over files and
seeds; the three scores of cleanlab come from its own functions. `wins` counts the pairs of file and rate in which the
default is above all of these, mean over seeds. Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cleanlab.rank
import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score

import tokloss_ray
from tokloss_ray.mining.ranks.label_scores import (
    PRIOR_ADJUSTED,
    label_scores,
    log_priors,
    places,
    prior_adjusted,
    shared_evidence,
    surface_evidence,
)
from tokloss_ray.mining.words.load import read_words
from tokloss_ray.mining.words.occurrences import count_words
from tokloss_ray.mining.words.words import Words, concat_words, words_as_text
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.ragged import offsets_of, positions
from tokloss_ray.tags.schemes import Spans, TagSet, breaks_of, read_spans, read_tag_set, write_spans

KINDS = ("type", "boundary", "drop", "invent")
SEEDED = (*KINDS, "mixed", "same")
DEFAULT = "default"
VARIANTS = {
    "no surface, a = 0.5": (0.5, 0.0, 0.0, 0.5),
    "words alone": (0.25, 0.5, 4.0, 0.0),
    "half shared": (0.25, 0.5, 4.0, 0.5),
    "a = 0.4": (0.4, 0.5, 4.0, 1.0),
    "w = 0.25": (0.25, 0.25, 4.0, 1.0),
    "w = 0.75": (0.25, 0.75, 4.0, 1.0),
    "s = 2": (0.25, 0.5, 2.0, 1.0),
    "s = 16": (0.25, 0.5, 16.0, 1.0),
}
"""What the default is not: weight of the prior, weight and smoothing of the other places, share of the region."""
RIVALS = (
    "loss",
    "margin",
    "cleanlab self_confidence",
    "cleanlab normalized_margin",
    "cleanlab confidence_weighted_entropy",
)


def scored(model: str, path: str, folder: str, **settings: Any) -> Words:
    """The words of a file with all probabilities."""
    config = tokloss_ray.ScoreConfig(
        model=model, input=path, output=folder, id_column="id", keep_probs=True, **settings
    )
    tokloss_ray.score(config)
    scores = open_outputs(folder)
    return concat_words([read_words(file, scores.tags, probs=True) for file in scores.files])


def corrupted(words: Words, tag_set: TagSet, kind: str, rate: float, seed: int) -> np.ndarray:
    """[N]: the label codes with errors in a share of the entities."""
    rng = np.random.default_rng(seed)
    spans = read_spans(words.label, breaks_of(words.offsets, words.word_index), tag_set)
    if kind == "same":
        return write_spans(_same_names_wrong(words, tag_set, spans, rate, rng), len(words), tag_set)
    text = words.word.to_pylist()
    start, stop, types = spans.start.copy(), spans.stop.copy(), spans.type.copy()
    sequence = np.searchsorted(words.offsets, start, side="right") - 1
    free = np.ones(len(words), dtype=bool)  # in no entity, and not near one that was changed
    for a, b in zip(start, stop, strict=True):
        free[a:b] = False
    invented: list[tuple[int, int, int]] = []
    kept = np.ones(len(start), dtype=bool)
    wanted, done = round(rate * len(start)), 0
    for e in rng.permutation(len(start)):
        if done == wanted:
            break
        error = KINDS[rng.integers(4)] if kind == "mixed" else kind
        a, b = start[e], stop[e]
        if error == "type":
            types[e] = (types[e] + 1 + rng.integers(len(tag_set.types) - 1)) % len(tag_set.types)
        elif error == "drop":
            kept[e] = False
        elif error == "boundary":
            first, last = words.offsets[sequence[e]], words.offsets[sequence[e] + 1]
            choices = [(a + 1, b), (a, b - 1)] if b - a > 1 else []
            choices += [(a - 1, b)] if a > first and free[a - 1] else []
            choices += [(a, b + 1)] if b < last and free[b] else []
            if not choices:
                continue
            start[e], stop[e] = choices[rng.integers(len(choices))]
            free[start[e] : stop[e]] = False
        else:
            a = _free_word(rng, free, text)
            sentence = np.searchsorted(words.offsets, a, side="right") - 1
            b = a + 1
            if b < words.offsets[sentence + 1] and free[b] and rng.random() < 0.3:
                b += 1
            free[a:b] = False
            invented.append((a, b, rng.integers(len(tag_set.types))))
        done += 1
    new = np.array(invented, dtype=np.int64).reshape(-1, 3)
    columns = [np.concatenate([old[kept], new[:, i]]) for i, old in enumerate((start, stop, types))]
    order = np.argsort(columns[0])
    return write_spans(Spans(*(values[order] for values in columns)), len(words), tag_set)


def _same_names_wrong(words: Words, tag_set: TagSet, spans: Spans, rate: float, rng: np.random.Generator) -> Spans:
    """The spans with errors of the kind `same`."""
    lengths = spans.stop - spans.start
    at = words.word.take(pa.array(positions(spans.start, lengths)))
    names = words_as_text(at, offsets_of(lengths)).dictionary_encode()
    name = names.indices.to_numpy()
    often = np.flatnonzero(np.bincount(name) >= 3)
    types, kept = spans.type.copy(), np.ones(len(name), dtype=bool)
    changed = 0
    for one in rng.permutation(often):
        if changed >= rate * len(name):
            break
        here = np.flatnonzero(name == one)
        here = here[rng.random(len(here)) < 0.8]
        changed += len(here)
        if rng.random() < 0.6:
            kept[here] = False
        else:
            types[here] = (types[here] + 1 + rng.integers(len(tag_set.types) - 1)) % len(tag_set.types)
    return Spans(spans.start[kept], spans.stop[kept], types[kept])


def _free_word(rng: np.random.Generator, free: np.ndarray, text: list[str]) -> int:
    while True:
        at = int(rng.integers(len(free)))
        word = text[at]
        if free[at] and word[:1].isalpha() and (word[:1].isupper() or rng.random() < 0.2):
            return at


def with_labels(words: Words, label: np.ndarray) -> Words:
    """The words with another annotation, and its losses."""
    own = words.probs[np.arange(len(words)), label]
    loss = np.where(label == words.label, words.loss, -np.log(np.maximum(own, 1e-30)))
    return replace(words, label=label, loss=loss.astype(np.float32))


def scores_of(words: Words) -> dict[str, np.ndarray]:
    """Score of each word, higher is more suspicious, by rank."""
    counts = Counter(np.array(words.tags)[words.label].tolist())
    found = {DEFAULT: label_scores(words, counts)[0], PRIOR_ADJUSTED: label_scores(words, counts, PRIOR_ADJUSTED)[0]}
    prior = log_priors(words, counts)
    at = places(words, count_words(words))
    for name, (a, w, s, share) in VARIANTS.items():
        surface = surface_evidence(words, prior, at, w, s) if w else None
        found[name] = shared_evidence(prior_adjusted(words, prior, a, surface)[0], words, share=share)
    for rank in ("loss", "margin"):
        found[rank] = label_scores(words, counts, rank)[0]
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        probs = words.probs.astype(np.float64)
        found[f"cleanlab {method}"] = -cleanlab.rank.get_label_quality_scores(words.label, probs, method=method)
    return found


def precision(words: Words, wrong: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Average precision by word and by sentence."""
    starts = words.offsets[:-1][np.diff(words.offsets) > 0]
    by_sentence = np.maximum.reduceat(wrong, starts), np.maximum.reduceat(score, starts)
    return average_precision_score(wrong, score), average_precision_score(*by_sentence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.02, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    results: dict[tuple[str, float, str], dict[str, list[tuple[float, float]]]] = {}
    for path in args.data:
        with tempfile.TemporaryDirectory() as folder:
            words = scored(args.model, path, folder)
        tag_set = read_tag_set(words.tags)
        assert tag_set
        for kind in SEEDED:
            for rate in args.rates:
                for seed in range(args.seeds):
                    label = corrupted(words, tag_set, kind, rate, seed)
                    noisy = with_labels(words, label)
                    here = results.setdefault((kind, rate, Path(path).stem), {})
                    for name, score in scores_of(noisy).items():
                        here.setdefault(name, []).append(precision(words, label != words.label, score))
    report(results, [Path(path).stem for path in args.data], args.rates)


def report(results: dict, files: list[str], rates: list[float]) -> None:
    """Print means over files and seeds, and how often the default is above all the others."""
    cells = [(kind, rate) for kind in SEEDED for rate in rates]
    means = {at: {name: np.mean(values, axis=0) for name, values in here.items()} for at, here in results.items()}
    names = list(next(iter(means.values())))
    print("average precision, word / sentence")
    print("".ljust(40), *(f"{kind} {rate:.0%}".rjust(14) for kind, rate in cells))
    table = {}
    for name in names:
        row = [np.mean([means[kind, rate, file][name] for file in files], axis=0) for kind, rate in cells]
        table[name] = {
            f"{kind} {rate}": [round(float(x), 4) for x in pair] for (kind, rate), pair in zip(cells, row, strict=True)
        }
        print(name.ljust(40), *(f"{word:.3f} / {sentence:.3f}" for word, sentence in row))
    wins = {}
    for kind in SEEDED:
        ours = [means[kind, rate, file] for rate in rates for file in files]
        wins[kind] = [sum(all(m[DEFAULT][i] > m[name][i] for name in RIVALS) for m in ours) for i in (0, 1)]
        word, sentence = wins[kind]
        print(
            f"{kind}: the default is above all rivals in {word} (word) and {sentence} (sentence) of {len(ours)} cases"
        )
    print(json.dumps({"average_precision": table, "wins": wins, "of": len(files) * len(rates)}))


if __name__ == "__main__":
    main()
