"""`inranker bench`: how fast a ranker is on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from inranker.cli.parameters import PATH, POSITIVE
from inranker.cli.progress import progress
from inranker.cli.rank import backend_option, precision_option, threads_option


@click.command()
@click.argument(
    "model",
    default="inranker-mini",
    help="A model folder, a name, or a Hugging Face Hub id. [default: inranker-mini]",
)
@backend_option
@precision_option
@threads_option
@click.option("--words", type=POSITIVE, default=230, help="Words a document; 230 are about 300 tokens.")
@click.option("--pairs", type=POSITIVE, default=200, help="Pairs a throughput run.")
@click.option("--repeats", type=POSITIVE, default=5, help="Runs; the median counts.")
@click.option("--out", type=PATH, metavar="FILE", help="Also write the figures as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def bench(
    model: str,
    backend: str,
    precision: str,
    threads: int | None,
    words: int,
    pairs: int,
    repeats: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure pairs a second, latency for 10, 30 and 100 documents, memory, and the time from start to first score.

    The documents are made up, the same every time. Other work on the machine spoils the figures.

    \b
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
    backend = figures["backend"] + (f" ({figures['instructions']})" if figures["instructions"] else "")
    print(f"{figures['model']}: {backend}, {figures['precision']}, {figures['threads']} threads")
    print(f"{figures['cpu']}, documents of about {figures['words']} words")
    rows = [("pairs/s", f"{figures['pairs_per_second']:,.1f}  ({low:,.1f} to {high:,.1f})")]
    for size, latency in figures["latency"].items():
        rows.append((f"{size} documents", f"p50 {latency['p50_ms']:,.1f} ms   p95 {latency['p95_ms']:,.1f} ms"))
    rows += [("peak memory", f"{figures['peak_mb']:,} MB"), ("first score", f"{figures['cold_start_s']:.2f} s")]
    for name, value in rows:
        print(f"  {name:<16}{value}")
