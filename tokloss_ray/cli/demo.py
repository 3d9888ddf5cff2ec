"""`tokloss demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from tokloss_ray.cli.report import report
from tokloss_ray.cli.score import score_and_tell
from tokloss_ray.config import ScoreConfig
from tokloss_ray.errors import Refused


def demo(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Output folder.")] = "tokloss-demo",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", metavar="", help="Show messages from Ray and transformers.")
    ] = False,
) -> None:
    """Score 10,000 German sentences with a small model and report what is wrong. Both are part of this package."""
    from tokloss_ray.demo import DATA, MODEL
    from tokloss_ray.mining.mine import mine
    from tokloss_ray.output.run import read_run

    before = read_run(output)
    if before is not None and not str(before.settings.get("model")).endswith("tokloss_ray/demo/model"):
        raise Refused(f"{output} holds the results of another run: choose another folder with --output")
    config = ScoreConfig(
        model=str(MODEL),
        input=(str(DATA),),
        output=output,
        id_column="id",
        add_column={"split": "validation"},
        partition_by=("split", "lang"),
        overwrite=True,
        verbose=verbose,
        log_format="text",
    )
    score_and_tell((config,))
    mine(output)
    report(output)
