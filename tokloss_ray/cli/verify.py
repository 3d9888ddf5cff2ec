"""`tokloss verify`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tokloss_ray.errors import JobFailed, before_work


def verify(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a finished run.")],
) -> None:
    """Re-read a finished output and verify it: nothing lost, nothing duplicated, every file intact."""
    from tokloss_ray.cli.views.checks import print_verified
    from tokloss_ray.output.verify import verify as verify_output

    with before_work(), Console(stderr=True).status("reading every file"):
        found = verify_output(output)
    print_verified(Console(), found)
    if found.problems:
        remedy = (
            "some of them cannot be repaired: score again with --overwrite"
            if found.beyond_repair
            else "run the same tokloss score command to score the damaged shards again"
        )
        raise JobFailed(f"{len(found.problems):,} problems in {output}; {remedy}")
