"""`tokloss score`."""

from __future__ import annotations

from rich.console import Console

from tokloss_ray.cli import log
from tokloss_ray.cli.options import score_options
from tokloss_ray.cli.terminal import chatter, quiet, use_log_format
from tokloss_ray.config import ScoreConfig


@score_options
def score(configs: tuple[ScoreConfig, ...]) -> None:
    """Score every token of a corpus with a model. If interrupted, run the same command again to resume.

    [bold]tokloss score --model ./model --input 'data/*.parquet' --output out[/]

    Repeat --model to score with several models in one pass; each gets its own folder in OUTPUT.

    Each row has a list of words and a list of tags (or input_ids and labels).

    Results are Parquet files in OUTPUT/scores; rows that cannot be scored go to OUTPUT/errors, with a reason.

    Exit codes: 0 done, 1 failed while running, 2 wrong arguments or input, 3 more bad rows than allowed, 130 and 143
    interrupted.
    """
    score_and_tell(configs)


def score_and_tell(configs: tuple[ScoreConfig, ...]) -> None:
    """Score, with progress on standard error and a summary at the end; or both as lines of a log for machines."""
    config = configs[0]
    use_log_format(config.log_format)
    quiet(config.verbose)
    from tokloss_ray.cli.views.events import EventView, say_summary
    from tokloss_ray.cli.views.progress import ProgressView
    from tokloss_ray.cli.views.summary import print_summaries
    from tokloss_ray.scoring.driver import score as score_job

    view = EventView() if log.is_json() else ProgressView(Console(stderr=True), len(configs) > 1)
    with view, chatter(config.verbose):
        summaries = score_job(configs, view)
    if log.is_json():
        for summary in summaries:
            say_summary(summary)
    else:
        print_summaries(Console(), summaries)
