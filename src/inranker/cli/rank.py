"""`inranker rank` and `inranker rerank-run`: order documents with a ranker."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inranker.cli.parameters import PATH, POSITIVE, SHARE
from inranker.cli.progress import progress
from inranker.errors import InputError

if TYPE_CHECKING:
    from inranker.rank.reranker import Reranker
    from inranker.types import Pair, Run

model_option = click.option(
    "--model",
    default="inranker-mini",
    help="A model folder, a name that `inranker models list` shows, or a Hugging Face Hub id.",
)
backend_option = click.option(
    "--backend", default="auto", help="native, onnx, torch, openvino, or auto: the fastest that is there."
)
precision_option = click.option(
    "--precision", default="auto", help="fp32, int8, bf16, or auto: the fastest that passed its gate."
)
threads_option = click.option("--threads", type=POSITIVE, help="CPU threads. [default: the cores this process may use]")
_SHARD_QUERIES = 16


@click.command()
@click.option("--query", "-q", required=True, help="What is searched for.")
@click.option(
    "--docs",
    default="-",
    metavar="FILE",
    help="The documents: a file with one text a line, or JSON lines with fields (see --field); - is standard input.",
)
@model_option
@click.option("--top-n", type=click.IntRange(min=0), help="Print only the best n.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@click.option(
    "--field",
    "fields",
    multiple=True,
    help="Field of a JSON document to score; repeat for more. [default: title, text]",
)
@click.option(
    "--passages",
    default="truncate",
    help="A document that is too long: truncate it, or take the max of its windows.",
)
@backend_option
@precision_option
@threads_option
def rank(
    query: str,
    docs: str,
    model: str,
    top_n: int | None,
    as_json: bool,
    fields: tuple[str, ...],
    passages: str,
    backend: str,
    precision: str,
    threads: int | None,
) -> None:
    """Order documents by relevance to a query, best first.

    Prints place in the input, probability of relevance, logit and text, separated by tabs.

    \b
    Examples:
      printf 'Bananas are yellow.\\nParis is in France.\\n' |
        inranker rank --query "capital of france"
      inranker rank -q "heart failure" --docs corpus.jsonl --top-n 10 --json
    """
    documents = _read_documents(docs)
    with progress(None, "load the model"):
        from inranker.rank.reranker import Reranker

        ranker = Reranker.load(model, backend, precision=precision, threads=threads)
    with ranker, progress(len(documents), "rank"):
        results = ranker.rank(
            query,
            documents,
            top_n,
            return_documents=True,
            fields=fields or ("title", "text"),
            passages=_passages(passages),
        )
    for result in results:
        if as_json:
            print(json.dumps(result._asdict(), ensure_ascii=False))
        else:
            text = " ".join((result.document or "").split())
            print(f"{result.index}\t{result.score:.4f}\t{result.logit:.4f}\t{text}")


@click.command()
@click.option(
    "--collection", required=True, metavar="DIR", help="Documents and queries: a BEIR folder, or ir_datasets:ID."
)
@click.option("--run", type=PATH, required=True, metavar="FILE", help="The first stage's run, in TREC's form.")
@click.option("--out", type=PATH, required=True, metavar="FILE", help="The run to write.")
@model_option
@click.option("--split", default="test", help="Whose queries: those judged in qrels/SPLIT.tsv.")
@click.option("--depth", type=POSITIVE, default=100, help="How many documents of a query are reranked.")
@click.option("--fusion", type=SHARE, help="Write the sum of both rankings; this is the model's share.")
@backend_option
@precision_option
@threads_option
def rerank_run(
    collection: str,
    run: Path,
    out: Path,
    model: str,
    split: str,
    depth: int,
    fusion: float | None,
    backend: str,
    precision: str,
    threads: int | None,
) -> None:
    """Rerank a run: a TREC run in, a TREC run out.

    Work is kept beside the output while it lasts: started again after a kill, the command goes on where it was.

    \b
    Example:
      inranker rerank-run --collection data/scifact --run bm25.trec \\
        --out reranked.trec
    """
    from inranker.collection import read_collection
    from inranker.rank.reranker import Reranker
    from inranker.recipe import CollectionSettings
    from inranker.retrieve.trec import read_run, sort_documents, write_run

    settings = CollectionSettings.model_validate({"source": collection, "split": split})
    with progress(None, "read documents") as advance:
        read = read_collection(settings, advance)
    queries = {query.id: query.text for query in read.queries}
    first = {q: found[:depth] for q, found in read_run(run, read.contents).items()}
    missing = [q for q in first if q not in queries]
    if missing:
        raise InputError(f"{run}: query {missing[0]!r} is not in {collection} (split {split})")
    with Reranker.load(model, backend, precision=precision, threads=threads) as ranker:
        scores = _score_run(ranker, first, queries, read.contents, out, read.fingerprint)
    result: Run = {q: sort_documents(found) for q, found in scores.items()}
    if fusion is not None:
        from inranker.evaluate.fusion import fuse

        result = fuse(first, result, fusion)
    write_run(out, result, "inranker")
    print(f"{out}: {sum(map(len, result.values()))} documents of {len(result)} queries", file=sys.stderr)


def _score_run(
    ranker: Reranker, run: Run, queries: Mapping[str, str], contents: Mapping[str, str], out: Path, collection: str
) -> dict[str, list[tuple[str, float]]]:
    """Scores of a run's documents, in shards of queries that survive a kill."""
    import shutil

    import pyarrow as pa

    from inranker.store import Manifest, fingerprint, folder_fingerprint, read_parquet, run_sharded
    from inranker.types import Pair

    manifest = Manifest(
        "rerank-run",
        {"precision": ranker.backend.precision, "backend": ranker.backend.name},
        {
            "model": folder_fingerprint(ranker.folder.path),
            "collection": collection,
            "run": fingerprint({q: [d.document_id for d in found] for q, found in run.items()}),
        },
    )
    schema = pa.schema([("query_id", pa.string()), ("document_id", pa.string()), ("score", pa.float32())])
    folder = out.with_name(f"{out.name}.partial")

    def score(part: Sequence[str]) -> list[dict[str, Any]]:
        places = [(q, d.document_id) for q in part for d in run[q]]
        pairs: list[Pair] = [Pair(queries[q], contents[d]) for q, d in places]
        margins = ranker.scores(pairs)
        return [
            {"query_id": q, "document_id": d, "score": s} for (q, d), s in zip(places, margins.tolist(), strict=True)
        ]

    with progress(len(run), "rerank queries") as advance:
        path = run_sharded(
            folder,
            list(run),
            score,
            manifest=manifest,
            schema=schema,
            shard_size=_SHARD_QUERIES,
            output="scores.parquet",
            progress=advance,
        )
    scores: dict[str, list[tuple[str, float]]] = {query_id: [] for query_id in run}
    for row in read_parquet(path).to_pylist():
        scores[row["query_id"]].append((row["document_id"], row["score"]))
    shutil.rmtree(folder)
    return scores


def _passages(value: str) -> Any:
    if value not in ("truncate", "max"):
        raise InputError(f"--passages {value}: known: truncate, max")
    return value


def _read_documents(source: str) -> list[str | Mapping[str, Any]]:
    """Texts, or mappings where a line is a JSON object."""
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    documents: list[str | Mapping[str, Any]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError.at(source, number, f"not UTF-8: {error.reason} at byte {error.start}") from None
        if text.startswith("{"):
            try:
                documents.append(json.loads(text))
            except json.JSONDecodeError as error:
                raise InputError.at(source, number, f"not JSON: {error.msg}") from None
        elif text:
            documents.append(text)
    return documents
