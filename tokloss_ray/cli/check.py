"""`tokloss check`."""

from __future__ import annotations

from rich.console import Console

from tokloss_ray import __version__
from tokloss_ray.cli import log
from tokloss_ray.cli.options import score_options
from tokloss_ray.cli.terminal import chatter, quiet, use_log_format
from tokloss_ray.config import ScoreConfig


@score_options
def check(configs: tuple[ScoreConfig, ...]) -> None:
    """Check arguments, input, model and tags as score would, and estimate size and time. Writes nothing."""
    use_log_format(configs[0].log_format)
    quiet(configs[0].verbose)
    from tokloss_ray.cli.views.checks import print_estimate, print_ready
    from tokloss_ray.cli.views.events import say_estimate
    from tokloss_ray.scoring.begin import check_together
    from tokloss_ray.scoring.driver import check as check_job

    if log.is_json():
        log.say("start", version=__version__, command="check")
    check_together(configs)
    for config in configs:
        if log.is_json():
            with chatter(config.verbose):
                plan, estimate = check_job(config)
            say_estimate(plan, estimate)
        else:
            with Console(stderr=True).status("checking input and model"):
                plan, estimate = check_job(config)
            print_estimate(Console(), plan, estimate, several=len(configs) > 1)
    if not log.is_json():
        print_ready(Console())
