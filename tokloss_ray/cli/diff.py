"""`tokloss diff`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Output folder of the first model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Output folder of the second model, on the same rows.")],
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Slice every table by this column of A (repeatable).")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only rows with COLUMN=VALUE or COLUMN!=VALUE, columns that both have (repeatable).",
        ),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", metavar="", help="Leave out rows that only one output has.")
    ] = False,
    scheme: Annotated[
        str | None,
        typer.Option(metavar="SCHEME", help="Tag scheme, if the tag names do not tell (for example IOB1)."),
    ] = None,
    level: Annotated[
        float, typer.Option(min=0.5, max=0.999, metavar="LEVEL", help="Confidence level of the intervals.")
    ] = 0.95,
    resamples: Annotated[int, typer.Option(min=100, metavar="N", help="Number of bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Bootstrap seed.")] = 0,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum rows of the tables of regressions.")] = 10_000,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Rows of each table to print.")] = 5,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", "-o", metavar="FOLDER", help="Folder for the tables (default: B/mining/diff-..., named after A)."
        ),
    ] = None,
) -> None:
    """Show what the second model fixes and what it breaks, word by word, and how certain that is.

    [bold]tokloss diff old-model new-model[/]

    Tokenizers may differ: words are compared. Tables go to B/mining/diff-..., as Parquet.
    """
    from tokloss_ray import stopping
    from tokloss_ray.cli.views.diff import print_diff
    from tokloss_ray.errors import Interrupted, before_work
    from tokloss_ray.mining.diff.compare import diff as diff_outputs
    from tokloss_ray.mining.diff.compare import diff_folder
    from tokloss_ray.mining.write import check_folder, write_tables

    try:
        with before_work(), Console(stderr=True).status("comparing words"):
            if to is not None:
                check_folder(to, diff_folder(a, b))
            settings: dict[str, Any] = {
                "by": by or [], "where": where or [], "common": common, "scheme": scheme, "limit": limit,
                "resamples": resamples, "level": level, "seed": seed,
            }  # fmt: skip
            found = diff_outputs(a, b, **settings)
            folder = to or diff_folder(a, b)
            write_tables(folder, found.tables, {"diff": [a, b]} | settings)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; run the same command again to start over", stopping.exit_code()) from None
    print_diff(Console(), found, a, b, folder, by or (), level, show)
