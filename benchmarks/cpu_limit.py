"""How near the native engine comes to what this processor multiplies: int8 products and attention, per second.

    python benchmarks/cpu_limit.py [--model inranker-mini] [--tokens 60,300,512] [--sizes 512,1024,2048] [--rounds 7]
        [--out FILE]

The limit is torch's (oneDNN's) own product of square matrices, the best of --sizes, with as many threads, in int8,
bf16 and fp32. Engine and products take turns; the median round counts. Of the engine, operations that its graph needs
count (a multiplication and an addition are two): the layers' int8 products over all tokens, the last layer's keys and
values, and attention; tokenization is left out. `time_of_products` is the share of a pair's time that its int8 products
would take at the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpu_engine import cpu
from inranker.models import resolve
from inranker.rank.folder import ModelFolder
from inranker.rank.native_backend import NativeBackend
from inranker.sequence import TokenSequence

PAIRS = 32


def square_products(sizes: list[int]) -> dict[str, Callable[[], float]]:
    """Per data type, what measures the best rate of a product of square matrices, in operations a second."""
    made: dict[str, list[tuple[int, Callable[[], Any]]]] = {"int8": [], "bf16": [], "fp32": []}
    for n in sizes:
        floats = torch.randn(n, n), torch.randn(n, n)
        bytes_ = [torch.randint(-127, 127, (n, n), dtype=torch.int8) for _ in range(2)]
        halves = [x.bfloat16() for x in floats]
        made["int8"].append((n, lambda x=bytes_: torch._int_mm(*x)))
        made["bf16"].append((n, lambda x=halves: torch.mm(*x)))
        made["fp32"].append((n, lambda x=floats: torch.mm(*x)))

    def best(products: list[tuple[int, Callable[[], Any]]]) -> float:
        return max(2 * n**3 / seconds_of(product, 3) for n, product in products)

    return {name: lambda products=products: best(products) for name, products in made.items()}


def seconds_of(call: Callable[[], Any], times: int) -> float:
    """The least of a few."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def operations(config: dict[str, Any], tokens: int) -> dict[str, float]:
    """Operations of one pair."""
    size, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"] - 1
    return {
        "products": 2.0 * tokens * (layers * (4 * size * size + 2 * size * inner) + 2 * size * size),
        "attention": 4.0 * tokens * tokens * size * layers,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="inranker-mini")
    parser.add_argument("--tokens", default="60,300,512")
    parser.add_argument("--sizes", default="512,1024,2048")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = ModelFolder.open(resolve(arguments.model))
    backend = NativeBackend(folder)
    torch.set_num_threads(backend.threads)
    source = np.random.default_rng(0)
    lengths = [int(n) for n in arguments.tokens.split(",")]
    words = folder.config["vocab_size"]
    work = {n: [TokenSequence(source.integers(1, words, n).tolist(), [0] * n) for _ in range(PAIRS)] for n in lengths}
    products = square_products([int(n) for n in arguments.sizes.split(",")])
    limits: dict[str, list[float]] = {name: [] for name in products}
    seconds: dict[int, list[float]] = {n: [] for n in lengths}
    for _ in range(arguments.rounds):
        for name, measure in products.items():
            limits[name].append(measure())
        for n, sequences in work.items():
            seconds[n].append(seconds_of(lambda s=sequences: backend.margins(s), 1) / PAIRS)
    limit = {name: statistics.median(rates) for name, rates in limits.items()}
    report: dict[str, Any] = {
        "cpu": cpu(),
        "instructions": backend.instructions,
        "threads": backend.threads,
        "limit_tops": {name: round(rate / 1e12, 3) for name, rate in limit.items()},
        "pairs": {},
    }
    for n in lengths:
        taken, needed = statistics.median(seconds[n]), operations(folder.config, n)
        report["pairs"][n] = {
            "ms": round(1e3 * taken, 2),
            "range_ms": [round(1e3 * min(seconds[n]), 2), round(1e3 * max(seconds[n]), 2)],
            "products_tops": round(needed["products"] / taken / 1e12, 3),
            "attention_tops": round(needed["attention"] / taken / 1e12, 3),
            "time_of_products": {t: round(needed["products"] / limit[t] / taken, 3) for t in ("int8", "fp32")},
        }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
