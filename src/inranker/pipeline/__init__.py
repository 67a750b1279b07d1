"""The order of the rooms: a recipe and a folder in, a measured student out.

from inranker.pipeline import distill
from inranker.recipe import load_recipe

distill(load_recipe("recipe.toml"), "runs/mine")
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inranker.errors import InputError
from inranker.pipeline.stages import STAGES
from inranker.pipeline.workspace import ProgressFactory, Workspace, silent
from inranker.recipe import Recipe
from inranker.registry import nearest
from inranker.store import Manifest, write_json

__all__ = ["STAGES", "StageResult", "Workspace", "distill", "run_stage"]


@dataclass(frozen=True)
class StageResult:
    """What a stage did, or that what it had left is still good."""

    stage: str
    reused: bool
    seconds: float
    counts: dict[str, int]
    notes: list[str]


def distill(
    recipe: Recipe,
    folder: str | Path,
    *,
    first: str | None = None,
    last: str | None = None,
    progress: ProgressFactory = silent,
    notify: Callable[[StageResult], None] = lambda result: None,
) -> list[StageResult]:
    """Run a recipe's stages in `folder`; whatever is there already and still fits is used.

    Args:
        recipe: the whole run.
        folder: the run's folder; made if missing.
        first: start with this stage and take what those before it left.
        last: stop after this stage.
        progress: shows the progress of long work.
        notify: told of each stage when it is done.

    Raises:
        InputError: no such stage, one before `first` has not run, or a file is missing.
        ModelError: a model is missing; both before the first stage.
    """
    names = [name for name, stage in STAGES.items() if stage.wanted(recipe)]
    for name in (first, last):
        if name is not None and name not in names:
            known = f"this recipe has no stage {name!r}" if name in STAGES else f"unknown stage {name!r}"
            raise InputError(f"{known}; {nearest(name, names)}")
    start = names.index(first) if first else 0
    stop = names.index(last) + 1 if last else len(names)
    if start >= stop:
        raise InputError(f"stage {first!r} comes after {last!r}")
    workspace = Workspace(recipe, Path(folder), progress)
    write_json(workspace.folder / "recipe.json", recipe.model_dump(mode="json"))
    for name in names[start:stop]:
        STAGES[name].outside(workspace)  # what is missing shows now, not when the stages before have taken hours
    results = []
    for name in names[start:stop]:
        result = run_stage(workspace, name)
        notify(result)
        results.append(result)
    return results


def run_stage(workspace: Workspace, name: str) -> StageResult:
    """Run one stage, or find that it need not run."""
    stage, record = STAGES[name], workspace.record(name)
    manifest = stage.manifest(workspace)
    if manifest.is_current(record):
        old = Manifest.read(record)
        return StageResult(name, True, old.seconds, old.counts, [])
    started = time.monotonic()
    outcome = stage.work(workspace)
    manifest.counts = outcome.counts
    manifest.files = dict.fromkeys(outcome.files, "")
    manifest.seconds = round(time.monotonic() - started, 3)
    manifest.write(record)
    return StageResult(name, False, manifest.seconds, outcome.counts, outcome.notes)
