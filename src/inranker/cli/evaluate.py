"""`inranker evaluate`: how good a ranking is, by judgements."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inranker.cli.distill import dry_option, run_recipe, set_option
from inranker.cli.parameters import PATH, POSITIVE, SHARE
from inranker.cli.progress import progress
from inranker.errors import InputError

if TYPE_CHECKING:
    from inranker.collection import Collection
    from inranker.evaluate.comparison import Figure
    from inranker.types import Run

_SEED = 0


@click.command()
@click.argument("recipe", required=False, help="Run a recipe up to its evaluation; takes --out, --set and --dry-run.")
@click.option(
    "--collection",
    metavar="DIR",
    help="Judged collection: a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv) or ir_datasets:ID.",
)
@click.option("--split", default="test", help="Which judgements: qrels/SPLIT.tsv.")
@click.option(
    "--run",
    type=PATH,
    metavar="FILE",
    help="Start from this TREC run, looked up here, then in the collection's folder. Without it: BM25.",
)
@click.option("--model", help="Rerank with this model: a name that `inranker models list` shows, or a folder.")
@click.option("--depth", type=POSITIVE, default=100, help="How many documents of a query are reranked and measured.")
@click.option("--fusion", type=SHARE, help="Also measure the sum of both rankings; this is the model's share.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="Measure in ir_measures' grammar; repeat for more. [default: nDCG@10, RR@10, AP, R@100]",
)
@click.option("--language", default="en", help="Stemmer and stop words of BM25.")
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="Write the run files and metrics.json to this folder; of a recipe: its run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@set_option
@dry_option
def evaluate(
    recipe: str | None,
    collection: str | None,
    split: str,
    run: Path | None,
    model: str | None,
    depth: int,
    fusion: float | None,
    metrics: tuple[str, ...],
    language: str,
    out: Path | None,
    as_json: bool,
    settings: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Measure BM25, a run file, or a model that reranks either, on a judged collection; or a recipe's student.

    \b
    For example:
      inranker evaluate --collection data/scifact
      inranker evaluate --collection data/scifact --model inranker-mini \\
        --fusion 0.7
      inranker evaluate --collection data/dl19 --run runs/BM25.top100.trec --json
    """
    if (recipe is None) == (collection is None):
        raise InputError("give a recipe, or --collection DIR, and not both")
    if recipe is not None:
        run_recipe(recipe, out, None, "evaluate", settings, dry_run)
    elif collection is not None:
        if settings or dry_run:
            raise InputError("--set and --dry-run belong to a recipe")
        _evaluate(collection, split, run, model, depth, fusion, metrics, language, out, as_json)


def _evaluate(
    collection: str,
    split: str,
    run: Path | None,
    model: str | None,
    depth: int,
    fusion: float | None,
    metrics: Sequence[str],
    language: str,
    out: Path | None,
    as_json: bool,
) -> None:
    if fusion is not None and model is None:
        raise InputError("--fusion weighs a model against the first stage; give --model too")
    from inranker.collection import read_collection
    from inranker.evaluate import DEFAULT_METRICS, check_measures
    from inranker.evaluate.comparison import compare, measure_runs
    from inranker.recipe import CollectionSettings

    metrics = list(metrics or DEFAULT_METRICS)
    check_measures(metrics)
    with progress(None, "read documents") as advance:
        settings = CollectionSettings.model_validate({"source": collection, "split": split, "language": language})
        read = read_collection(settings, advance)
    for note in read.notes:
        print(f"inranker: note: {note}", file=sys.stderr)
    if not read.qrels:
        raise InputError(f"{collection}: no judgements (qrels/{split}.tsv), so nothing can be measured")
    runs = _runs(read, Path(collection), run, model, fusion, depth, language)
    baseline = next(iter(runs))
    values = measure_runs(runs, read.qrels, metrics)
    figures = compare({read.name: values}, baseline, metrics, samples=10_000, seed=_SEED)[read.name]
    report = _report(read, split, depth, figures)
    if out is not None:
        _write(out, runs, report)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report, figures, metrics)


def _runs(
    collection: Collection,
    folder: Path,
    run_path: Path | None,
    model: str | None,
    fusion: float | None,
    depth: int,
    language: str,
) -> dict[str, Run]:
    """Name -> run: the first stage, then what is built on it."""
    from inranker.evaluate import fuse, rerank_run
    from inranker.retrieve import BM25, cut, read_run

    queries = {query.id: query.text for query in collection.queries}
    if run_path is not None:
        path = run_path if run_path.exists() or run_path.is_absolute() else folder / run_path
        name, first = path.name, cut(read_run(path, collection.contents), depth)
        # Official runs answer more topics than were judged.
        first = {query_id: documents for query_id, documents in first.items() if query_id in queries}
        if not first:
            raise InputError(f"{path}: none of its queries is among the judged ones of {collection.name}")
    else:
        name = "BM25"
        with progress(len(collection.documents), "index documents") as advance:
            bm25 = BM25.index(collection.documents, language, progress=advance)
        with progress(len(queries), "search") as advance:
            first = bm25.search(collection.queries, depth, advance)
    runs = {name: first}
    if model is not None:
        from inranker.rank.reranker import Reranker

        with Reranker.load(model) as reranker, progress(sum(map(len, first.values())), "rerank") as advance:
            runs[model] = rerank_run(reranker, first, queries, collection.contents, depth, advance)
        if fusion is not None:
            runs[f"{model} x {fusion:g} + {name} x {1 - fusion:g}"] = fuse(first, runs[model], fusion)
    return runs


def _report(
    collection: Collection, split: str, depth: int, figures: Mapping[str, Mapping[str, Figure]]
) -> dict[str, Any]:
    """What `--json` prints; its `metrics` are those of the last system: fusion, else model, else first stage."""
    systems = [
        {
            "name": name,
            "metrics": {metric: figure.mean for metric, figure in of_system.items()},
            "intervals": {metric: [figure.low, figure.high] for metric, figure in of_system.items()},
            "p_values": {metric: figure.p for metric, figure in of_system.items() if figure.p is not None},
        }
        for name, of_system in figures.items()
    ]
    return {
        "collection": collection.name,
        "split": split,
        "documents": len(collection.documents),
        "skipped_documents": collection.skipped,
        "queries": len(collection.qrels),
        "depth": depth,
        "system": systems[-1]["name"],
        "metrics": systems[-1]["metrics"],
        "systems": systems,
    }


def _write(folder: Path, runs: Mapping[str, Run], report: Mapping[str, Any]) -> None:
    from inranker.retrieve import write_run
    from inranker.store import write_json

    tags = ("first-stage", "reranked", "fused")
    for tag, run in zip(tags, runs.values(), strict=False):
        write_run(folder / f"{tag}.trec", run, tag)
    write_json(folder / "metrics.json", report)


def _print(report: Mapping[str, Any], figures: Mapping[str, Mapping[str, Figure]], metrics: list[str]) -> None:
    print(
        f"{report['collection']} ({report['split']}): {report['documents']:,} documents, "
        f"{report['queries']:,} judged queries; mean and 95% interval"
    )
    baseline = next(iter(figures.values()))[metrics[0]]
    rows = [["", *metrics, ""]]
    for name, of_system in figures.items():
        cells = [f"{figure.mean:.4f} [{figure.low:.3f}, {figure.high:.3f}]" for figure in of_system.values()]
        figure = of_system[metrics[0]]
        said = f"{figure.versus(baseline)} (p = {figure.p:.4f})" if figure.p is not None else ""
        rows.append([name, *cells, said])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
