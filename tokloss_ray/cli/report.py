"""`tokloss report`."""

from __future__ import annotations

import posixpath
from typing import Annotated

import typer
from rich.console import Console


def report(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a finished run.")],
    to: Annotated[
        str | None, typer.Option("--to", "-o", metavar="FILE", help="File to write (default: OUTPUT/report.html).")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Compare slices by this column (repeatable).")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Only rows with COLUMN=VALUE or COLUMN!=VALUE (repeatable)."),
    ] = None,
    rank: Annotated[str | None, typer.Option(metavar="RANK", help="Rank for label issues, as for mine.")] = None,
    scheme: Annotated[str | None, typer.Option(metavar="SCHEME", help="Tag scheme, as for mine.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", metavar="", help="Report the committed part of an unfinished run.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster to use (default: only this machine).")
    ] = None,
) -> None:
    """Write one self-contained page: how good the model is, where it is wrong, and which labels look wrong.

    [bold]tokloss report tokloss-demo -o report.html[/]

    Uses the tables written by mine if they cover all of OUTPUT as it is now; otherwise makes them in memory.
    """
    from tokloss_ray import stopping
    from tokloss_ray.cli.views.tables import MiningProgress
    from tokloss_ray.errors import Interrupted, before_work
    from tokloss_ray.output.names import REPORT
    from tokloss_ray.report.data import read_report_data
    from tokloss_ray.report.page import check_place, render, write_page
    from tokloss_ray.text import visible

    own = posixpath.join(output.rstrip("/"), REPORT)
    place = to or own
    try:
        with before_work():
            check_place(place, own)
        with MiningProgress(Console(stderr=True)) as progress:
            data = read_report_data(
                output, by=by or (), where=where or (), scheme=scheme, rank=rank, partial=partial, address=address,
                progress=progress.moved,
            )  # fmt: skip
        write_page(place, render(data))
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written", stopping.exit_code()) from None
    Console().print(f"The report is in {visible(place)}", markup=False, highlight=False, soft_wrap=True)
