"""`inranker status`: how far a run is."""

from __future__ import annotations

from pathlib import Path

import click

from inranker.cli.parameters import PATH
from inranker.cli.progress import format_seconds
from inranker.errors import InputError


@click.command()
@click.argument("folder", type=PATH, metavar="DIR", help="A run's folder, as given to --out.")
def status(folder: Path) -> None:
    """Say how far a run is: which stages are done, what they made, and whether their files are intact."""
    from inranker.pipeline import STAGES
    from inranker.recipe import parse_recipe
    from inranker.store import read_json

    if not (folder / "recipe.json").is_file():
        raise InputError(f"{folder}: no run here (no recipe.json); give the folder of `inranker distill --out`")
    recipe = parse_recipe(read_json(folder / "recipe.json"), f"{folder}/recipe.json")
    print(f"{recipe.name} in {folder}")
    for name, stage in STAGES.items():
        if stage.wanted(recipe):
            print(f"{name:<14}{_state(folder / name)}")
    if (folder / "evaluate" / "metrics.json").is_file():
        print(read_json(folder / "evaluate" / "metrics.json")["verdict"]["headline"])


def _state(folder: Path) -> str:
    from inranker.store import Manifest

    record = folder / "stage.json"
    if record.is_file():
        try:
            manifest = Manifest.read(record)
        except InputError:
            return "damaged (its manifest cannot be read); it will be done again"
        if not manifest.is_current(record):
            return "damaged (a file is missing or changed); it will be done again"
        counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items())
        return f"done in {format_seconds(manifest.seconds)}   {counts}"
    shards = len(list(folder.rglob("shards/*/*.json")))
    checkpoints = sorted(p.name for p in folder.glob("phase-*-checkpoints/checkpoint-*"))
    if shards or checkpoints:
        parts = [f"{shards} shards"] if shards else []
        parts += [f"checkpoint at step {checkpoints[-1].rpartition('-')[2]}"] if checkpoints else []
        return f"begun: {', '.join(parts)}"
    return "not yet"
