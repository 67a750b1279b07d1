"""The `inranker` command: every command, in the order in which people meet them."""

from __future__ import annotations

import sys

import typer

from inranker.errors import InRankerError

app = typer.Typer(
    name="inranker",
    help="Turn a large neural ranker into a small one that is good on your own documents, and run it anywhere.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except InRankerError as error:
        print(f"inranker: {error}", file=sys.stderr)
        sys.exit(2)
