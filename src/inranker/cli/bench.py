"""`inranker bench`: how fast a ranker is on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from inranker.cli.progress import progress
from inranker.cli.rank import BackendOption, PrecisionOption, ThreadsOption


def bench(
    model: Annotated[
        str, typer.Argument(help="A model folder, a name, or a Hugging Face Hub id.", metavar="[MODEL]")
    ] = "inranker-mini",
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    words: Annotated[int, typer.Option(min=1, help="Words a document; 230 are about 300 tokens.")] = 230,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs a throughput run.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the median counts.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure pairs a second, latency for 10, 30 and 100 documents, memory, and the time from start to first score.

    The documents are made up, the same every time. Other work on the machine spoils the figures.

    Examples:

      inranker bench

      inranker bench my-ranker --backend onnx --precision int8 --out bench.json
    """
    from inranker.rank.bench import LATENCY_SIZES, cold_start, measure
    from inranker.rank.reranker import Reranker
    from inranker.store import write_json

    options = {"backend": backend, "precision": precision, "threads": threads}
    with Reranker.load(model, **options) as ranker, progress(repeats + len(LATENCY_SIZES), "measure") as advance:  # type: ignore[arg-type]
        figures = measure(ranker, words=words, pairs=pairs, repeats=repeats, progress=advance)
    with progress(None, "start anew"):
        figures["cold_start_s"] = cold_start({"name_or_path": model, **options})
    if out is not None:
        write_json(out, figures)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures)


def _print(figures: dict[str, Any]) -> None:
    low, high = figures["pairs_per_second_range"]
    print(f"{figures['model']}: {figures['backend']}, {figures['precision']}, {figures['threads']} threads")
    print(f"{figures['cpu']}, documents of about {figures['words']} words")
    rows = [("pairs/s", f"{figures['pairs_per_second']:,.1f}  ({low:,.1f} to {high:,.1f})")]
    for size, latency in figures["latency"].items():
        rows.append((f"{size} documents", f"p50 {latency['p50_ms']:,.1f} ms   p95 {latency['p95_ms']:,.1f} ms"))
    rows += [("peak memory", f"{figures['peak_mb']:,} MB"), ("first score", f"{figures['cold_start_s']:.2f} s")]
    for name, value in rows:
        print(f"  {name:<16}{value}")
