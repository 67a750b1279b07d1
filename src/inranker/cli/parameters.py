"""What the commands share beyond click: types of options, arguments with a help text, groups in a meant order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
SHARE = click.FloatRange(min=0, max=1)

_ARGUMENTS_TAKE_HELP = "help" in inspect.signature(click.Argument).parameters


def argument(name: str, *, help: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`click.argument` with a help text; click before 8.5 has no place for one and goes without."""
    if _ARGUMENTS_TAKE_HELP:
        settings["help"] = help
    return click.argument(name, **settings)


class CommandGroup(click.Group):
    """Lists its commands in the order in which they were added, each with its whole first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of adding; click sorts them."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help; click cuts a sentence at the end of its line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(1000)) for name in self.commands])
