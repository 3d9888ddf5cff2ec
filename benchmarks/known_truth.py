"""Labelled words of which it is known which labels are wrong: what `learning.py` and `estimate.py` go through.

Real corrections (`--data`, with `--base` and what else `label_corrections.py` takes), and errors put into real
annotation (`--seeded FILE:KIND:RATE`, kinds and rates as in `label_noise.py`, predictions of `--seeded-model`). With
`--cache`, words that were scored once are kept there.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from label_corrections import add_model_options, measured
from label_noise import corrupted, scored, with_labels

from tokloss_ray.demo import DATA, MODEL
from tokloss_ray.mining.words.words import Words
from tokloss_ray.tags.schemes import read_tag_set

QUICK_SENTENCES = 1_500
Truth = tuple[Words, np.ndarray]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What says which words to go through."""
    add_model_options(parser)
    parser.add_argument("--data", nargs="*", default=[], help="corrected files")
    parser.add_argument("--name", help="what to call the corrected files, if there are several ways to score them")
    parser.add_argument("--seeded", nargs="*", default=[], metavar="FILE:KIND:RATE")
    parser.add_argument("--seeded-model", default=str(MODEL))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--quick", action="store_true", help="1,500 sentences of the demo with seeded errors")
    parser.add_argument("--json")


def each(args: argparse.Namespace) -> Iterator[tuple[str, Words, np.ndarray]]:
    """Name, words, and which of their labels are wrong, [N] bool."""
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder, "rows.parquet")
            pq.write_table(pq.read_table(DATA).slice(0, QUICK_SENTENCES), rows)
            yield "demo, mixed 5 %", *_seeded(scored(str(MODEL), str(rows), f"{folder}/out"), "mixed", 0.05)
        return
    for path in args.data:
        name = args.name or Path(path).stem
        yield name, *_kept(args.cache, name, lambda path=path: measured(args, path))
    for given in args.seeded:
        path, kind, rate = given.split(":")
        with tempfile.TemporaryDirectory() as folder:
            words, _ = _kept(
                args.cache,
                Path(path).stem,
                lambda path=path, folder=folder: (scored(args.seeded_model, path, f"{folder}/out"), np.zeros(0, bool)),
            )
        yield f"{Path(path).stem}, {kind} {float(rate):.1%}", *_seeded(words, kind, float(rate))


def _seeded(words: Words, kind: str, rate: float) -> Truth:
    tag_set = read_tag_set(words.tags)
    assert tag_set is not None
    label = corrupted(words, tag_set, kind, rate, 0)
    return with_labels(words, label), label != words.label


def _kept(cache: Path | None, name: str, make: Callable[[], Truth]) -> Truth:
    if cache is None:
        return make()
    file = cache / f"{name}.pickle"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(make()))
    found: Truth = pickle.loads(file.read_bytes())
    return found
