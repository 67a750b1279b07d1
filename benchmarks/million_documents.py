"""Collection, BM25 and negatives at a million documents: seconds a stage, and the peak memory of the process.

The documents are made: words of a Zipf vocabulary (exponent 1), Poisson lengths. A query is five words of one document,
which counts as its source. Run: `python benchmarks/million_documents.py` (about 1 GB of disk in --folder).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from inranker.collection import Collection, read_collection
from inranker.recipe import CollectionSettings, NegativeSettings
from inranker.retrieve import BM25, sample_candidates

_SYLLABLES = [c + v for c in "bdfghjklmnprstvwxz" for v in ("a", "e", "i", "o", "u", "ai", "en", "or")]
_BATCH = 10_000


def make(folder: Path, documents: int, queries: int, vocabulary: int, words: int, seed: int) -> None:
    """Write a BEIR folder of made documents and queries."""
    random = np.random.default_rng(seed)
    names = [_word(rank) for rank in range(vocabulary)]
    shares = np.cumsum(1 / np.arange(1, vocabulary + 1))
    shares /= shares[-1]
    sources = dict(zip(random.choice(documents, queries, replace=False).tolist(), range(queries), strict=True))
    (folder / "qrels").mkdir(parents=True)
    with (
        (folder / "corpus.jsonl").open("w") as corpus,
        (folder / "queries.jsonl").open("w") as query_file,
        (folder / "qrels" / "test.tsv").open("w") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for first in range(0, documents, _BATCH):
            lengths = np.maximum(5, random.poisson(words, min(_BATCH, documents - first)))
            ends = np.cumsum(lengths)
            drawn = np.searchsorted(shares, random.random(ends[-1])).tolist()
            for offset, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
                number, text = first + offset, [names[rank] for rank in drawn[start:end]]
                corpus.write(json.dumps({"_id": f"d{number}", "title": "", "text": " ".join(text)}) + "\n")
                if number in sources:
                    query = " ".join(text[place] for place in random.choice(len(text), 5, replace=False))
                    query_file.write(json.dumps({"_id": f"q{sources[number]}", "text": query}) + "\n")
                    qrels.write(f"q{sources[number]}\td{number}\t1\n")


def _word(rank: int) -> str:
    """A word for each rank: common ones are short, as in real text."""
    word = ""
    while True:
        rank, last = divmod(rank, len(_SYLLABLES))
        word += _SYLLABLES[last]
        if not rank:
            return word
        rank -= 1


def measure(folder: Path, seed: int) -> dict[str, float]:
    """Run the stages; seconds of each, by the clock and of the processor, and the peak memory so far in GB."""
    figures: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        started, cpu = time.perf_counter(), time.process_time()
        yield
        figures[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
        figures[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 1)
        figures[f"{name}_peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2)
        seconds, cpu_seconds, peak = (figures[f"{name}_{what}"] for what in ("seconds", "cpu_seconds", "peak_gb"))
        print(f"{name:12s}{seconds:8.1f} s  ({cpu_seconds:.1f} s of one core)  peak {peak:5.2f} GB", flush=True)

    settings = NegativeSettings()
    with stage("collection"):
        collection: Collection = read_collection(CollectionSettings(source=str(folder)))
    with stage("index"):
        bm25 = BM25.index(collection.documents)
    with stage("search"):
        run = bm25.search(collection.queries, settings.depth)
    with stage("negatives"):
        sources = {query_id: list(grades) for query_id, grades in collection.qrels.items()}
        candidates = sample_candidates(run, sources, collection.contents, settings, seed)
    figures |= {"documents": len(collection.documents), "queries": len(candidates)}
    figures["candidates"] = sum(len(documents) for documents in candidates.values())
    return figures


def main() -> None:
    """Make the collection in a process of its own, so that the peak is that of the stages alone, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--vocabulary", type=int, default=200_000)
    parser.add_argument("--words", type=int, default=100, help="mean length of a document")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-gb", type=float, default=6.0, help="fail above this peak")
    parser.add_argument("--folder", type=Path, help="where the collection is made (and kept); default: a temporary one")
    parser.add_argument("--make-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.documents, arguments.queries, arguments.vocabulary, arguments.words, arguments.seed)
    if arguments.make_only:
        make(arguments.folder, *sizes)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "made"
        if not folder.exists():
            subprocess.run([sys.executable, *sys.argv, "--make-only", "--folder", str(folder)], check=True)
        figures = measure(folder, arguments.seed)
    print(json.dumps(figures))
    peak = figures["negatives_peak_gb"]
    if peak > arguments.limit_gb:
        sys.exit(f"peak memory {peak} GB is above {arguments.limit_gb} GB")


if __name__ == "__main__":
    main()
