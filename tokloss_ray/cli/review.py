"""`tokloss review`."""

from __future__ import annotations

import getpass
import shlex
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text


def review(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a finished run that was mined.")],
    reviewer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose decisions these are (default: your login name).")
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Port to serve the page on (default: a free one).",
            show_default=False,
        ),
    ] = 0,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn/--no-learn",
            metavar="",
            help="Rank what is left again after every 50 decisions, by what you decided (default: yes).",
            show_default=False,
        ),
    ] = True,
    audit_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Share of issues that are words drawn at random, for --estimate (default: 0.1; 0 for none).",
            show_default=False,
        ),
    ] = 0.1,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            metavar="",
            help="Open no page; say how many labels are wrong, from the decisions so far.",
            show_default=False,
        ),
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", metavar="", help="Open the page in your browser.", show_default=False)
    ] = False,
) -> None:
    """Go through label issues in a browser and decide on each: keep the label, accept the suggestion, or edit.

    [bold]tokloss review tokloss-demo[/]

    Serves a page to this machine only, until Ctrl-C. Decisions are in OUTPUT/review as soon as you make them;
    apply-fixes writes them into the dataset.
    """
    if estimate:
        return _estimate(output, reviewer)
    from tokloss_ray import stopping
    from tokloss_ray.cli.views.review import print_review_summary
    from tokloss_ray.errors import Interrupted, before_work
    from tokloss_ray.review.server import Server
    from tokloss_ray.review.session import Review
    from tokloss_ray.text import visible

    said = Console(stderr=True, soft_wrap=True, highlight=False)
    name = reviewer if reviewer is not None else _login()
    with before_work():
        session = Review(output, name, learn, audit_share)
    try:
        server = Server(session, port, lambda: _say_again(said, server))
        server.start()
        session.start()
        try:
            said.print(Text(f"Reviewing {visible(output)} as {visible(name)}. Open this address, which works once:"))
            Console(soft_wrap=True, highlight=False).print(Text(f"  {server.access.address}"))
            said.print(Text("Ctrl-C ends the review; every decision is saved as you make it."))
            if open_browser:
                import webbrowser

                webbrowser.open(server.access.address)
            _wait()
        finally:
            server.stop()
    finally:
        session.close()
    code = stopping.exit_code()
    print_review_summary(Console(soft_wrap=True, highlight=False), session, shlex.quote(visible(output)))
    if code != 130:  # not Ctrl-C, which is how a review ends
        raise Interrupted("interrupted; every decision is saved", code)
    stopping.over()


def _estimate(output: str, reviewer: str | None) -> None:
    from tokloss_ray.cli.views.review import print_estimate
    from tokloss_ray.errors import before_work
    from tokloss_ray.review.estimate import estimate

    with before_work():
        found = estimate(output, [reviewer] if reviewer is not None else [])
    print_estimate(Console(soft_wrap=True, highlight=False), found)


def _wait() -> None:
    import threading

    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        from tokloss_ray import stopping

        stopping.unwinding()


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "reviewer"


def _say_again(said: Console, server: Any) -> None:
    server.access.renew()
    said.print(Text("That address was used before. For another browser, open this one:"))
    said.print(Text(f"  {server.access.address}"))
