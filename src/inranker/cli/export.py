"""`inranker export`: a trained ranker to ONNX files for the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from inranker.cli.parameters import PATH
from inranker.cli.progress import progress
from inranker.errors import InputError


@click.command()
@click.argument("model", help="A Hugging Face folder of a ranker, or a name.")
@click.option("--out", type=PATH, metavar="DIR", help="Folder to write. [default: MODEL itself]")
@click.option("--int8/--no-int8", default=True, help="Also try int8, behind the gate.")
@click.option(
    "--pairs",
    type=PATH,
    metavar="FILE",
    help="JSON lines with `query` and `documents` (a list), or `query` and `document`: what the checks run on. "
    "int8 needs at least 50 queries of your kind.",
)
@click.option(
    "--collection",
    metavar="DIR",
    help="In place of --pairs: a collection's own queries with BM25's documents, by its judgements.",
)
@click.option("--split", default="test", help="With --collection: whose queries.")
@click.option(
    "--opset",
    type=click.IntRange(min=20),
    default=23,
    help="Opset of the ONNX standard; 20 for ONNX Runtime before 1.23.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export(
    model: str,
    out: Path | None,
    int8: bool,
    pairs: Path | None,
    collection: str | None,
    split: str,
    opset: int,
    as_json: bool,
) -> None:
    """Write a ranker for the engine: onnx/model.onnx, and onnx/model_int8.onnx where it passes its gate.

    The fp32 graph is compared with torch. int8 is refused, with the figures, when its rankings are too far from fp32's:
    mean Kendall tau under 0.95, or nDCG@10 lower by more than 0.005, over at least 50 queries. The report is kept in
    gate.json beside the model.

    \b
    Example:
      inranker export runs/mine/train/student --out my-ranker \\
        --collection data/scifact
    """
    from inranker.export import export_model

    if pairs is not None and collection is not None:
        raise InputError("give --pairs or --collection, not both")
    folder = _folder(model)
    chosen = _read_pairs(pairs) if pairs else None
    gains: list[float] | None = None
    if collection is not None:
        chosen, gains = _from_collection(collection, split)
    with progress(None, "export"):
        report = export_model(folder, out or folder, int8=int8, pairs=chosen, gains=gains, opset=opset)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, out or folder)


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from inranker.models import resolve

    return resolve(model)


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    pairs = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            documents = row["documents"] if "documents" in row else [row["document"]]
            pairs += [(row["query"], document) for document in documents]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError.at(path, number, "not a JSON object with `query` and `documents`") from None
    return pairs


def _from_collection(
    source: str, split: str, queries: int = 100, depth: int = 30
) -> tuple[list[tuple[str, str]], list[float] | None]:
    """Pairs of some queries with BM25's documents, and their judgements where the collection has any."""
    from inranker.collection import read_collection
    from inranker.recipe import CollectionSettings
    from inranker.retrieve import BM25
    from inranker.store import fingerprint

    read = read_collection(CollectionSettings.model_validate({"source": source, "split": split}))
    chosen = sorted(read.queries, key=lambda query: fingerprint(query.id))[:queries]
    run = BM25.index(read.documents, "en").search(chosen, depth)
    contents = read.contents
    places = [(query, d.document_id) for query in chosen for d in run.get(query.id, [])]
    gains = [float(read.qrels.get(query.id, {}).get(d, 0)) for query, d in places]
    return [(query.text, contents[d]) for query, d in places], gains if read.qrels else None


def _print(report: dict[str, Any], out: Path) -> None:
    fp32 = report["fp32"]
    print(f"{out / fp32['file']}: fp32, differs from torch by at most {fp32['difference_from_torch']:.1e}")
    if "int8" not in report:
        return
    gate = report["int8"]
    if "refused" in gate:
        print(f"int8 refused: {gate['refused']}")
    else:
        print(
            f"{out / gate['file']}: int8, Kendall tau {gate['kendall']:.4f} (lowest {gate['kendall_lowest']:.4f}), "
            f"nDCG@10 lower by {gate['ndcg_difference']:.4f}, over {gate['queries']} queries"
        )
