"""`tokloss export` and `tokloss apply-fixes`."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from tokloss_ray.errors import before_work
from tokloss_ray.text import visible

_CHOOSE, _MATCH = "Which sentences", "Columns and tags"


def export(
    output: Annotated[str, typer.Argument(help="Output folder of a finished run.")],
    format: Annotated[
        Literal["label-studio", "conll", "csv"],
        typer.Option("--format", "-f", help="Label Studio tasks, CoNLL columns, or one word a row."),
    ],
    file: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    worst: Annotated[
        int | None, typer.Option(min=1, help="The so many with the highest total loss.", rich_help_panel=_CHOOSE)
    ] = None,
    issues: Annotated[
        int | None,
        typer.Option(min=1, help="Those of the so many first label issues that mine found.", rich_help_panel=_CHOOSE),
    ] = None,
    example_id: Annotated[
        list[str] | None,
        typer.Option("--id", help="The one with this example_id (repeatable).", rich_help_panel=_CHOOSE),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE or COLUMN!=VALUE (repeatable).", rich_help_panel=_CHOOSE)
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", help="CoNLL: one more column, with the loss.")] = False,
    scheme: Annotated[
        Literal["IOB1", "IOB2", "IOBES", "BILOU", "IO"] | None,
        typer.Option(help="Label Studio: scheme of the tags, where their names do not tell: IOB1, for one."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
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


def apply_fixes(
    corrected: Annotated[str, typer.Argument(help="File of tokloss export, corrected; of Label Studio, its export.")],
    to: Annotated[str, typer.Option("--to", metavar="DATASET", help="File or folder that was scored.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DATASET", help="New file or folder.")],
    tokens_column: Annotated[
        str | None, typer.Option(help="Column with the words (default: tokens or words).", rich_help_panel=_MATCH)
    ] = None,
    labels_column: Annotated[
        str | None,
        typer.Option(help="Column with the tags (default: ner_tags, tags or labels).", rich_help_panel=_MATCH),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Find rows by this column (default: by file and row).", rich_help_panel=_MATCH),
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(
            help="Names of integer tags, in order, separated by commas; or new string tags.", rich_help_panel=_MATCH
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split of a saved DatasetDict.", rich_help_panel=_MATCH)
    ] = None,
) -> None:
    """Copy a dataset with the corrected tags in it. Nothing else changes; what does not fit is refused.

    [bold]tokloss apply-fixes worst.csv --to data/ -o data-fixed/[/]
    """
    from tokloss_ray.exporting.apply import apply_fixes as apply

    with before_work(), Console(stderr=True).status("writing the dataset"):
        done = apply(
            corrected,
            to,
            output,
            tokens_column=tokens_column,
            labels_column=labels_column,
            id_column=id_column,
            tags=tuple(tags.split(",")) if tags else None,
            split=split,
        )
    console = Console(soft_wrap=True)
    already = f" ({done.words_same:,} had the corrected tag already)" if done.words_same else ""
    console.print(Text(f"rows read      {done.rows_read:,}"))
    console.print(Text(f"rows changed   {done.rows_changed:,}"))
    console.print(Text(f"words changed  {done.words_changed:,}{already}"))
    console.print(Text(f"files changed  {done.files_changed:,} of {done.files:,}"))
    console.print(Text(f"The dataset is in {visible(output)}."))
