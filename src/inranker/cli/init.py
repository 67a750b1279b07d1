"""`inranker init`: a commented recipe for somebody's documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from inranker.cli.parameters import PATH
from inranker.cli.progress import progress
from inranker.errors import InputError


@click.command()
@click.argument(
    "documents",
    help="Your documents: a BEIR folder, ir_datasets:ID, a JSONL, CSV or Parquet file, or a folder of .txt and .md "
    "files.",
)
@click.option("--out", type=PATH, default=Path("recipe.toml"), metavar="FILE", help="The recipe to write.")
@click.option("--name", help="The run's name. [default: that of the documents]")
@click.option("--id-field", default="_id", help="Field (column) that holds a document's id.")
@click.option("--title-field", default="title", help="Field that holds its title, if there is one.")
@click.option("--text-field", default="text", help="Field that holds its text.")
@click.option("--language", default="en", help="Language of the documents, as a two-letter code.")
def init(
    documents: str, out: Path, name: str | None, id_field: str, title_field: str, text_field: str, language: str
) -> None:
    """Write a recipe for your documents, with a comment on every setting that matters.

    The documents are read once, so that a mistake shows now and not later.

    \b
    Example:
      inranker init tickets.csv --id-field ticket --text-field body \\
        --out tickets.toml
    """
    from inranker.collection import read_collection
    from inranker.recipe import CollectionSettings, parse_recipe

    if out.exists():
        raise InputError(f"{out}: is there already; choose another --out, or remove it")
    settings = CollectionSettings(
        source=documents, id_field=id_field, title_field=title_field, text_field=text_field, language=language
    )
    with progress(None, f"read {documents}"):
        collection = read_collection(settings)
    template = (Path(__file__).parent.parent / "recipes" / "init.toml.template").read_text(encoding="utf-8")
    values = {
        "name": name or Path(documents).stem or "mine",
        "source": documents,
        "id_field": id_field,
        "title_field": title_field,
        "text_field": text_field,
        "language": language,
        "dtype": "auto" if shutil.which("nvidia-smi") else "int8",  # torch would say it better, in seconds
    }
    for key, value in values.items():
        # A JSON string is a TOML string, too.
        template = template.replace(f"{{{{{key}}}}}", json.dumps(value, ensure_ascii=False))
    import tomllib

    parse_recipe(tomllib.loads(template), str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(template, encoding="utf-8")
    skipped = f" ({collection.skipped:,} without text are left out)" if collection.skipped else ""
    print(f"{len(collection.documents):,} documents{skipped}. Wrote {out}.")
    print(f"See what it would do: inranker distill {out} --dry-run")
