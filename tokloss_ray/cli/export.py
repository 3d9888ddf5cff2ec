"""`tokloss export`."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from tokloss_ray.errors import before_work
from tokloss_ray.text import visible

_CHOOSE = "Which sentences"


def export(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a finished run.")],
    format: Annotated[
        Literal["label-studio", "conll", "csv"],
        typer.Option(
            "--format",
            "-f",
            metavar="label-studio|conll|csv",
            help="Label Studio tasks, CoNLL columns, or one word a row.",
        ),
    ],
    file: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    worst: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Export the N sentences with the highest total loss.", rich_help_panel=_CHOOSE
        ),
    ] = None,
    issues: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Export the sentences of the top N label issues that mine found.",
            rich_help_panel=_CHOOSE,
        ),
    ] = None,
    example_id: Annotated[
        list[str] | None,
        typer.Option(
            "--id", metavar="ID", help="Export the sentence with this example_id (repeatable).", rich_help_panel=_CHOOSE
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="COLUMN=VALUE or COLUMN!=VALUE (repeatable).", rich_help_panel=_CHOOSE),
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", metavar="", help="CoNLL: one more column, with the loss.")] = False,
    scheme: Annotated[
        Literal["IOB1", "IOB2", "IOBES", "BILOU", "IO"] | None,
        typer.Option(
            metavar="SCHEME", help="Label Studio: scheme of the tags, where their names do not tell: IOB1, for one."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace a file that is there.")] = False,
) -> None:
    """Write sentences with labels and predictions to a file, to be labelled again. All of them, unless you choose.

    [bold]tokloss export tokloss-demo --format csv --worst 100 -o worst.csv[/]

    The last column (in Label Studio: the annotation) is for the corrected tags; apply-fixes takes the file back.
    """
    from tokloss_ray.exporting.export import export as export_sentences

    with before_work(), Console(stderr=True).status("writing sentences"):
        count = export_sentences(
            output,
            file,
            format,
            worst=worst,
            issues=issues,
            ids=example_id or (),
            where=where or (),
            loss=loss,
            scheme=scheme,
            overwrite=overwrite,
        )
    console = Console(soft_wrap=True)
    sentences = "sentence is" if count == 1 else "sentences are"
    console.print(Text(visible(f"{count:,} {sentences} in {file}. {_NEXT[format].format(file=file)}")))
    console.print(Text(f"  tokloss apply-fixes {visible(shlex.quote(file))} --to DATASET -o NEW_DATASET"))


_NEXT = {
    "label-studio": "The labelling interface is in {file}.xml. After annotation, export as JSON:",
    "conll": "Correct the last column, then:",
    "csv": "Correct the column corrected, save as CSV, then:",
}
