"""How fast a ranker is here: throughput, latency, memory, cold start."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inranker.errors import ModelError
from inranker.rank.machine import available_threads, cpu_info
from inranker.rank.reranker import Reranker

_TEXT = (
    "the of and in to a is for with that was on as by from are were at this which patients cells treatment study "
    "results effect protein increased risk disease expression clinical analysis response human data associated levels "
    "group after between high compared during significant gene activity model factor time control health"
)
LATENCY_SIZES = (10, 30, 100)
_COLD_START = """
import json, sys, time
started = time.perf_counter()
from inranker import Reranker
options = json.loads(sys.argv[1])
with Reranker.load(**options) as ranker:
    ranker.scores([("first", "score")])
print(time.perf_counter() - started)
"""


def made_documents(count: int, words: int, seed: int = 0) -> list[str]:
    """Documents of about `words` words (70 % to 130 %), the same for the same arguments."""
    source, vocabulary = random.Random(seed), _TEXT.split()
    sizes = [source.randint(round(words * 0.7), round(words * 1.3)) for _ in range(count)]
    return [" ".join(source.choices(vocabulary, k=max(size, 1))) for size in sizes]


def measure(
    ranker: Reranker,
    *,
    words: int = 230,
    pairs: int = 200,
    repeats: int = 5,
    sizes: Sequence[int] = LATENCY_SIZES,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Throughput over `pairs` pairs (median of `repeats`) and latency of a request of each size, in this process."""
    query = "does the treatment increase survival of patients"
    documents = made_documents(max(pairs, *sizes), words)
    ranker.scores([(query, d) for d in documents[: min(20, pairs)]])  # warm up
    rates, latencies = [], {}
    for _ in range(repeats):
        started = time.perf_counter()
        ranker.scores([(query, d) for d in documents[:pairs]])
        rates.append(pairs / (time.perf_counter() - started))
        progress(1)
    for size in sizes:
        seconds = []
        for turn in range(max(repeats, 3)):
            part = [documents[(turn + i) % len(documents)] for i in range(size)]
            started = time.perf_counter()
            ranker.rank(query, part)
            seconds.append(time.perf_counter() - started)
        progress(1)
        p50, p95 = np.percentile(seconds, [50, 95])
        latencies[str(size)] = {"p50_ms": round(p50 * 1000, 1), "p95_ms": round(p95 * 1000, 1)}
    return {
        "model": str(ranker.folder.path),
        "backend": ranker.backend.name,
        "instructions": getattr(ranker.backend, "instructions", None),  # the native engine has a choice of them
        "precision": ranker.backend.precision,
        "cpu": cpu_info()[0],
        "threads": available_threads(),
        "words": words,
        "pairs_per_second": round(float(np.median(rates)), 1),
        "pairs_per_second_range": [round(min(rates), 1), round(max(rates), 1)],
        "latency": latencies,
        # Linux counts in KiB, macOS in bytes.
        "peak_mb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        ),
    }


def cold_start(options: dict[str, Any], repeats: int = 3) -> float:
    """Seconds from the first line of a new Python process to its first score, the least of some tries.

    Args:
        options: arguments of `Reranker.load`, by name.
        repeats: processes to start.

    Raises:
        ModelError: the process failed.
    """
    seconds = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", _COLD_START, json.dumps(options)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ModelError(f"the cold start failed: {done.stderr.strip().splitlines()[-1]}")
        seconds.append(float(done.stdout.strip().splitlines()[-1]))
    return round(min(seconds), 3)
