"""What the tests on object storage have in common."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as pads
import s3fs

from tests.support import warm
from tests.support.inline import Inline, score_inline
from tokloss_ray import ScoreConfig

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
ROWS = 300


def upload(folder: Path, uri: str) -> str:
    s3fs.S3FileSystem().put(f"{folder}/", uri.removeprefix("s3://") + "/", recursive=True)
    return uri


def inline(*source: str | Path, model: str | Path, output: str | Path, **options: Any) -> Inline:
    return score_inline(
        ScoreConfig(model=str(model), input=tuple(map(str, source)), output=str(output), id_column="id", **options)
    )


def rows_of(output: str) -> pd.DataFrame:
    if output.startswith("s3://"):
        dataset = pads.dataset(
            f"{output.removeprefix('s3://')}/scores", filesystem=s3fs.S3FileSystem(), format="parquet"
        )
    else:
        dataset = pads.dataset(f"{output}/scores", format="parquet")
    return dataset.to_table().to_pandas().sort_values("example_id", ignore_index=True)


def tokloss(*words: str, **env: str) -> tuple[int, str, float]:
    """Run the command in a process of its own: exit code, all it said, seconds."""
    start = time.monotonic()
    done = warm.tokloss(*words, env=os.environ | env)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start
