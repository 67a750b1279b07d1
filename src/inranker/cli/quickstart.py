"""`inranker quickstart`: the whole chain, for real, on documents that every Python brings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from inranker.cli.distill import DryOption, SetOption, run_recipe
from inranker.cli.progress import format_seconds


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="The run's folder.", metavar="DIR")] = Path("runs/quickstart"),
    settings: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Distil a two-layer ranker for the documentation of this Python, in about a quarter of an hour on two cores.

    A language model (SmolLM2-135M, about 100 MB to fetch) writes queries for the documents, the ranker that comes with
    this package labels them, and a student of two layers learns from both. It is measured on questions that neither has
    seen. A second call uses what the first one left.
    """
    started = time.monotonic()
    run_recipe("quickstart", out, None, None, settings, dry_run)
    if not dry_run:
        print(f"All in {format_seconds(time.monotonic() - started)}.")
