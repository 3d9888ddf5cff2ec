"""Some real sentences of the demo, scored once with the demo model: as rows of scores/ and as the mining reads them."""

from __future__ import annotations

import functools
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tokloss_ray.demo
from tests.support.inline import score_inline
from tokloss_ray import ScoreConfig
from tokloss_ray.mining.words.load import read_words
from tokloss_ray.mining.words.words import Words, concat_words, take_words
from tokloss_ray.output.opened import open_outputs

DEMO = Path(tokloss_ray.demo.__file__).parent
SENTENCES = 1000


class Scored(NamedTuple):
    """Rows of scores/, and their words: one `Words` for each file."""

    rows: list[dict[str, Any]]
    words: list[Words]


@functools.cache
def demo_scores() -> Scored:
    """The first sentences of the demo, with all probabilities, in several shards."""
    with tempfile.TemporaryDirectory() as folder:
        config = ScoreConfig(
            model=str(DEMO / "model"),
            input=str(DEMO / "data/panx_de_validation.parquet"),
            output=folder,
            id_column="id",
            keep_probs=True,
            limit=SENTENCES,
            shard_tokens=5000,
        )
        rows = score_inline(config).rows
        scores = open_outputs(folder)
        words = [read_words(file, scores.tags, probs=True) for file in scores.files]
    return Scored(rows, words)


def demo_words() -> Words:
    """All words of `demo_scores`."""
    return concat_words(demo_scores().words)


def split(words: Words, cuts: list[int]) -> list[Words]:
    """Runs of sequences, cut before the sequences `cuts`."""
    ends = [0, *sorted(cuts), len(words.offsets) - 1]
    parts = []
    for a, b in itertools.pairwise(ends):
        at = np.arange(words.offsets[a], words.offsets[b])
        parts.append(
            replace(
                take_words(words, at),
                offsets=words.offsets[a : b + 1] - words.offsets[a],
                example_id=words.example_id[a:b],
                source=words.source[a:b],
                source_row=words.source_row[a:b],
                by={name: values[a:b] for name, values in words.by.items()},
            )
        )
    return parts
