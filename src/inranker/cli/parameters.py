"""What the commands share beyond click: types of options, groups in a meant order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click


class _Share(click.FloatRange):
    """From 0 to 1; click compares, and nothing compares with a NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's complaint."""
        if math.isnan(number := super().convert(value, param, ctx)):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
SHARE = _Share(min=0, max=1)


class CommandGroup(click.Group):
    """Lists its commands in the order in which they were added, each with its whole first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of adding; click sorts them."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help; click cuts a sentence at the end of its line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(1000)) for name in self.commands])
