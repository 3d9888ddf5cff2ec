"""`tokloss show`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from tokloss_ray.errors import Refused, before_work

_FIND = "Which sequences"


def show(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a run.")],
    worst: Annotated[int, typer.Option(min=1, metavar="N", help="Number of sequences, highest loss first.")] = 3,
    rank: Annotated[
        Literal["total", "mean", "max", "certainty"] | None,
        typer.Option(
            metavar="total|mean|max|certainty",
            help="Rank sequences by total, mean or maximum loss, or by the errors to expect in words without a label, "
            "which is how sure the model is (default: total; certainty if nothing is labelled).",
            show_default=False,
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only sequences that contain this token or word.", rich_help_panel=_FIND),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="TAG", help="Only with a token of this label and another prediction.", rich_help_panel=_FIND
        ),
    ] = None,
    predicted: Annotated[
        str | None,
        typer.Option(
            metavar="TAG", help="Only with a token of this prediction and another label.", rich_help_panel=_FIND
        ),
    ] = None,
    issues: Annotated[
        bool,
        typer.Option(
            "--issues",
            metavar="",
            help="Only sequences of the top label issues found by mine, with suggestions.",
            rich_help_panel=_FIND,
        ),
    ] = False,
    example_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Only the sequence with this example_id.", rich_help_panel=_FIND),
    ] = None,
) -> None:
    """Show sequences token by token with label, prediction and loss; errors stand out.

    [bold]tokloss show tokloss-demo --label B-ORG --predicted B-LOC --worst 5[/]
    """
    from tokloss_ray.cli.views.sequences import print_sequences
    from tokloss_ray.output import search
    from tokloss_ray.text import visible

    if sum((token is not None or label is not None or predicted is not None, issues, example_id is not None)) > 1:
        raise Refused("--id and --issues cannot be combined with other ways to select sequences: use only one")
    console, said = Console(), Console(stderr=True, soft_wrap=True, highlight=False)
    marks: search.Issues = {}
    notes: search.Notes = {}
    with before_work():
        scores = search.open_scores(output)
        if example_id is not None:
            found = search.sequences_by_id(scores, example_id)
            if not found.num_rows:
                raise Refused(f"{output} has no sequence with the id {example_id}")
        elif issues:
            from tokloss_ray.mining.mined import read_mined

            rows = read_mined(output, "label_issues").rows
            if not rows.num_rows:
                labelled = any(scores.labels.values())
                advice = (
                    "" if labelled else ": no word has a label; --rank certainty shows where the model is least sure"
                )
                raise Refused(f"{output} has no label issues{advice}")
            found, marks = search.sequences_of_issues(scores, rows, worst)
            notes = search.notes_of_issues(rows, marks)
        else:
            rank = rank or ("total" if any(scores.labels.values()) else "certainty")
            found, count = search.find_sequences(scores, worst, rank, token, label, predicted)
    if not scores.finished:
        said.print(f"{visible(output)} is not finished: showing only what is committed", markup=False)
    if (sought := _sought(token, label, predicted)) and example_id is None and not issues:
        if not count:
            raise Refused(f"no sequence in {output} has {sought}")
        has = "sequence has" if count == 1 else "sequences have"
        text = f"{count:,} {has} {visible(sought)}; the worst {found.num_rows}:\n"
        console.print(text, markup=False, highlight=False)
    print_sequences(console, found, mark=token, issues=marks, notes=notes)


def _sought(token: str | None, label: str | None, predicted: str | None) -> str:
    """What is looked for, in words."""
    parts = [] if token is None else [f"the token or word {token}"]
    if label is not None and predicted is not None:
        parts.append(f"a token labelled {label} and predicted {predicted}")
    elif label is not None:
        parts.append(f"a token labelled {label} and predicted otherwise")
    elif predicted is not None:
        parts.append(f"a token predicted {predicted} and labelled otherwise")
    return " and ".join(parts)
