"""The commands of `tokloss`, put together; and what every one of them does at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from tokloss_ray import __version__, stopping
from tokloss_ray.cli import log
from tokloss_ray.cli.apply_fixes import apply_fixes
from tokloss_ray.cli.check import check
from tokloss_ray.cli.demo import demo
from tokloss_ray.cli.diff import diff
from tokloss_ray.cli.export import export
from tokloss_ray.cli.mine import mine
from tokloss_ray.cli.parsing import Command, Commands
from tokloss_ray.cli.report import report
from tokloss_ray.cli.review import review
from tokloss_ray.cli.score import score
from tokloss_ray.cli.show import show
from tokloss_ray.cli.status import status
from tokloss_ray.cli.terminal import say, shown
from tokloss_ray.cli.verify import verify

COMMANDS: tuple[Callable[..., None], ...] = (
    demo, score, check, status, verify, mine, show, report, review, diff, export, apply_fixes
)  # fmt: skip
"""In the order of the help; a command is called as its function, with dashes."""


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _function in COMMANDS:
    app.command(_function.__name__.replace("_", "-"), cls=Command)(_function)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Where is my tagger wrong, and where is my data wrong? Per-token losses over large corpora, on Ray.

    Start with [bold]tokloss demo[/], then [bold]tokloss score[/] on your own model and data.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line (by default the process's); errors are one sentence on standard error and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(__version__)
        return
    log.choose(arguments)
    with stopping.handled():
        try:
            # Typer prints what is wrong with the arguments; a machine wants it as it wants all else.
            app(arguments, standalone_mode=not log.is_json())
        except Exception as error:
            told = shown(error)
            stopping.unwinding()
            say(told)
            sys.exit(told.exit_code)
