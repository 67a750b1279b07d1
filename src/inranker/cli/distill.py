"""`inranker distill` and the commands of single stages: a recipe in, a measured student out."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inranker.cli.parameters import PATH
from inranker.cli.progress import format_seconds, progress
from inranker.errors import InputError, require

if TYPE_CHECKING:
    from inranker.pipeline import StageResult
    from inranker.pipeline.plan import Estimate
    from inranker.recipe import Recipe

recipe_argument = click.argument("recipe", help="A recipe file, or the name of one that ships.")
out_option = click.option("--out", type=PATH, metavar="DIR", help="The run's folder. [default: runs/NAME]")
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the recipe, such as train.phases.0.epochs=2; repeatable.",
)
dry_option = click.option(
    "--dry-run", is_flag=True, help="Only say what would be done: counts, tokens, expected time, API cost."
)


@click.command()
@recipe_argument
@out_option
@click.option("--from", "first", metavar="STAGE", help="Start with this stage; take what those before it left.")
@click.option("--to", "last", metavar="STAGE", help="Stop after this stage.")
@set_option
@dry_option
def distill(
    recipe: str, out: Path | None, first: str | None, last: str | None, settings: tuple[str, ...], dry_run: bool
) -> None:
    """Distil a small ranker for your documents, as a recipe describes it, and say how good it is.

    The stages are collection, train-teacher (if the recipe has one), generate, retrieve, label, train, evaluate,
    export. Each leaves its result in the run's folder; a run that was stopped goes on where it was, and what is there
    already is used as long as its settings and inputs are the same.

    \b
    Examples:
      inranker init documents.jsonl --out recipe.toml
      inranker distill recipe.toml --dry-run
      inranker distill recipe.toml --out runs/mine --set train.phases.0.epochs=2
    """
    run_recipe(recipe, out, first, last, settings, dry_run)


def _up_to(stage: str, help: str) -> click.Command:
    """The command that runs a recipe up to one of its stages, by whose name it goes."""

    @click.command(stage, help=help)
    @recipe_argument
    @out_option
    @set_option
    @dry_option
    def command(recipe: str, out: Path | None, settings: tuple[str, ...], dry_run: bool) -> None:
        run_recipe(recipe, out, None, stage, settings, dry_run)

    return command


generate = _up_to("generate", "Let a language model write queries for the documents, and filter them.")
retrieve = _up_to(
    "retrieve",
    "Find candidates for the training queries: source documents, and negatives out of BM25's or your own run.",
)
label = _up_to("label", "Let the teacher score every candidate; a pair that it has ever scored is not scored again.")
train_teacher = _up_to(
    "train-teacher",
    "Fine-tune a teacher on judged queries, for when there is none: the table `train_teacher` of a recipe.",
)
train = _up_to("train", "Train the student through the recipe's phases.")


def run_recipe(
    name: str,
    out: Path | None,
    first: str | None,
    last: str | None,
    settings: Sequence[str],
    dry_run: bool,
) -> Path:
    """Load a recipe and run its stages from `first` to `last`, telling of each; returns the run's folder."""
    from inranker.recipe import load_recipe

    recipe = load_recipe(name, parse_settings(settings))
    folder = out or Path("runs") / recipe.name
    if dry_run:
        _print_plan(recipe, folder)
        return folder
    _announce(recipe, folder)
    from inranker.cli.quiet import quiet_libraries
    from inranker.pipeline import distill as run

    with quiet_libraries():
        results = run(recipe, folder, first=first, last=last, progress=progress, notify=_print_stage)
    if all(result.reused for result in results):
        print("Nothing had to be done: all of it was there already, from the same settings and inputs.")
    if any(result.stage == "evaluate" for result in results):
        require("rich", "distill")
        from inranker.cli.table import print_results

        print_results(folder)
    return folder


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` with a TOML value; what is no TOML value is a string."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {setting}: expected KEY=VALUE")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = value
    return parsed


def _announce(recipe: Recipe, folder: Path) -> None:
    print(f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name)
    if not recipe.verified:
        print("Note: nobody has run this recipe at full size yet.")
    print(f"Folder: {folder}")


def _print_stage(result: StageResult) -> None:
    counts = ", ".join(f"{count:,} {name}" for name, count in result.counts.items())
    what = "reused" if result.reused else format_seconds(result.seconds)
    print(f"{result.stage:<14}{what:>12}   {counts}", flush=True)
    for note in result.notes if result.stage != "evaluate" else ():  # Said with the results.
        print(f"{'':<29}{note}", flush=True)


def _print_plan(recipe: Recipe, folder: Path) -> None:
    from inranker.pipeline.plan import estimate
    from inranker.pipeline.workspace import Workspace

    _announce(recipe, folder)
    estimates = estimate(Workspace(recipe, folder, progress))
    for entry in estimates:
        print(_plan_line(entry))
    known = sum(entry.seconds or 0 for entry in estimates)
    print(f"{'in all':<14}about {format_seconds(known)} on this machine, as far as model sizes are known")
    costs = [entry.cost for entry in estimates if entry.cost is not None]
    if costs:
        print(f"{'API':<14}about {sum(costs):,.2f} in the currency of the prices; budget: {recipe.generate.api.budget}")


def _plan_line(entry: Estimate) -> str:
    parts = [f"{entry.items:,} {entry.unit}"]
    if entry.tokens:
        parts.append(f"{entry.tokens / 1e6:,.2f} M tokens")
        parts.append("time unknown" if entry.seconds is None else f"about {format_seconds(entry.seconds)}")
    return f"{entry.stage:<14}" + ", ".join(parts)
