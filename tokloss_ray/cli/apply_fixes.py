"""`tokloss apply-fixes`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from tokloss_ray.errors import before_work
from tokloss_ray.text import visible

_MATCH = "Columns and tags"
_SPANS = "Text with spans"
_REVIEW = "Decisions of tokloss review"


def apply_fixes(
    corrected: Annotated[
        str,
        typer.Argument(
            metavar="CORRECTED",
            help="Corrected file of tokloss export (for Label Studio, its own export), or an OUTPUT that was reviewed.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="DATASET", help="Dataset that was scored, a file or folder.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DATASET", help="Dataset to write, a new file or folder.")
    ],
    tokens_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column with the words (default: tokens or words).", rich_help_panel=_MATCH
        ),
    ] = None,
    labels_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column with the tags (default: ner_tags, tags or labels).", rich_help_panel=_MATCH
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Find rows by this column (default: by file and row).", rich_help_panel=_MATCH
        ),
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Names for integer tags, in order, separated by commas; or new string tags.",
            rich_help_panel=_MATCH,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split to read from a saved DatasetDict.", rich_help_panel=_MATCH)
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column with the text (default: text).", rich_help_panel=_SPANS),
    ] = None,
    spans_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column with the spans (default: as in score).", rich_help_panel=_SPANS),
    ] = None,
    words: Annotated[
        Literal["punctuation", "whitespace", "model"] | None,
        typer.Option(
            metavar="punctuation|whitespace", help="How score split the text into words.", rich_help_panel=_SPANS
        ),
    ] = None,
    widen_spans: Annotated[
        bool, typer.Option("--widen-spans", metavar="", help="As in score.", rich_help_panel=_SPANS)
    ] = False,
    label_map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=TYPE", help="What the model calls a label of spans (repeatable).", rich_help_panel=_SPANS
        ),
    ] = None,
    reviewer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Use only this person's decisions (repeatable).", rich_help_panel=_REVIEW),
    ] = None,
    conflicts: Annotated[
        Literal["refuse", "leave", "latest"],
        typer.Option(
            metavar="refuse|leave|latest",
            help="Where reviewers disagree: refuse, leave the labels as they are, or take the latest decision.",
            rich_help_panel=_REVIEW,
        ),
    ] = "refuse",
) -> None:
    """Copy a dataset with corrected tags. Nothing else changes; corrections that do not match are refused.

    [bold]tokloss apply-fixes worst.csv --to data/ -o data-fixed/[/]
    """
    from tokloss_ray.config import named_values
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
            reviewers=reviewer or (),
            conflicts=conflicts,
            text_column=text_column,
            spans_column=spans_column,
            words=words,
            widen_spans=widen_spans,
            label_map=named_values("--label-map", label_map or ()),
        )
    console = Console(soft_wrap=True)
    already = f" ({done.words_same:,} already had the corrected tag)" if done.words_same else ""
    console.print(Text(f"rows read      {done.rows_read:,}"))
    console.print(Text(f"rows changed   {done.rows_changed:,}"))
    console.print(Text(f"words changed  {done.words_changed:,}{already}"))
    console.print(Text(f"files changed  {done.files_changed:,} of {done.files:,}"))
    console.print(Text(f"The dataset is in {visible(output)}."))
