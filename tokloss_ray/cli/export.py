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
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="label-studio, doccano or prodigy for annotation, spacy for a DocBin, cleanlab for Parquet, conll for "
            "columns, or csv with one word per row.",
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
    uncertain: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Export the N sentences with words without a label in which mine expects most errors.",
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
        typer.Option(
            metavar="CONDITION",
            help="Only rows with COLUMN=VALUE or COLUMN!=VALUE (repeatable).",
            rich_help_panel=_CHOOSE,
        ),
    ] = None,
    reviewed: Annotated[
        bool | None,
        typer.Option(
            "--reviewed/--not-reviewed",
            metavar="",
            help="Of these, only sentences with decisions of tokloss review, which are filled in; or only the others.",
            rich_help_panel=_CHOOSE,
            show_default=False,
        ),
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", metavar="", help="CoNLL: add a column with the loss.")] = False,
    scheme: Annotated[
        Literal["IOB1", "IOB2", "IOBES", "BILOU", "IO"] | None,
        typer.Option(
            metavar="SCHEME", help="Label Studio: tag scheme, if the tag names do not tell (for example IOB1)."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace an existing file.")] = False,
) -> None:
    """Write sentences with labels and predictions to a file for relabelling. By default, all sentences.

    [bold]tokloss export tokloss-demo --format csv --worst 100 -o worst.csv[/]

    Put the corrected tags in the last column (in Label Studio: the annotation); apply-fixes reads the file back.
    """
    from tokloss_ray.exporting.export import export as export_sentences
    from tokloss_ray.exporting.formats import format_named

    with before_work(), Console(stderr=True).status("writing sentences"):
        count = export_sentences(
            output,
            file,
            format,
            worst=worst,
            issues=issues,
            uncertain=uncertain,
            ids=example_id or (),
            where=where or (),
            loss=loss,
            scheme=scheme,
            overwrite=overwrite,
            reviewed=reviewed,
        )
    console, next_step = Console(soft_wrap=True), format_named(format).next_step.format(file=file)
    sentences = "sentence" if count == 1 else "sentences"
    console.print(Text(visible(f"Wrote {count:,} {sentences} to {file}. {next_step}")))
    console.print(Text(f"  tokloss apply-fixes {visible(shlex.quote(file))} --to DATASET -o NEW_DATASET"))
