"""`tokloss score`."""

from __future__ import annotations

import contextlib
import io

from rich.console import Console

from tokloss_ray.cli.options import score_options
from tokloss_ray.cli.terminal import quiet
from tokloss_ray.config import ScoreConfig


@score_options
def score(config: ScoreConfig) -> None:
    """Score every token of a corpus with a model. If interrupted, run the same command again to resume.

    [bold]tokloss score --model ./model --input 'data/*.parquet' --output out[/]

    Each row has a list of words and a list of tags (or input_ids and labels).

    Results are Parquet files in OUTPUT/scores; rows that cannot be scored go to OUTPUT/errors, with a reason.

    Exit codes: 0 done, 1 failed while running, 2 wrong arguments or input, 3 more bad rows than allowed, 130 and 143
    interrupted.
    """
    score_and_tell(config)


def score_and_tell(config: ScoreConfig) -> None:
    """Score, with progress on standard error and a summary at the end."""
    quiet(config.verbose)
    from tokloss_ray.cli.views.progress import ProgressView
    from tokloss_ray.cli.views.summary import print_summary
    from tokloss_ray.scoring.driver import score as score_job

    # Ray prints what its raylets say to sys.stdout, from a thread of its own.
    hidden = contextlib.nullcontext() if config.verbose else contextlib.redirect_stdout(io.StringIO())
    with ProgressView(Console(stderr=True)) as view, hidden:
        summary = score_job(config, view)
    print_summary(Console(), summary)
