"""`tokloss status`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tokloss_ray.errors import before_work


def status(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a run.")],
) -> None:
    """Show the progress of a run: shards done and missing, rates, errors by reason."""
    from tokloss_ray.cli.views.checks import print_status
    from tokloss_ray.output.status import read_status

    with before_work():
        state = read_status(output)
    print_status(Console(), state)
