"""`inranker quickstart`: the whole chain, for real, on documents that every Python brings."""

from __future__ import annotations

import time
from pathlib import Path

import click

from inranker.cli.distill import dry_option, run_recipe, set_option
from inranker.cli.parameters import PATH
from inranker.cli.progress import format_seconds


@click.command()
@click.option("--out", type=PATH, default=Path("runs/quickstart"), metavar="DIR", help="The run's folder.")
@set_option
@dry_option
def quickstart(out: Path, settings: tuple[str, ...], dry_run: bool) -> None:
    """Distil a two-layer ranker for the documentation of this Python, in about a quarter of an hour on two cores.

    A language model (SmolLM2-135M, about 100 MB to fetch) writes queries for the documents, the ranker that comes with
    this package labels them, and a student of two layers learns from both. It is measured on questions that neither has
    seen. A second call uses what the first one left.
    """
    started = time.monotonic()
    run_recipe("quickstart", out, None, None, settings, dry_run)
    if not dry_run:
        print(f"All in {format_seconds(time.monotonic() - started)}.")
