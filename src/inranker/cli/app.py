"""The `inranker` command: every command, in the order in which people meet them."""

from __future__ import annotations

import errno
import sys
import warnings
from typing import Any

import click

from inranker.cli import bench, distill, evaluate, export, init, models, quickstart, rank, serve, status
from inranker.cli.parameters import CommandGroup
from inranker.errors import InputWarning, InRankerError

_show_other_warning = warnings.showwarning


class _App(CommandGroup):
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it with a shell's exit code for that, and without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


@click.group("inranker", cls=_App, context_settings={"max_content_width": 96, "show_default": True})
def app() -> None:
    """Turn a large neural ranker into a small one that is good on your own documents, and run it anywhere."""


app.add_command(quickstart.quickstart)
app.add_command(init.init)
app.add_command(distill.distill)
app.add_command(status.status)
app.add_command(distill.generate)
app.add_command(distill.retrieve)
app.add_command(distill.label)
app.add_command(distill.train_teacher)
app.add_command(distill.train)
app.add_command(evaluate.evaluate)
app.add_command(export.export)
app.add_command(rank.rank)
app.add_command(rank.rerank_run)
app.add_command(bench.bench)
app.add_command(serve.serve)
app.add_command(models.app)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except InRankerError as error:
        print(f"inranker: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" ({error.filename})" if error.filename else ""
        print(f"inranker: the disk is full{place}; free some and start again: what is done is kept", file=sys.stderr)
        sys.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, InputWarning):
        print(f"inranker: warning: {message}", file=sys.stderr)
    else:
        _show_other_warning(message, category, *place, **more)
