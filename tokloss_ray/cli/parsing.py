"""How command lines are read and explained, where typer's own way is not a person's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from tokloss_ray import stopping
from tokloss_ray.errors import Interrupted


def _no_value(option: Any) -> Any:
    """`--help` as an option that takes no value, whatever typer says of it."""
    if option is not None:
        option.metavar = ""
    return option


class Command(TyperCommand):
    """Help that shows what a person types: no types of Python's, no braces."""

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`."""
        return _no_value(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        """Arguments without a type: their name says what they are."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.param_type_name == "argument":
                param.display_type_rich = lambda ctx: None
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] OUTPUT...`."""
        return [re.sub(r"^\{(.+)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]


class Commands(TyperGroup):
    """Signals end a command in its own exit code, where typer would make it 1 and say "Aborted"."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Reads the command line."""
        with _interruptible():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command."""
        with _interruptible():
            return super().invoke(*args, **kwargs)

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`."""
        return _no_value(super().get_help_option(ctx))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stopping.unwinding()
        raise Interrupted("interrupted", stopping.exit_code()) from None
