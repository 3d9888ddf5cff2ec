"""`tokloss mine`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text


def mine(
    outputs: Annotated[list[str], typer.Argument(metavar="OUTPUT", help="Output folders; several are mined together.")],
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Slice every table by this column (repeatable).")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only rows with COLUMN=VALUE or COLUMN!=VALUE (repeatable; for one column, any may match).",
        ),
    ] = None,
    min_count: Annotated[int, typer.Option(min=1, metavar="N", help="Leave out tokens and words rarer than this.")] = 1,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum rows of the ranked tables, per slice.")
    ] = 10_000,
    rank: Annotated[
        str,
        typer.Option(
            metavar="RANK",
            help="Rank for label issues: surface, prior-adjusted, loss, margin, confidence-weighted-entropy, "
            "confident-joint or confident-learning.",
        ),
    ] = "surface",
    scheme: Annotated[
        str | None,
        typer.Option(metavar="SCHEME", help="Tag scheme, if the tag names do not tell (for example IOB1)."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Rows of each table to print.")] = 10,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FOLDER", help="Folder for the tables (default: OUTPUT/mining).")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", metavar="", help="Mine the committed part of an unfinished run.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster to use (default: only this machine).")
    ] = None,
) -> None:
    """Show where the model or the annotation is wrong; write tables as Parquet to OUTPUT/mining.

    [bold]tokloss mine tokloss-demo[/]

    Tokens, words and tags with the highest loss; confusions; entities and what is wrong with them; worst sequences;
    labels that are probably wrong (if the model was not trained on them); words labelled inconsistently.
    """
    from tokloss_ray import stopping
    from tokloss_ray.cli.views.tables import MiningProgress, print_tables
    from tokloss_ray.errors import Interrupted
    from tokloss_ray.mining.mine import mine as mine_outputs
    from tokloss_ray.mining.mine import rare_words_hint
    from tokloss_ray.mining.mined import mining_folder
    from tokloss_ray.tags.warnings import scheme_hint

    try:
        with MiningProgress(Console(stderr=True)) as progress:
            tables = mine_outputs(
                outputs,
                by=by or (),
                where=where or (),
                min_count=min_count,
                limit=limit,
                scheme=scheme,
                rank=rank,
                partial=partial,
                to=to,
                address=address,
                progress=progress.moved,
            )
    except KeyboardInterrupt:
        raise Interrupted("interrupted; run the same command again to start over", stopping.exit_code()) from None
    for hint in filter(None, (scheme_hint(tables, scheme), rare_words_hint(tables))):
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("warning: ", "yellow"), hint))
    print_tables(Console(), tables, show, by or (), outputs[0], to or mining_folder(outputs[0]))
