"""The `inranker` command: every command, in the order in which people meet them."""

from __future__ import annotations

import errno
import sys
import warnings
from typing import Any

import typer

from inranker.cli import bench, distill, evaluate, export, init, models, quickstart, rank, serve, status
from inranker.errors import InputWarning, InRankerError

_show_other_warning = warnings.showwarning

app = typer.Typer(
    name="inranker",
    help="Turn a large neural ranker into a small one that is good on your own documents, and run it anywhere.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command("quickstart")(quickstart.quickstart)
app.command("init")(init.init)
app.command("distill")(distill.distill)
app.command("status")(status.status)
app.command("generate")(distill.generate)
app.command("retrieve")(distill.retrieve)
app.command("label")(distill.label)
app.command("train-teacher")(distill.train_teacher)
app.command("train")(distill.train)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("rank")(rank.rank)
app.command("rerank-run")(rank.rerank_run)
app.command("bench")(bench.bench)
app.command("serve")(serve.serve)
app.add_typer(models.app, name="models")


@app.callback()
def _commands() -> None:
    """With a callback, a lone command still goes by its name."""


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
